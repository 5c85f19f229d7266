"""Weight gradients of student-batched convolutions, value alone or with their tangent.

    gw = Σ gy⊗x,  gb = Σ gy        ġw = Σ (ġy⊗x + gy⊗ẋ),  ġb = Σ ġy

Letters, shapes and the rules of counting are those of `fastdistill_kernels.convolution`; sums run over images and
positions. Gradients ``[S, G, O, I, k, k]`` and ``[S, G, O]`` are float32 at least. On a device their channels are
neighbours in memory, so that kernels store whole rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.checks import expect_alike, refuse_derivatives
from fastdistill_kernels.convolution import (
    IMAGES,
    RESULTS,
    check_channels,
    check_settings,
    common,
    expect_axes,
    spread,
)
from fastdistill_kernels.convolution_cost import (
    cost_convolution_weight_gradient,
    cost_dual_convolution_weight_gradient,
    sizes_of,
)
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import convolution as reference
from fastdistill_kernels.reference.convolution import gradient_dtype


def _empty_weights(gy: Tensor, channels: int, kernel: int) -> Tensor:
    """A weight gradient as kernels lay it out: channels are neighbours; on a CPU and in float64 it is contiguous."""
    lead, dtype = (*gy.shape[:2], gy.shape[3]), gradient_dtype(gy.dtype)
    if gy.device.type == "cpu" or gy.dtype == torch.float64:
        return gy.new_empty((*lead, channels, kernel, kernel), dtype=dtype)
    return gy.new_empty((*lead, kernel, kernel, channels), dtype=dtype).movedim(-1, -3)


def _fake_weight_gradient(
    x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int, bias: bool, precision: str
) -> tuple[Tensor, Tensor]:
    gw = _empty_weights(gy, x.shape[3], kernel)
    return gw, gw.new_empty((*gy.shape[:2], gy.shape[3]) if bias else 0)


def _fake_dual_weight_gradient(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    precision: str,
    value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dgw, dgb = _fake_weight_gradient(x, gy, kernel, stride, padding, bias, precision)
    gw, gb = _fake_weight_gradient(x, gy, kernel, stride, padding, bias, precision)
    return (gw, dgw, gb, dgb) if value else (dgw.new_empty(0), dgw, dgw.new_empty(0), dgb)


_weight_gradient = register(
    "convolution_weight_gradient(Tensor x, Tensor gy, int kernel, int stride, int padding, bool bias, str precision) "
    "-> (Tensor, Tensor)",
    reference=reference.convolution_weight_gradient,
    kernels="convolution_weight",
    fake=_fake_weight_gradient,
    flops=lambda x, gy, kernel, stride, padding, bias, _: (
        cost_convolution_weight_gradient(
            sizes_of(x, (gy[3], x[3], kernel, kernel), stride, padding), 1, bias=bias
        ).flops
    ),
)
_dual_weight_gradient = register(
    "dual_convolution_weight_gradient(Tensor x, Tensor? dx, Tensor gy, Tensor dgy, int kernel, int stride, "
    "int padding, bool bias, str precision, bool value) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.dual_convolution_weight_gradient,
    kernels="convolution_weight",
    fake=_fake_dual_weight_gradient,
    flops=lambda x, dx, gy, dgy, kernel, stride, padding, bias, _, value: (
        cost_dual_convolution_weight_gradient(
            sizes_of(x, (gy[3], x[3], kernel, kernel), stride, padding), 1, dx=dx is not None, bias=bias, value=value
        ).flops
    ),
)


def convolution_weight_gradient(
    x: Tensor,
    gy: Tensor,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = False,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `convolution` in its weights and biases, of every (student, group).

    Args:
        x: images ``[S, G, n, I, H, W]``; S or G may be 1.
        gy: gradient of the result ``[S, G, n, O, H', W']``; S or G may be 1.
        kernel: ``k``.
        stride: of the kernel.
        padding: zeros on each side.
        bias: whether ``gb`` is wanted.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.

    Returns:
        ``gw [S, G, O, I, k, k]`` and ``gb [S, G, O]``, or None; float32, or float64 for float64.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "convolution_weight_gradient"
    refuse_derivatives(name, x, gy)
    expect_alike(name, x=x, gy=gy)
    images, gradient = _spread(name, kernel, stride, padding, precision, x=x, gy=gy)
    gw, gb = _weight_gradient(images, gradient, kernel, stride, padding, bias, precision)
    return gw, gb if bias else None


def dual_convolution_weight_gradient(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = False,
    precision: str = "ieee",
    value: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Value and tangent of `convolution_weight_gradient`.

    Args:
        x: images ``[S, G, n, I, H, W]``; S or G may be 1.
        dx: their tangent, or None where it is zero: one product less.
        gy: gradient of the result ``[S, G, n, O, H', W']``; S or G may be 1.
        dgy: its tangent.
        kernel: ``k``.
        stride: of the kernel.
        padding: zeros on each side.
        bias: whether the bias's gradients are wanted.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.
        value: whether ``gw`` and ``gb`` are wanted beside their tangents: one product more.

    Returns:
        ``gw`` or None, ``ġw``, ``gb`` or None, ``ġb`` or None, of shapes and dtypes as `convolution_weight_gradient`'s.

    Raises:
        ValueError: for shapes, dtypes, devices or settings that do not fit.
        TypeError: for a tensor whose derivative would be lost.
    """
    name = "dual_convolution_weight_gradient"
    refuse_derivatives(name, x, dx, gy, dgy)
    expect_alike(name, x=x, dx=dx, gy=gy, dgy=dgy)
    images, tangent, gradient, dgradient = _spread(name, kernel, stride, padding, precision, x=x, dx=dx, gy=gy, dgy=dgy)
    gw, dgw, gb, dgb = _dual_weight_gradient(
        images, tangent, gradient, dgradient, kernel, stride, padding, bias, precision, value
    )
    return gw if value else None, dgw, gb if value and bias else None, dgb if bias else None


def _spread(
    operator: str, kernel: int, stride: int, padding: int, precision: str, **tensors: Tensor | None
) -> list[Tensor | None]:
    """Images and results' gradients (their names end with x and y) over all students and groups, once they fit."""
    letters = {name: IMAGES if name.endswith("x") else RESULTS for name in tensors}
    for name, tensor in tensors.items():
        if tensor is not None:
            expect_axes(operator, name, tensor, letters[name])
    x, gy = tensors["x"], tensors["gy"]
    assert x is not None and gy is not None
    sides = check_settings(operator, stride, padding, precision, x.shape[4:], kernel)
    check_channels(operator, x.shape[3], gy.shape[3])
    lead = tuple(common(operator, letter, axis, **tensors) for axis, letter in enumerate(("students", "groups")))
    ends = {IMAGES: tuple(x.shape[2:]), RESULTS: (x.shape[2], gy.shape[3], *sides)}
    return [
        spread(operator, name, tensor, letters[name], (*lead, *ends[letters[name]])) for name, tensor in tensors.items()
    ]
