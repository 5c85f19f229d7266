"""Norm, activation and pooling as a compiled program for a CPU takes them: each sum over pixels is one loop.

Images are ``[G, n, H, W, S, C]``, students' channels side by side and dense in that order, so that loops run over
channels innermost, and statistics, weights and coefficients lie as they do. Formulas are derived in
``kernels/README.md``; values are those of `reference.norm_act_pool` and `reference.norm_act_pool_backward`. What these
compute once and store, such as x̂, is written out here wherever it is read: a loop's arithmetic costs less than a pass
over memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastdistill_kernels.reference.activation import CURVED, curvature, sloped, value
from fastdistill_kernels.reference.stored import stored

_PIXELS = (2, 3)
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a window, by row and column
Maybe = Tensor | None
Corner = Callable[[Tensor], Tensor]  # takes the pixels in a corner of all windows, or all pixels
At = Callable[[Corner], Tensor]  # a value that is written out at those pixels


def interleaved(images: Tensor) -> Tensor:
    """``[S, G, n, C, H, W]`` in this file's order of axes."""
    return images.permute(1, 2, 4, 5, 0, 3)


def apart(pixels: Tensor) -> Tensor:
    """The inverse of `interleaved`."""
    return pixels.permute(4, 0, 1, 5, 2, 3)


def _coefficient(tensor: Maybe) -> Maybe:
    """Weights ``[S, C]`` or ``[S, C, H, W]``, or those of groups ``[S, G, ...]``, beside images."""
    if tensor is None:
        return None
    lead = tensor if tensor.ndim in (3, 5) else tensor[:, None]
    return interleaved((lead if lead.ndim == 5 else lead[..., None, None])[:, :, None])


