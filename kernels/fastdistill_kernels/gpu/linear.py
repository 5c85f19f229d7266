"""Launchers of `fastdistill_kernels.linear`: convolutions with a kernel of 1 on images of one pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.gpu import convolution, convolution_weight
from fastdistill_kernels.gpu.convolution_parts import PRECISIONS
from fastdistill_kernels.gpu.launching import Capability, Launch


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


_LAYERS = {"real": (256, 784, 128), "few": (10, 120, 84), "head": (10, 2048, 10)}  # images of a class, inputs, outputs
_VARIANTS = (  # layer, product, precisions
    ("real", "forward", ("float32", "bf16")),
    ("real", "input_gradient", ("tf32",)),
    ("real", "weight_gradient", ("tf32",)),
    ("few", "forward", ("bf16",)),
    ("few", "dual_forward", ("float32", "tf32", "bf16")),
    ("few", "dual_input_gradient", ("float32", "bf16")),
    ("few", "dual_weight_gradient", ("bf16",)),
    ("head", "dual_forward", ("bf16",)),
    ("head", "input_gradient", ("tf32",)),
    ("head", "dual_weight_gradient", ("float32",)),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches of layers that students have, sixteen students, ten classes of 256 real or 10 synthetic images."""
    found = {}
    for layer, product, precisions in _VARIANTS:
        for precision in precisions:
            found[f"linear/{layer}/{product}/{precision}"] = _example(layer, product, precision, capability)
    return found


def _example(layer: str, product: str, precision: str, of: Capability) -> list[Launch]:
    (count, inputs, outputs), (dtype, products) = _LAYERS[layer], PRECISIONS[precision]

    def pixel(*shape: int) -> Tensor:
        return _pixel(torch.empty(16, *shape, dtype=dtype, device="meta"))

    x, gy = pixel(10, count, inputs), pixel(10, count, outputs)
    dual = product.startswith("dual")
    common: dict[str, Any] = {"value": True, "of": of}
    if product.endswith("weight_gradient"):
        dx, dgy = (x, gy) if dual else (None, None)
        return convolution_weight.prepare_weight_gradient(x, dx, gy, dgy, 1, 1, 0, True, products, **common)[-1]
    w, dw, transposed = pixel(outputs, inputs), pixel(10, outputs, inputs), product.endswith("input_gradient")
    if transposed:
        x, w, dw = gy, w.transpose(1, 2), dw.transpose(2, 3)
    dx, tangent = (x, dw) if dual else (None, None)
    return convolution.prepare_gather(
        x, dx, w, tangent, None, None, (1, 1), 1, 0, products, transposed=transposed, **common
    )[-1]
