"""The operators of a student's program as plain torch code, for programs that are compiled for a CPU.

A compiler cannot look into an operator, and fuses what it can look into: norm, activation and pooling become one loop.
Arguments and results are those of the public functions of the same names; nothing is checked here, and tensors with a
derivative are differentiated as torch does it. Layouts of results are whatever suits the next layer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdistill_kernels.norm_act_pool import EPS
from fastdistill_kernels.reference import folded, interleaved
from fastdistill_kernels.reference import linear as vectors
from fastdistill_kernels.reference import softmax_xent as head
from fastdistill_kernels.reference.norm_act_pool import statistics_dtype


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    precision: str = "ieee",
) -> Tensor:
    """``y``."""
    return folded.convolution(x, weight, bias, stride, padding)


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
    """``y`` and its tangent."""
    dy = folded.convolution(x, dweight, dbias, stride, padding)
    if dx is not None:
        dy = dy + folded.convolution(dx, weight, None, stride, padding)
    return folded.convolution(x, weight, bias, stride, padding), dy


def convolution_input_gradient(
    gy: Tensor, weight: Tensor, size: tuple[int, int], *, stride: int = 1, padding: int = 0, precision: str = "ieee"
) -> Tensor:
    """``gx``."""
    return folded.input_gradient(gy, weight, size, stride, padding)


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
    """``gx``, where wanted, and its tangent."""
    settings = (size, stride, padding)
    dgx = folded.input_gradient(dgy, weight, *settings) + folded.input_gradient(gy, dweight, *settings)
    return folded.input_gradient(gy, weight, *settings) if value else None, dgx


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
    """``gw`` and, where there is a bias, ``gb``."""
    wide = statistics_dtype(gy)
    gw = folded.weight_gradient(x, gy, kernel, stride, padding).to(wide)
    return gw, gy.to(wide).sum((2, 4, 5)) if bias else None


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
    """``gw, ġw, gb, ġb``."""
    dgw, dgb = convolution_weight_gradient(x, dgy, kernel, stride=stride, padding=padding, bias=bias)
    if dx is not None:
        dgw = dgw + folded.weight_gradient(dx, gy, kernel, stride, padding).to(dgw.dtype)
    if not value:
        return None, dgw, None, dgb
    gw, gb = convolution_weight_gradient(x, gy, kernel, stride=stride, padding=padding, bias=bias)
    return gw, dgw, gb, dgb


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, precision: str = "ieee") -> Tensor:
    """``y``."""
    return vectors.linear(x, weight, bias, precision)


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
    """``y`` and its tangent."""
    return vectors.dual_linear(x, dx, weight, dweight, bias, dbias, precision)


def linear_input_gradient(gy: Tensor, weight: Tensor, *, precision: str = "ieee") -> Tensor:
    """``gx``."""
    return vectors.linear_input_gradient(gy, weight, precision)


def dual_linear_input_gradient(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, *, precision: str = "ieee", value: bool = True
) -> tuple[Tensor | None, Tensor]:
    """``gx``, where wanted, and its tangent."""
    gx, dgx = vectors.dual_linear_input_gradient(gy, dgy, weight, dweight, precision, value)
    return gx if value else None, dgx


def linear_weight_gradient(
    x: Tensor, gy: Tensor, *, bias: bool = False, precision: str = "ieee"
) -> tuple[Tensor, Tensor | None]:
    """``gw`` and, where there is a bias, ``gb``."""
    gw, gb = vectors.linear_weight_gradient(x, gy, bias, precision)
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
    """``gw, ġw, gb, ġb``."""
    gw, dgw, gb, dgb = vectors.dual_linear_weight_gradient(x, dx, gy, dgy, bias, precision, value)
    return gw if value else None, dgw, gb if value and bias else None, dgb if bias else None


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    groups: int,
    activation: str,
    pooling: str,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, mean and 1/std."""
    norm = interleaved.Norm.of(groups, weight, bias)
    y, *statistics = interleaved.forward(_wide(x), norm, activation, pooling, eps)
    mean, rstd = _apart(statistics)
    return _narrow(y, x), mean, rstd


def dual_norm_act_pool(
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    *,
    groups: int,
    activation: str,
    pooling: str,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``y`` and ``ẏ``, mean and 1/std, and the tangents of these two."""
    norm, along = interleaved.Norm.of(groups, weight, bias), interleaved.Norm.of(groups, dweight, dbias)
    y, dy, *statistics = interleaved.dual_forward(_wide(x), _wide(dx), norm, along, activation, pooling, eps)
    mean, rstd, dmean, drstd = _apart(statistics)
    return _narrow(y, x), _narrow(dy, x), mean, rstd, dmean, drstd


def norm_act_pool_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    groups: int,
    activation: str,
    pooling: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``gx`` and, where there are such, gradients of weight and bias."""
    norm = interleaved.Norm.of(groups, weight, bias)
    gx, *shares = interleaved.backward(_wide(gy), _wide(x), norm, _together(mean, rstd), activation, pooling)
    gw, gb = _summed(weight, shares)
    return _narrow(gx, x), gw, gb


def dual_norm_act_pool_backward(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dmean: Tensor,
    drstd: Tensor,
    *,
    groups: int,
    activation: str,
    pooling: str,
    value: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """``gx`` and ``ġx``, then value and tangent of the gradients of weight and of bias."""
    gx, dgx, *shares = interleaved.dual_backward(
        (_wide(gy), _wide(dgy)),
        (_wide(x), _wide(dx)),
        interleaved.Norm.of(groups, weight, bias),
        interleaved.Norm.of(groups, dweight, dbias),
        _together(mean, rstd, dmean, drstd),
        activation,
        pooling,
    )
    (gw, gb), (dgw, dgb) = _summed(weight if value else None, shares[:2]), _summed(weight, shares[2:])
    return _narrow(gx, x), _narrow(dgx, x), gw, dgw, gb, dgb


def _wide(images: Tensor) -> Tensor:
    """In the layout and the precision that norms are computed in."""
    return interleaved.interleaved(images).to(statistics_dtype(images))


def _narrow(pixels: Tensor, like: Tensor) -> Tensor:
    """The inverse, dense in that layout whatever it was made of."""
    return interleaved.apart(pixels.to(like.dtype).contiguous())


def _apart(statistics: list[Tensor]) -> tuple[Tensor, ...]:
    """``[S, G, n, groups]`` from ``[G, n, S, groups]``."""
    return tuple(statistic.permute(2, 0, 1, 3) for statistic in statistics)


def _together(*statistics: Tensor) -> Any:
    """The inverse."""
    return tuple(statistic.permute(1, 2, 0, 3) for statistic in statistics)


def _summed(weight: Tensor | None, shares: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Two gradients ``[S, G, ...]`` from images' shares of them, where there is an affine."""
    if weight is None:
        return None, None
    gw, gb = (
        (share if share.ndim == 4 else share.permute(0, 1, 4, 5, 2, 3)).sum(1).transpose(0, 1) for share in shares
    )
    return gw, gb


def softmax_xent(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in the logits."""
    return head.softmax_xent(z, labels)


def dual_softmax_xent(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The loss and its tangent, the gradient and its tangent, and for soft labels their product."""
    losses, gradient, gradient_tangent, product = head.dual_softmax_xent(z, dz, labels)
    return losses[0], losses[1], gradient, gradient_tangent, product if labels.ndim == z.ndim else None
