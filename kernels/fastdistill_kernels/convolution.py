"""Student-batched convolution and its gradient in the images, value alone or with its tangent.

    y  = x∗w + b        ẏ  = ẋ∗w + x∗ẇ + ḃ        gx = gy∗wᵀ        ġx = ġy∗wᵀ + gy∗ẇᵀ

Images ``x [S, G, n, I, H, W]`` (an axis S or G of size 1, or expanded, is shared and never copied on a device), weights
``w [S, O, I, k, k]``, their tangents ``ẇ [S, G, O, I, k, k]`` or ``[S, O, I, k, k]``, results
``y [S, G, n, O, H', W']``. Every product takes ``2·S·G·n·O·H'·W'·I·k²`` operations, taps on padding included; a bias
adds one to every element of y, its gradient one to every element of gy. At least, every operand moves once. Results
lie channels-last in memory where the first argument does: that is the fast layout on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_one_of, expect_shape, refuse_derivatives
from fastdistill_kernels.convolution_cost import (
    cost_convolution,
    cost_convolution_input_gradient,
    cost_dual_convolution,
    cost_dual_convolution_input_gradient,
    sizes_of,
)
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import convolution as reference
from fastdistill_kernels.reference.convolution import empty_images, output_size

PRECISIONS = ("ieee", "tf32")  # of float32 products; those of bfloat16 are exact, their sums float32


def _fake_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, precision: str
) -> Tensor:
    sides = (output_size(side, weight.shape[-1], stride, padding) for side in x.shape[4:])
    return empty_images(x, weight.shape[1], *sides)


def _fake_dual_convolution(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    stride: int,
    padding: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    y, dy = (_fake_convolution(x, weight, bias, stride, padding, precision) for _ in range(2))
    return y, dy


def _fake_input_gradient(gy: Tensor, weight: Tensor, height: int, width: int, *_: Any) -> Tensor:
    return empty_images(gy, weight.shape[2], height, width)


def _fake_dual_input_gradient(
    gy: Tensor,
    dgy: Tensor,
    weight: Tensor,
    dweight: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
    precision: str,
    value: bool,
) -> tuple[Tensor, Tensor]:
    gx, dgx = (_fake_input_gradient(gy, weight, height, width) for _ in range(2))
    return gx if value else gy.new_empty(0), dgx


_convolution = register(
    "convolution(Tensor x, Tensor weight, Tensor? bias, int stride, int padding, str precision) -> Tensor",
    reference=reference.convolution,
    kernels="convolution",
    fake=_fake_convolution,
    flops=lambda x, w, b, stride, padding, _: (
        cost_convolution(sizes_of(x, w, stride, padding), 1, bias=b is not None).flops
    ),
)
_dual_convolution = register(
    "dual_convolution(Tensor x, Tensor? dx, Tensor weight, Tensor dweight, Tensor? bias, Tensor? dbias, int stride, "
    "int padding, str precision) -> (Tensor, Tensor)",
    reference=reference.dual_convolution,
    kernels="convolution",
    fake=_fake_dual_convolution,
    flops=lambda x, dx, w, dw, b, db, stride, padding, _: (
        cost_dual_convolution(
            sizes_of(x, w, stride, padding), 1, dx=dx is not None, bias=b is not None, dbias=db is not None
        ).flops
    ),
)
_input_gradient = register(
    "convolution_input_gradient(Tensor gy, Tensor weight, int height, int width, int stride, int padding, "
    "str precision) -> Tensor",
    reference=reference.convolution_input_gradient,
    kernels="convolution",
    fake=_fake_input_gradient,
    flops=lambda gy, w, height, width, stride, padding, _: (
        cost_convolution_input_gradient(sizes_of((*gy[:3], w[2], height, width), w, stride, padding), 1).flops
    ),
)
_dual_input_gradient = register(
    "dual_convolution_input_gradient(Tensor gy, Tensor dgy, Tensor weight, Tensor dweight, int height, int width, "
    "int stride, int padding, str precision, bool value) -> (Tensor, Tensor)",
    reference=reference.dual_convolution_input_gradient,
    kernels="convolution",
    fake=_fake_dual_input_gradient,
    flops=lambda gy, dgy, w, dw, height, width, stride, padding, _, value: (
        cost_dual_convolution_input_gradient(
            sizes_of((*gy[:3], w[2], height, width), w, stride, padding), 1, value=value
        ).flops
    ),
)


def common(operator: str, letter: str, axis: int, **tensors: Tensor | None) -> int:
    """The size of a leading axis, which every tensor has, or 1 where it is shared.

    Args:
        operator: the caller's name.
        letter: what the axis counts.
        axis: its index.
        tensors: by name; None is passed over.

    Raises:
        ValueError: naming the sizes that differ, or a tensor without such an axis.
    """
    sizes = {}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.ndim <= axis:
            raise ValueError(f"{operator} expected {name} with {letter}, got {list(tensor.shape)}: give it these axes")
        if tensor is not None:
            sizes[name] = tensor.shape[axis]
    apart = [size for size in sizes.values() if size != 1]
    if any(size != apart[0] for size in apart):
        raise ValueError(
            f"{operator} expected one number of {letter}, or 1 where they are shared, got "
            f"{', '.join(f'{size} of {name}' for name, size in sizes.items())}: use tensors of the same {letter}"
        )
    return apart[0] if apart else 1


def expect_axes(operator: str, name: str, tensor: Tensor, letters: str) -> None:
    """Refuses a tensor of another number of axes than letters.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if tensor.ndim != letters.count(",") + 1:
        raise ValueError(
            f"{operator} expected {name} {letters}, got {list(tensor.shape)}: give it these axes, of size 1 if need be"
        )


