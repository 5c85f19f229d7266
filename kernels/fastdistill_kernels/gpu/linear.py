"""Launchers of `fastdistill_kernels.linear`: convolutions with a kernel of 1 on images of one pixel."""

from __future__ import annotations

from torch import Tensor

from fastdistill_kernels.gpu import convolution, convolution_weight


def _pixel(tensor: Tensor) -> Tensor:
    """``[...]`` as images or weights of one pixel, ``[..., 1, 1]``."""
    return tensor[..., None, None]


def _flat(tensor: Tensor) -> Tensor:
    """The way back; nothing stays nothing."""
    return tensor if tensor.ndim == 1 else tensor[..., 0, 0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """Launches what the reference of this name computes."""
    return _flat(convolution.convolution(_pixel(x), _pixel(weight), bias, 1, 0, precision))


def dual_linear(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    tangent = None if dx is None else _pixel(dx)
    y, dy = convolution.dual_convolution(
        _pixel(x), tangent, _pixel(weight), _pixel(dweight), bias, dbias, 1, 0, precision
    )
    return _flat(y), _flat(dy)


def linear_input_gradient(gy: Tensor, weight: Tensor, precision: str) -> Tensor:
    """Launches what the reference of this name computes."""
    return _flat(convolution.convolution_input_gradient(_pixel(gy), _pixel(weight), 1, 1, 1, 0, precision))


def dual_linear_input_gradient(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, precision: str, value: bool
) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    gx, dgx = convolution.dual_convolution_input_gradient(
        _pixel(gy), _pixel(dgy), _pixel(weight), _pixel(dweight), 1, 1, 1, 0, precision, value
    )
    return _flat(gx), _flat(dgx)


def linear_weight_gradient(x: Tensor, gy: Tensor, bias: bool, precision: str) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    gw, gb = convolution_weight.convolution_weight_gradient(_pixel(x), _pixel(gy), 1, 1, 0, bias, precision)
    return _flat(gw), gb


def dual_linear_weight_gradient(
    x: Tensor, dx: Tensor | None, gy: Tensor, dgy: Tensor, bias: bool, precision: str, value: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    tangent = None if dx is None else _pixel(dx)
    gw, dgw, gb, dgb = convolution_weight.dual_convolution_weight_gradient(
        _pixel(x), tangent, _pixel(gy), _pixel(dgy), 1, 1, 0, bias, precision, value
    )
    return _flat(gw), _flat(dgw), gb, dgb
