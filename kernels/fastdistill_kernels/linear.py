"""Student-batched linear layer and its gradients, value alone or with its tangent.

    y  = x·wᵀ + b              ẏ  = ẋ·wᵀ + x·ẇᵀ + ḃ
    gx = gy·w                  ġx = ġy·w + gy·ẇ
    gw = gyᵀ·x,  gb = Σ gy     ġw = ġyᵀ·x + gyᵀ·ẋ,  ġb = Σ ġy

Inputs ``x [S, G, n, F]`` (an axis S or G of size 1, or expanded, is shared), weights ``w [S, O, F]``, their tangents
``ẇ [S, G, O, F]`` or ``[S, O, F]``, results ``y [S, G, n, O]``, weight gradients ``[S, G, O, F]`` in float32 at least.
It is `fastdistill_kernels.convolution` with a kernel of 1 on images of one pixel: on a device its kernels compute it,
and its rules count the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_one_of, expect_shape, refuse_derivatives
from fastdistill_kernels.convolution import (
    PRECISIONS,
    check_channels,
    common,
    expect_axes,
    per_group,
    spread,
)
from fastdistill_kernels.convolution_cost import (
    Sizes,
    cost_convolution,
    cost_convolution_input_gradient,
    cost_convolution_weight_gradient,
    cost_dual_convolution,
    cost_dual_convolution_input_gradient,
    cost_dual_convolution_weight_gradient,
)
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import linear as reference
from fastdistill_kernels.reference.convolution import gradient_dtype


def linear_sizes(students: int, groups: int, images: int, inputs: int, outputs: int) -> Sizes:
    """A linear layer's sizes as those of a convolution, whose cost functions take them."""
    return Sizes(
        students=students,
        groups=groups,
        images=images,
        channels=inputs,
        features=outputs,
        height=1,
        width=1,
        kernel=1,
    )


def _sizes(x: Sequence[int], outputs: int) -> Sizes:
    students, groups, images, inputs = x
    return linear_sizes(students, groups, images, inputs, outputs)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:3], weight.shape[1]))


def _dual_fake(x: Tensor, dx: Tensor | None, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake(x, weight), _fake(x, weight)


def _input_fake(gy: Tensor, weight: Tensor, precision: str) -> Tensor:
    return gy.new_empty((*gy.shape[:3], weight.shape[2]))


def _dual_input_fake(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, precision: str, value: bool
) -> tuple[Tensor, Tensor]:
    made = _input_fake(gy, weight, precision)
    return made if value else gy.new_empty(0), _input_fake(gy, weight, precision)


def _weight_fake(x: Tensor, gy: Tensor, bias: bool, precision: str) -> tuple[Tensor, Tensor]:
    lead, dtype = (*gy.shape[:2], gy.shape[3]), gradient_dtype(gy.dtype)
    return gy.new_empty((*lead, x.shape[3]), dtype=dtype), gy.new_empty(lead if bias else 0, dtype=dtype)


def _dual_weight_fake(
    x: Tensor, dx: Tensor | None, gy: Tensor, dgy: Tensor, bias: bool, precision: str, value: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dgw, dgb = _weight_fake(x, gy, bias, precision)
    gw, gb = _weight_fake(x, gy, bias, precision) if value else (dgw.new_empty(0), dgw.new_empty(0))
    return gw, dgw, gb, dgb


_linear = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, str precision) -> Tensor",
    reference=reference.linear,
    kernels="linear",
    fake=_fake,
    flops=lambda x, w, b, _: cost_convolution(_sizes(x, w[1]), 1, bias=b is not None).flops,
)
_dual_linear = register(
    "dual_linear(Tensor x, Tensor? dx, Tensor weight, Tensor dweight, Tensor? bias, Tensor? dbias, str precision) "
    "-> (Tensor, Tensor)",
    reference=reference.dual_linear,
    kernels="linear",
    fake=_dual_fake,
    flops=lambda x, dx, w, dw, b, db, _: (
        cost_dual_convolution(_sizes(x, w[1]), 1, dx=dx is not None, bias=b is not None, dbias=db is not None).flops
    ),
)
_input_gradient = register(
    "linear_input_gradient(Tensor gy, Tensor weight, str precision) -> Tensor",
    reference=reference.linear_input_gradient,
    kernels="linear",
    fake=_input_fake,
    flops=lambda gy, w, _: cost_convolution_input_gradient(_sizes((*gy[:3], w[2]), w[1]), 1).flops,
)
_dual_input_gradient = register(
    "dual_linear_input_gradient(Tensor gy, Tensor dgy, Tensor weight, Tensor dweight, str precision, bool value) "
    "-> (Tensor, Tensor)",
    reference=reference.dual_linear_input_gradient,
    kernels="linear",
    fake=_dual_input_fake,
    flops=lambda gy, dgy, w, dw, _, value: (
        cost_dual_convolution_input_gradient(_sizes((*gy[:3], w[2]), w[1]), 1, value=value).flops
    ),
)
_weight_gradient = register(
    "linear_weight_gradient(Tensor x, Tensor gy, bool bias, str precision) -> (Tensor, Tensor)",
    reference=reference.linear_weight_gradient,
    kernels="linear",
    fake=_weight_fake,
    flops=lambda x, gy, bias, _: cost_convolution_weight_gradient(_sizes(x, gy[3]), 1, bias=bias).flops,
)
_dual_weight_gradient = register(
    "dual_linear_weight_gradient(Tensor x, Tensor? dx, Tensor gy, Tensor dgy, bool bias, str precision, bool value) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.dual_linear_weight_gradient,
    kernels="linear",
    fake=_dual_weight_fake,
    flops=lambda x, dx, gy, dgy, bias, _, value: (
        cost_dual_convolution_weight_gradient(_sizes(x, gy[3]), 1, dx=dx is not None, bias=bias, value=value).flops
    ),
)

