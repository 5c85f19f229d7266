"""Truth of the backward passes of `fastdistill_kernels.norm_act_pool`; formulas in ``kernels/README.md``.

Both recompute what lies between ``x`` and ``y`` from ``x`` and the statistics, piece by piece in cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill_kernels.reference.activation import CURVED, curvature, sloped
from fastdistill_kernels.reference.norm_act_pool import (
    Affine,
    affine_tangent,
    empty_in_layout,
    normalised_tangent,
    pieces,
    scaled,
    statistics_dtype,
    to_channels,
    to_groups,
)
from fastdistill_kernels.reference.pooling import spread

_PIXELS = (-2, -1)


@dataclass
class _Gradients:
    """Affine gradients ``[S, G, C]`` or ``[S, G, C, H, W]`` under summation over images; of size 0 without affine.

    Attributes:
        weight: of the weight.
        bias: of the bias.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def zero(cls, x: Tensor, weight: Tensor | None, wanted: bool = True) -> _Gradients:
        dtype = statistics_dtype(x)
        if weight is None or not wanted:
            return cls(*(torch.empty(0, dtype=dtype, device=x.device) for _ in range(2)))
        shape = (x.shape[0], x.shape[1], *weight.shape[1:])
        return cls(*(torch.zeros(shape, dtype=dtype, device=x.device) for _ in range(2)))

    def add(self, at: tuple[slice, slice, slice], *shares: Tensor) -> None:
        """Takes the shares of a piece's images, of weight and bias, where there are such."""
        if self.weight.numel():
            for total, share in zip((self.weight, self.bias), shares, strict=True):
                total[at[:2]] += share.sum(2)


def _sums(x: Tensor, w: Tensor | None) -> Tensor:
    """Sums over pixels, unless every pixel has a weight of its own."""
    return x.sum(_PIXELS) if w is None or w.shape[-1] == w.shape[-2] == 1 else x


def _backward(
    gy: Tensor,
    x: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    groups: int,
    activation: str,
    pooling: str,
) -> tuple[Tensor, ...]:
    """``gx``, and with a norm every image's share of the weight's and the bias's gradients, of a piece."""
    xhat, (w, b) = x, affine
    channels, pixels = x.shape[3], x.shape[4] * x.shape[5]
    if groups:
        mean, r = (to_channels(statistic, channels) for statistic in statistics)
        xhat = (x - mean).mul_(r)
    z = scaled(xhat, w, b)
    gz = sloped(activation, z, spread(gy, None, z, activation, pooling)[0])
    if not groups:
        return (gz,)
    bias_sum, weight_sum = _sums(gz, w), _sums(gz * xhat, w)
    first, second = _folded(w, bias_sum, weight_sum, groups, channels, pixels)
    rest = torch.addcmul(-r * first, xhat, -r * second)
    return rest.addcmul_(gz, r if w is None else r * w), weight_sum, bias_sum