def spread(operator: str, name: str, tensor: Tensor | None, letters: str, shape: tuple[int, ...]) -> Tensor | None:
    """A tensor expanded over students and groups that share it, once its other axes are as they must be."""
    if tensor is None:
        return None
    expect_axes(operator, name, tensor, letters)
    lead = tuple(1 if size == 1 else whole for size, whole in zip(tensor.shape[:2], shape[:2], strict=True))
    expect_shape(operator, name, tensor, letters, lead + shape[2:])
    return tensor.expand(shape)


def per_group(tensor: Tensor | None, axes: int) -> Tensor | None:
    """A tangent ``[S, ...]`` as ``[S, 1, ...]``, for groups that share it; one of ``axes`` axes has them already."""
    return tensor[:, None] if tensor is not None and tensor.ndim == axes - 1 else tensor


def check_settings(
    operator: str, stride: int, padding: int, precision: str, sides: Sequence[int], kernel: int
) -> list[int]:
    """Refuses settings that no convolution has; the sides of its results."""
    expect_one_of(operator, "a precision", precision, PRECISIONS)
    if kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"{operator} expected a kernel and stride of at least 1 and a padding of at least 0, got {kernel}, "
            f"{stride} and {padding}: correct them"
        )
    results = [output_size(side, kernel, stride, padding) for side in sides]
    if min(results) < 1:
        raise ValueError(
            f"{operator} expected images that a kernel of {kernel} fits in, got {list(sides)} with padding {padding}: "
            "use larger images, more padding or a smaller kernel"
        )
    return results


def check_channels(operator: str, inputs: int, outputs: int) -> None:
    """Refuses a layer without channels.

    Raises:
        ValueError: naming both counts.
    """
    if inputs == 0 or outputs == 0:
        raise ValueError(
            f"{operator} expected at least one input and one output channel, got {inputs} and {outputs}: leave the "
            "layer out"
        )


def _check_weight(operator: str, weight: Tensor) -> tuple[int, int, int, int]:
    expect_axes(operator, "weight", weight, "[S, O, I, k, k]")
    students, features, channels, kernel = weight.shape[:4]
    expect_shape(operator, "weight", weight, "[S, O, I, k, k]", (students, features, channels, kernel, kernel))
    check_channels(operator, channels, features)
    return students, features, channels, kernel