_INPUTS, _RESULTS, _WEIGHT = "[S, G, n, F]", "[S, G, n, O]", "[S, O, F]"


def _check(operator: str, weight: Tensor, precision: str) -> None:
    expect_one_of(operator, "a precision", precision, PRECISIONS)
    expect_axes(operator, "weight", weight, _WEIGHT)
    check_channels(operator, weight.shape[2], weight.shape[1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, precision: str = "ieee") -> Tensor:
    """Applies every student's own matrix.

    Args:
        x: ``[S, G, n, F]``; S or G may be 1.
        weight: ``[S, O, F]``.
        bias: ``[S, O]`` or None.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``[S, G, n, O]`` in the dtype of x.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "linear"
    refuse_derivatives(name, x, weight, bias)
    expect_alike(name, x=x, weight=weight, bias=bias)
    _check(name, weight, precision)
    expect_axes(name, "x", x, _INPUTS)
    inputs = spread(name, "x", x, _INPUTS, (weight.shape[0], *x.shape[1:3], weight.shape[2]))
    if bias is not None:
        expect_shape(name, "bias", bias, "[S, O]", tuple(weight.shape[:2]))
    y: Tensor = _linear(inputs, weight, bias, precision)
    return y


def dual_linear(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None = None,
    dbias: Tensor | None = None,
    *,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Value and tangent of `linear`.

    Args:
        x: ``[S, G, n, F]``; S or G may be 1.
        dx: its tangent, or None where it is zero.
        weight: ``[S, O, F]``.
        dweight: its tangent ``[S, G, O, F]`` or ``[S, O, F]``.
        bias: ``[S, O]`` or None.
        dbias: its tangent ``[S, G, O]`` or ``[S, O]``, or None for zero.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``y`` and ``ẏ``, both ``[S, G, n, O]``.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_linear"
    refuse_derivatives(name, x, dx, weight, dweight, bias, dbias)
    expect_alike(name, x=x, dx=dx, weight=weight, dweight=dweight, bias=bias, dbias=dbias)
    _check(name, weight, precision)
    expect_axes(name, "x", x, _INPUTS)
    dw, db = per_group(dweight, 4), per_group(dbias, 3)
    groups = common(name, "groups", 1, x=x, dx=dx, dweight=dw, dbias=db)
    students, outputs, features = weight.shape
    shape = (students, groups, x.shape[2], features)
    inputs, tangent = spread(name, "x", x, _INPUTS, shape), spread(name, "dx", dx, _INPUTS, shape)
    if bias is not None:
        expect_shape(name, "bias", bias, "[S, O]", (students, outputs))
    dw = spread(name, "dweight", dw, "[S, G, O, F]", (students, groups, outputs, features))
    db = spread(name, "dbias", db, "[S, G, O]", (students, groups, outputs))
    y, dy = _dual_linear(inputs, tangent, weight, dw, bias, db, precision)
    return y, dy


def linear_input_gradient(gy: Tensor, weight: Tensor, *, precision: str = "ieee") -> Tensor:
    """Gradient of `linear` in its inputs.

    Args:
        gy: gradient of its result ``[S, G, n, O]``; S or G may be 1.
        weight: ``[S, O, F]``.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``gx [S, G, n, F]``.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "linear_input_gradient"
    refuse_derivatives(name, gy, weight)
    expect_alike(name, gy=gy, weight=weight)
    _check(name, weight, precision)
    expect_axes(name, "gy", gy, _RESULTS)
    gradient = spread(name, "gy", gy, _RESULTS, (weight.shape[0], *gy.shape[1:3], weight.shape[1]))
    gx: Tensor = _input_gradient(gradient, weight, precision)
    return gx


def dual_linear_input_gradient(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, *, precision: str = "ieee", value: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Value and tangent of `linear_input_gradient`.

    Args:
        gy: gradient of the result ``[S, G, n, O]``; S or G may be 1.
        dgy: its tangent.
        weight: ``[S, O, F]``.
        dweight: its tangent ``[S, G, O, F]`` or ``[S, O, F]``.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.
        value: whether ``gx`` is wanted beside ``ġx``.

    Returns:
        ``gx``, or None, and ``ġx``, both ``[S, G, n, F]``.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_linear_input_gradient"
    refuse_derivatives(name, gy, dgy, weight, dweight)
    expect_alike(name, gy=gy, dgy=dgy, weight=weight, dweight=dweight)
    _check(name, weight, precision)
    expect_axes(name, "gy", gy, _RESULTS)
    dw = per_group(dweight, 4)
    groups = common(name, "groups", 1, gy=gy, dgy=dgy, dweight=dw)
    students, outputs, features = weight.shape
    shape = (students, groups, gy.shape[2], outputs)
    gradient, tangent = spread(name, "gy", gy, _RESULTS, shape), spread(name, "dgy", dgy, _RESULTS, shape)
    dw = spread(name, "dweight", dw, "[S, G, O, F]", (students, groups, outputs, features))
    gx, dgx = _dual_input_gradient(gradient, tangent, weight, dw, precision, value)
    return gx if value else None, dgx


def linear_weight_gradient(
    x: Tensor, gy: Tensor, *, bias: bool = False, precision: str = "ieee"
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `linear` in its weights and biases, of every (student, group).

    Args:
        x: ``[S, G, n, F]``; S or G may be 1.
        gy: gradient of the result ``[S, G, n, O]``; S or G may be 1.
        bias: whether ``gb`` is wanted.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``gw [S, G, O, F]`` and ``gb [S, G, O]``, or None; float32, or float64 for float64.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "linear_weight_gradient"
    refuse_derivatives(name, x, gy)
    expect_alike(name, x=x, gy=gy)
    inputs, gradient = _spread_gradient(name, precision, x=x, gy=gy)
    gw, gb = _weight_gradient(inputs, gradient, bias, precision)
    return gw, gb if bias else None


def dual_linear_weight_gradient(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor,
    *,
    bias: bool = False,
    precision: str = "ieee",
    value: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Value and tangent of `linear_weight_gradient`.

    Args:
        x: ``[S, G, n, F]``; S or G may be 1.
        dx: its tangent, or None where it is zero.
        gy: gradient of the result ``[S, G, n, O]``; S or G may be 1.
        dgy: its tangent.
        bias: whether the bias's gradients are wanted.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.
        value: whether ``gw`` and ``gb`` are wanted beside their tangents.

    Returns:
        ``gw`` or None, ``ġw``, ``gb`` or None, ``ġb`` or None, of shapes and dtypes as `linear_weight_gradient`'s.

    Raises:
        ValueError: for shapes, dtypes, devices or a precision that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_linear_weight_gradient"
    refuse_derivatives(name, x, dx, gy, dgy)
    expect_alike(name, x=x, dx=dx, gy=gy, dgy=dgy)
    inputs, tangent, gradient, dgradient = _spread_gradient(name, precision, x=x, dx=dx, gy=gy, dgy=dgy)
    gw, dgw, gb, dgb = _dual_weight_gradient(inputs, tangent, gradient, dgradient, bias, precision, value)
    return gw if value else None, dgw, gb if value and bias else None, dgb if bias else None


def _spread_gradient(operator: str, precision: str, **tensors: Tensor | None) -> list[Tensor | None]:
    """Inputs and results' gradients (their names end with x and y) over all students and groups."""
    expect_one_of(operator, "a precision", precision, PRECISIONS)
    letters = {name: _INPUTS if name.endswith("x") else _RESULTS for name in tensors}
    for name, tensor in tensors.items():
        if tensor is not None:
            expect_axes(operator, name, tensor, letters[name])
    x, gy = tensors["x"], tensors["gy"]
    assert x is not None and gy is not None
    check_channels(operator, x.shape[3], gy.shape[3])
    lead = tuple(common(operator, axis, at, **tensors) for at, axis in enumerate(("students", "groups")))
    ends = {_INPUTS: x.shape[2:], _RESULTS: (x.shape[2], gy.shape[3])}
    return [
        spread(operator, name, tensor, letters[name], (*lead, *ends[letters[name]])) for name, tensor in tensors.items()
    ]