def norm_act_pool_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    activation: str,
    pooling: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of ``x``, weight and bias from that of ``y``.

    Returns:
        ``gx``, and the weight's and the bias's ``[S, G, ...]``, summed over images.
    """
    dtype = statistics_dtype(x)
    gx, affine, gradients = empty_in_layout(x, *x.shape[4:]), Affine(weight, bias), _Gradients.zero(x, weight)
    for at in pieces(x):
        given = gy[at].to(dtype), x[at].to(dtype), affine.of(at, dtype), (mean[at], rstd[at])
        gx[at], *shares = _backward(*given, groups, activation, pooling)
        gradients.add(at, *shares)
    return gx, gradients.weight, gradients.bias


def _folded(
    w: Tensor | None, bias_sum: Tensor, weight_sum: Tensor, groups: int, channels: int, pixels: int
) -> tuple[Tensor, Tensor]:
    """Means over norm groups of ``h = w·gz`` and ``h·x̂``, by channel."""
    means = []
    for total in (bias_sum, weight_sum):
        means.append(to_channels(to_groups(_weighted(w, total), groups, pixels), channels))
    return means[0], means[1]


def _weighted(w: Tensor | None, total: Tensor) -> Tensor:
    """``w`` times sums over pixels ``[s, g, n, C]``, or the sums over pixels of w times ``total`` with its pixels."""
    if total.ndim == 6:
        return (total if w is None else w * total).sum(_PIXELS)
    return total if w is None else w[..., 0, 0] * total


def _dual_backward(
    cotangents: tuple[Tensor, Tensor],
    images: tuple[Tensor, Tensor],
    affine: tuple[Tensor | None, Tensor | None],
    tangent: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    groups: int,
    activation: str,
    pooling: str,
) -> tuple[Tensor, ...]:
    """``gx, dgx``, and with a norm shares of the gradients of weight and bias and of their tangents, of a piece."""
    (x, dx), (w, b), (dw, db) = images, affine, tangent
    xhat, dxhat = x, dx
    channels, pixels = x.shape[3], x.shape[4] * x.shape[5]
    if groups:
        mean, rstd, dmean, drstd = statistics
        r, dr = to_channels(rstd, channels), to_channels(drstd / rstd, channels)
        xhat = (x - to_channels(mean, channels)).mul_(r)
        dxhat = normalised_tangent(dx - to_channels(dmean, channels), xhat, r, dr)
    z = scaled(xhat, w, b)
    gu, dgu = spread(*cotangents, z, activation, pooling)
    assert dgu is not None
    gz, dgz = sloped(activation, z, gu), sloped(activation, z, dgu)
    if activation in CURVED:
        dgz = dgz.addcmul(curvature(activation, z).mul_(affine_tangent(xhat, dxhat, w, dw, db)), gu)
    if not groups:
        return gz, dgz
    bias_sum, weight_sum = _sums(gz, w), _sums(gz * xhat, w)
    dbias_sum, dweight_sum = _sums(dgz, w), _sums((dgz * xhat).addcmul_(gz, dxhat), w)
    first, second = _folded(w, bias_sum, weight_sum, groups, channels, pixels)
    dfirst, dsecond = _folded(w, dbias_sum, dweight_sum, groups, channels, pixels)
    if dw is not None:
        by_dweight = _folded(dw, bias_sum, weight_sum, groups, channels, pixels)
        dfirst, dsecond = dfirst + by_dweight[0], dsecond + by_dweight[1]
    gx = torch.addcmul(-r * first, xhat, -r * second).addcmul_(gz, r if w is None else r * w)
    dgx = torch.addcmul(-r * dfirst, gx, dr).addcmul_(xhat, -r * dsecond).addcmul_(dxhat, -r * second)
    dgx.addcmul_(dgz, r if w is None else r * w)
    return gx, dgx if dw is None else dgx.addcmul_(gz, r * dw), weight_sum, bias_sum, dweight_sum, dbias_sum


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
    groups: int,
    activation: str,
    pooling: str,
    value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``norm_act_pool_backward`` and its tangent along ``(dgy, dx, dweight, dbias)``.

    Returns:
        ``gx``, ``dgx``, then value and tangent of the weight's and of the bias's gradient, the values of size 0
        without ``value``.
    """
    dtype = statistics_dtype(x)
    gx, dgx = (empty_in_layout(x, *x.shape[4:]) for _ in range(2))
    affine, tangent = Affine(weight, bias), Affine.tangent(dweight, dbias, weight)
    gradients, tangents = _Gradients.zero(x, weight, value), _Gradients.zero(x, weight)
    for at in pieces(x):
        gx[at], dgx[at], *shares = _dual_backward(
            (gy[at].to(dtype), dgy[at].to(dtype)),
            (x[at].to(dtype), dx[at].to(dtype)),
            affine.of(at, dtype),
            tangent.of(at, dtype),
            (mean[at], rstd[at], dmean[at], drstd[at]),
            groups,
            activation,
            pooling,
        )
        gradients.add(at, *shares[:2])
        tangents.add(at, *shares[2:])
    return gx, dgx, gradients.weight, tangents.weight, gradients.bias, tangents.bias