@dataclass(frozen=True)
class Norm:
    """A norm of images, or none, with what it is scaled and shifted by.

    Attributes:
        groups: norm groups of an image; 0 for no norm.
        weight: ``[1, 1, 1 or H, 1 or W, S, C]``, or with G where they differ among groups.
        bias: alike.
    """

    groups: int
    weight: Maybe
    bias: Maybe

    @classmethod
    def of(cls, groups: int, weight: Maybe, bias: Maybe) -> Norm:
        """Of weights as operators take them."""
        return cls(groups, _coefficient(weight), _coefficient(bias))

    def statistics(self, p: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and 1/std ``[G, n, S, groups]``."""
        mean = self.means(p.sum(_PIXELS), p)
        spread = self.means((p - self.of_channels(mean, p)).square().sum(_PIXELS), p)
        return mean, stored((spread + eps).rsqrt())

    def means(self, sums: Tensor, p: Tensor) -> Tensor:
        """Means over norm groups ``[G, n, S, groups]`` from sums over each channel's pixels ``[G, n, S, C]``."""
        within = p.shape[5] // self.groups
        of_groups = sums.unflatten(-1, (self.groups, within)).sum(-1) if within > 1 else sums
        return of_groups * (1 / (within * p.shape[2] * p.shape[3]))

    def of_channels(self, statistic: Tensor, p: Tensor) -> Tensor:
        """A statistic of norm groups for every channel ``[G, n, 1, 1, S, C]``."""
        within = p.shape[5] // self.groups
        wide = statistic[..., None].expand(*statistic.shape, within).flatten(-2) if within > 1 else statistic
        return wide[:, :, None, None]

    def scaled(self, xhat: Tensor, corner: Corner) -> Tensor:
        """``w·x̂ + b`` of the pixels in a corner."""
        return xhat if self.weight is None or self.bias is None else xhat * corner(self.weight) + corner(self.bias)


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _corner(row: int, column: int) -> Corner:
    """Pixels in a corner of all whole windows, of what has pixels."""

    def cut(tensor: Tensor) -> Tensor:
        if tensor.shape[2] == tensor.shape[3] == 1:
            return tensor
        height, width = tensor.shape[2] // 2 * 2, tensor.shape[3] // 2 * 2
        return tensor[:, :, row:height:2, column:width:2]

    return cut


def _pooled(at: Callable[[Corner], tuple[Tensor, ...]], pooling: str) -> tuple[Tensor, ...]:
    """Pools a value, and a tangent of it with the same choices, that are given pixel by pixel."""
    if pooling == "none":
        return at(_whole)
    found = [at(_corner(*corner)) for corner in _CORNERS]
    if pooling == "avg":
        return tuple((one[0] + one[1] + one[2] + one[3]) * 0.25 for one in zip(*found, strict=True))
    return _strongest(found)[0]


def _strongest(found: Iterable[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Of the corners' values the largest, with what comes with it, and the number of its corner, from 1.

    Numbers have the values' dtype: a loop over two kinds of numbers is not vectorised.
    """
    best, *others = found
    place = torch.ones_like(best[0])
    for number, other in enumerate(others, start=2):
        taken = (other[0] > best[0]) | (other[0] != other[0])
        best = tuple(torch.where(taken, new, old) for new, old in zip(other, best, strict=True))
        place = torch.where(taken, float(number), place)
    return best, place


def _widened(g: Tensor, like: Tensor) -> Tensor:
    """Every element of ``g`` at the four pixels of its window, zero at those in none."""
    groups, count, height, width, *channels = g.shape
    windows = g[:, :, :, None, :, None].expand(groups, count, height, 2, width, 2, *channels)
    whole = windows.reshape(groups, count, 2 * height, 2 * width, *channels)
    left = (0, 0, 0, 0, 0, like.shape[3] - 2 * width, 0, like.shape[2] - 2 * height)
    return functional.pad(whole, left) if any(left) else whole


def _spread(cotangents: Iterable[Tensor], at: At, like: Tensor, pooling: str) -> list[Tensor]:
    """What pooling's backward pass makes of cotangents; ``at`` gives what was pooled, pixel by pixel."""
    if pooling == "none":
        return list(cotangents)
    if pooling == "avg":
        return [_widened(g * 0.25, like) for g in cotangents]
    _, place = _strongest([(at(_corner(*corner)),) for corner in _CORNERS])
    wide = _widened(place, like)  # 0 where there is no window
    rows, columns = (torch.arange(size, device=like.device) % 2 for size in like.shape[2:4])
    here = stored((rows[:, None] * 2 + columns + 1).to(like.dtype))[:, :, None, None]
    return [torch.where(wide == here, _widened(g, like), 0) for g in cotangents]


def forward(p: Tensor, norm: Norm, activation: str, pooling: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, mean and 1/std."""
    xhat, mean, rstd = _normalised(p, norm, eps)

    def at(corner: Corner) -> tuple[Tensor]:
        return (value(activation, norm.scaled(xhat(corner), corner)),)

    (y,) = _pooled(at, pooling)
    return y, mean, rstd


def _normalised(p: Tensor, norm: Norm, eps: float) -> tuple[At, Tensor, Tensor]:
    if not norm.groups:
        nothing = p.new_empty(*p.shape[:2], p.shape[4], 0)
        return lambda corner: corner(p), nothing, nothing
    mean, rstd = norm.statistics(p, eps)
    return _xhat(p, norm, mean, rstd), mean, rstd


def _xhat(p: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> At:
    if not norm.groups:
        return lambda corner: corner(p)
    mean, rstd = norm.of_channels(mean, p), norm.of_channels(rstd, p)
    return lambda corner: (corner(p) - mean) * rstd


def dual_forward(
    p: Tensor, dp: Tensor, norm: Norm, along: Norm, activation: str, pooling: str, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``y`` and its tangent, mean, 1/std and the tangents of both."""
    xhat, mean, rstd = _normalised(p, norm, eps)
    dmean = drstd = mean
    if norm.groups:
        dmean = norm.means(dp.sum(_PIXELS), p)
        cross = norm.means((xhat(_whole) * (dp - norm.of_channels(dmean, p))).sum(_PIXELS), p)
        drstd = stored(-rstd.square() * cross)
    dxhat = _dxhat(dp, xhat, norm, rstd, dmean, drstd)

    def at(corner: Corner) -> tuple[Tensor, Tensor]:
        z, dz = _z(xhat, dxhat, norm, along, corner)
        return value(activation, z), sloped(activation, z, dz)

    y, dy = _pooled(at, pooling)
    return y, dy, mean, rstd, dmean, drstd


def _dxhat(
    dp: Tensor,
    xhat: At,
    norm: Norm,
    rstd: Tensor,
    dmean: Tensor,
    drstd: Tensor,
) -> At:
    if not norm.groups:
        return lambda corner: corner(dp)
    dr = norm.of_channels(stored(drstd / rstd), dp)
    r, dmean = norm.of_channels(rstd, dp), norm.of_channels(dmean, dp)
    return lambda corner: (corner(dp) - dmean) * r + xhat(corner) * dr


def _z(
    xhat: At,
    dxhat: At,
    norm: Norm,
    along: Norm,
    corner: Corner,
) -> tuple[Tensor, Tensor]:
    """``z`` and its tangent."""
    one, dz = xhat(corner), dxhat(corner)
    if norm.weight is not None and along.weight is not None and along.bias is not None:
        dz = dz * corner(norm.weight) + one * corner(along.weight) + corner(along.bias)
    return norm.scaled(one, corner), dz


def backward(
    gy: Tensor, p: Tensor, norm: Norm, statistics: tuple[Tensor, Tensor], activation: str, pooling: str
) -> tuple[Tensor, ...]:
    """``gx``, and with a norm every image's share of the weight's and the bias's gradients ``[G, n, S, C, ...]``."""
    xhat = _xhat(p, norm, *statistics)
    (gu,) = _spread([gy], lambda corner: value(activation, norm.scaled(xhat(corner), corner)), p, pooling)
    gz = sloped(activation, norm.scaled(xhat(_whole), _whole), gu)
    if not norm.groups:
        return (gz,)
    bias_sum, weight_sum = (_summed(one, norm) for one in (gz, gz * xhat(_whole)))
    first, second = (_folded(norm, norm.weight, one, p) for one in (bias_sum, weight_sum))
    h = gz if norm.weight is None else gz * norm.weight
    return norm.of_channels(statistics[1], p) * (h - first - xhat(_whole) * second), weight_sum, bias_sum


def _summed(one: Tensor, norm: Norm) -> Tensor:
    """Sums over pixels ``[G, n, S, C]``, unless every pixel has a weight of its own."""
    return one if norm.weight is not None and norm.weight.shape[2:4] != (1, 1) else one.sum(_PIXELS)


def _folded(norm: Norm, weight: Maybe, total: Tensor, p: Tensor) -> Tensor:
    """Means over norm groups of ``w·total``, for every channel."""
    if total.ndim == 6:
        total = (total if weight is None else weight * total).sum(_PIXELS)
    elif weight is not None:
        total = weight[:, :, 0, 0] * total
    return norm.of_channels(norm.means(total, p), p)


def dual_backward(
    cotangents: tuple[Tensor, Tensor],
    images: tuple[Tensor, Tensor],
    norm: Norm,
    along: Norm,
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    activation: str,
    pooling: str,
) -> tuple[Tensor, ...]:
    """``gx`` and its tangent, and with a norm shares of the gradients of weight and bias and of their tangents."""
    (p, dp), (mean, rstd, dmean, drstd) = images, statistics
    xhat = _xhat(p, norm, mean, rstd)
    dxhat = _dxhat(dp, xhat, norm, rstd, dmean, drstd)
    z, dz = _z(xhat, dxhat, norm, along, _whole)
    gu, dgu = _spread(cotangents, lambda corner: value(activation, norm.scaled(xhat(corner), corner)), p, pooling)
    gz, dgz = sloped(activation, z, gu), sloped(activation, z, dgu)
    if activation in CURVED:
        dgz = dgz + curvature(activation, z) * dz * gu
    if not norm.groups:
        return gz, dgz
    one, done = xhat(_whole), dxhat(_whole)
    sums = [_summed(term, norm) for term in (gz, gz * one, dgz, dgz * one + gz * done)]
    first, second, dfirst, dsecond = (_folded(norm, norm.weight, total, p) for total in sums)
    h, dh = (term if norm.weight is None else term * norm.weight for term in (gz, dgz))
    if along.weight is not None:
        dfirst = dfirst + _folded(norm, along.weight, sums[0], p)
        dsecond = dsecond + _folded(norm, along.weight, sums[1], p)
        dh = dh + gz * along.weight
    r, dr = norm.of_channels(rstd, p), norm.of_channels(stored(drstd / rstd), p)
    gx = r * (h - first - one * second)
    return gx, gx * dr + r * (dh - dfirst - done * second - one * dsecond), sums[1], sums[0], sums[3], sums[2]