IMAGES = "[S, G, n, I, H, W]"
RESULTS = "[S, G, n, O, H', W']"


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, precision: str = "ieee"
) -> Tensor:
    """Convolves every student's images with its own weights.

    Args:
        x: images ``[S, G, n, I, H, W]``; S or G may be 1.
        weight: ``[S, O, I, k, k]``, of any strides.
        bias: ``[S, O]`` or None.
        stride: of the kernel.
        padding: zeros on each side.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``[S, G, n, O, H', W']`` in the dtype of x.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "convolution"
    refuse_derivatives(name, x, weight, bias)
    expect_alike(name, x=x, weight=weight, bias=bias)
    expect_axes(name, "x", x, IMAGES)
    students, features, channels, kernel = _check_weight(name, weight)
    check_settings(name, stride, padding, precision, x.shape[4:], kernel)
    images = spread(name, "x", x, IMAGES, (students, x.shape[1], x.shape[2], channels, *x.shape[4:]))
    if bias is not None:
        expect_shape(name, "bias", bias, "[S, O]", (students, features))
    y: Tensor = _convolution(images, weight, bias, stride, padding, precision)
    return y


def dual_convolution(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None = None,
    dbias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """Value and tangent of `convolution`, from one pass over both.

    Args:
        x: images ``[S, G, n, I, H, W]``; S or G may be 1.
        dx: their tangent, or None where it is zero: one product less.
        weight: ``[S, O, I, k, k]``.
        dweight: its tangent ``[S, G, O, I, k, k]`` or ``[S, O, I, k, k]``.
        bias: ``[S, O]`` or None.
        dbias: its tangent ``[S, G, O]`` or ``[S, O]``, or None for zero.
        stride: of the kernel.
        padding: zeros on each side.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``y`` and ``ẏ``, both ``[S, G, n, O, H', W']``.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_convolution"
    refuse_derivatives(name, x, dx, weight, dweight, bias, dbias)
    expect_alike(name, x=x, dx=dx, weight=weight, dweight=dweight, bias=bias, dbias=dbias)
    expect_axes(name, "x", x, IMAGES)
    students, features, channels, kernel = _check_weight(name, weight)
    check_settings(name, stride, padding, precision, x.shape[4:], kernel)
    dw, db = per_group(dweight, 6), per_group(dbias, 3)
    groups = common(name, "groups", 1, x=x, dx=dx, dweight=dw, dbias=db)
    shape = (students, groups, x.shape[2], channels, *x.shape[4:])
    images, tangent = spread(name, "x", x, IMAGES, shape), spread(name, "dx", dx, IMAGES, shape)
    dw = spread(name, "dweight", dw, "[S, G, O, I, k, k]", (students, groups, *weight.shape[1:]))
    if bias is not None:
        expect_shape(name, "bias", bias, "[S, O]", (students, features))
    db = spread(name, "dbias", db, "[S, G, O]", (students, groups, features))
    y, dy = _dual_convolution(images, tangent, weight, dw, bias, db, stride, padding, precision)
    return y, dy


def convolution_input_gradient(
    gy: Tensor, weight: Tensor, size: tuple[int, int], *, stride: int = 1, padding: int = 0, precision: str = "ieee"
) -> Tensor:
    """Gradient of `convolution` in its images.

    Args:
        gy: gradient of its result ``[S, G, n, O, H', W']``; S or G may be 1.
        weight: ``[S, O, I, k, k]``.
        size: ``(H, W)`` of the images.
        stride: of the kernel.
        padding: zeros on each side.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``gx [S, G, n, I, H, W]``.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "convolution_input_gradient"
    refuse_derivatives(name, gy, weight)
    expect_alike(name, gy=gy, weight=weight)
    expect_axes(name, "gy", gy, RESULTS)
    students, features, _, kernel = _check_weight(name, weight)
    sides = check_settings(name, stride, padding, precision, size, kernel)
    gradient = spread(name, "gy", gy, RESULTS, (students, gy.shape[1], gy.shape[2], features, *sides))
    gx: Tensor = _input_gradient(gradient, weight, *size, stride, padding, precision)
    return gx


def dual_convolution_input_gradient(
    gy: Tensor,
    dgy: Tensor,
    weight: Tensor,
    dweight: Tensor,
    size: tuple[int, int],
    *,
    stride: int = 1,
    padding: int = 0,
    precision: str = "ieee",
    value: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Value and tangent of `convolution_input_gradient`.

    Args:
        gy: gradient of the result ``[S, G, n, O, H', W']``; S or G may be 1.
        dgy: its tangent.
        weight: ``[S, O, I, k, k]``.
        dweight: its tangent ``[S, G, O, I, k, k]`` or ``[S, O, I, k, k]``.
        size: ``(H, W)`` of the images.
        stride: of the kernel.
        padding: zeros on each side.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.
        value: whether ``gx`` is wanted beside ``ġx``: one product more.

    Returns:
        ``gx``, or None, and ``ġx``, both ``[S, G, n, I, H, W]``.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_convolution_input_gradient"
    refuse_derivatives(name, gy, dgy, weight, dweight)
    expect_alike(name, gy=gy, dgy=dgy, weight=weight, dweight=dweight)
    expect_axes(name, "gy", gy, RESULTS)
    students, features, _, kernel = _check_weight(name, weight)
    sides = check_settings(name, stride, padding, precision, size, kernel)
    dw = per_group(dweight, 6)
    groups = common(name, "groups", 1, gy=gy, dgy=dgy, dweight=dw)
    shape = (students, groups, gy.shape[2], features, *sides)
    gradient, tangent = spread(name, "gy", gy, RESULTS, shape), spread(name, "dgy", dgy, RESULTS, shape)
    dw = spread(name, "dweight", dw, "[S, G, O, I, k, k]", (students, groups, *weight.shape[1:]))
    gx, dgx = _dual_input_gradient(gradient, tangent, weight, dw, *size, stride, padding, precision, value)
    return gx if value else None, dgx
