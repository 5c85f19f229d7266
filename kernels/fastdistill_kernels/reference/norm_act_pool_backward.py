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
    spread,
    statistics_dtype,
    to_channels,
    to_groups,
)

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

    def add(self, at: tuple[slice, slice, slice], weight: Tensor, bias: Tensor) -> None:
        """Takes a piece's share, summed over its images."""
        if self.weight.numel():
            self.weight[at[:2]] += weight.sum(2)
            self.bias[at[:2]] += bias.sum(2)


def _sums(x: Tensor, per_pixel: bool) -> Tensor:
    """Sums over pixels, unless every pixel has an affine of its own."""
    return x if per_pixel else x.sum(_PIXELS)


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
    dtype, channels, pixels = statistics_dtype(x), x.shape[3], x.shape[4] * x.shape[5]
    gx, affine = empty_in_layout(x, *x.shape[4:]), Affine(weight, bias)
    gradients, per_pixel = _Gradients.zero(x, weight), weight is not None and weight.ndim == 4
    for at in pieces(x):
        xhat = x[at].to(dtype)
        if groups:
            r = to_channels(rstd[at], channels)
            xhat = (xhat - to_channels(mean[at], channels)).mul_(r)
        w, b = affine.of(at, dtype)
        z = scaled(xhat, w, b)
        gz = sloped(activation, z, spread(gy[at].to(dtype), None, z, activation, pooling)[0])
        if not groups:
            gx[at] = gz
            continue
        bias_sum, weight_sum = _sums(gz, per_pixel), _sums(gz * xhat, per_pixel)
        gradients.add(at, weight_sum, bias_sum)
        first, second = _folded(w, bias_sum, weight_sum, groups, channels, pixels)
        rest = torch.addcmul(-r * first, xhat, -r * second)
        gx[at] = rest.addcmul_(gz, r if w is None else r * w)
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
    dtype, channels, pixels = statistics_dtype(x), x.shape[3], x.shape[4] * x.shape[5]
    gx, dgx = (empty_in_layout(x, *x.shape[4:]) for _ in range(2))
    affine, tangent = Affine(weight, bias), Affine.tangent(dweight, dbias, weight)
    gradients, tangents = _Gradients.zero(x, weight, value), _Gradients.zero(x, weight)
    per_pixel = weight is not None and weight.ndim == 4
    for at in pieces(x):
        xhat, dxhat = x[at].to(dtype), dx[at].to(dtype)
        if groups:
            r, dr = to_channels(rstd[at], channels), to_channels(drstd[at] / rstd[at], channels)
            xhat = (xhat - to_channels(mean[at], channels)).mul_(r)
            dxhat = normalised_tangent(dxhat - to_channels(dmean[at], channels), xhat, r, dr)
        (w, b), (dw, db) = affine.of(at, dtype), tangent.of(at, dtype)
        z = scaled(xhat, w, b)
        gu, dgu = spread(gy[at].to(dtype), dgy[at].to(dtype), z, activation, pooling)
        assert dgu is not None
        gz, dgz = sloped(activation, z, gu), sloped(activation, z, dgu)
        if activation in CURVED:
            dgz = dgz.addcmul(curvature(activation, z).mul_(affine_tangent(xhat, dxhat, w, dw, db)), gu)
        if not groups:
            gx[at], dgx[at] = gz, dgz
            continue
        bias_sum, weight_sum = _sums(gz, per_pixel), _sums(gz * xhat, per_pixel)
        dbias_sum = _sums(dgz, per_pixel)
        dweight_sum = _sums((dgz * xhat).addcmul_(gz, dxhat), per_pixel)
        gradients.add(at, weight_sum, bias_sum)
        tangents.add(at, dweight_sum, dbias_sum)
        first, second = _folded(w, bias_sum, weight_sum, groups, channels, pixels)
        dfirst, dsecond = _folded(w, dbias_sum, dweight_sum, groups, channels, pixels)
        if dw is not None:
            by_dweight = _folded(dw, bias_sum, weight_sum, groups, channels, pixels)
            dfirst, dsecond = dfirst + by_dweight[0], dsecond + by_dweight[1]
        rest = torch.addcmul(-r * first, xhat, -r * second).addcmul_(gz, r if w is None else r * w)
        gx[at] = rest
        rest = torch.addcmul(-r * dfirst, rest, dr).addcmul_(xhat, -r * dsecond).addcmul_(dxhat, -r * second)
        rest.addcmul_(dgz, r if w is None else r * w)
        dgx[at] = rest if dw is None else rest.addcmul_(gz, r * dw)
    return gx, dgx, gradients.weight, tangents.weight, gradients.bias, tangents.bias
