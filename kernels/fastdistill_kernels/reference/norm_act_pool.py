"""Truth of `fastdistill_kernels.norm_act_pool`; the formulas are derived in ``kernels/README.md``.

Images are worked on in pieces that stay in cache from the first pass over them to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill_kernels.reference.activation import sloped, value
from fastdistill_kernels.reference.pooling import channels_last, pool, pooled_size

PIECE = 1 << 18  # elements of x at once, 1 MB in float32: below it dispatches cost more, above it cache misses do
_PIXELS = (-2, -1)


def empty_in_layout(x: Tensor, height: int, width: int) -> Tensor:
    """Uninitialised ``[S, G, n, C, height, width]`` in x's dtype and order of channels and pixels, otherwise dense."""
    lead, channels = x.shape[:3], x.shape[3]
    if channels_last(x):
        made: Tensor = torch.empty(*lead, height, width, channels, dtype=x.dtype, device=x.device)
        return made.permute(0, 1, 2, 5, 3, 4)
    return torch.empty(*lead, channels, height, width, dtype=x.dtype, device=x.device)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """That of statistics, arithmetic and affine gradients: float32, or x's where that is float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pieces(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts students, groups and images so that a piece has about ``PIECE`` elements or one image."""
    students, groups, images = x.shape[:3]
    fitting = max(PIECE // max(x.shape[3:].numel(), 1), 1)
    by_image = max(min(images, fitting), 1)
    by_group = max(min(groups, fitting // max(images, 1)), 1)
    by_student = max(fitting // max(groups * images, 1), 1)
    for student in range(0, students, by_student):
        for group in range(0, groups, by_group):
            for image in range(0, images, by_image):
                yield (
                    slice(student, student + by_student),
                    slice(group, group + by_group),
                    slice(image, image + by_image),
                )


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a norm, or their tangents.

    Attributes:
        weight: ``[S, C]``, ``[S, C, H, W]``, with G after S where they differ among groups; None for none.
        bias: alike.
        by_group: whether there is a G.
    """

    weight: Tensor | None
    bias: Tensor | None
    by_group: bool = False

    @classmethod
    def tangent(cls, weight: Tensor | None, bias: Tensor | None, value: Tensor | None) -> Affine:
        """Tangents of a value that has no G."""
        return cls(weight, bias, weight is not None and value is not None and weight.ndim > value.ndim)

    def of(self, at: tuple[slice, slice, slice], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """A piece's share, broadcasting against ``[s, g, n, C, H, W]``."""
        return self._one(self.weight, at, dtype), self._one(self.bias, at, dtype)

    def _one(self, tensor: Tensor | None, at: tuple[slice, slice, slice], dtype: torch.dtype) -> Tensor | None:
        if tensor is None:
            return None
        of_groups: Tensor = tensor[at[0], at[1]] if self.by_group else tensor[at[0], None]
        cut = of_groups[:, :, None].to(dtype)
        return cut[..., None, None] if cut.ndim == 4 else cut


def to_groups(sums: Tensor, groups: int, pixels: int) -> Tensor:
    """Means over norm groups ``[..., groups]`` from sums over each channel's pixels ``[..., C]``."""
    within = sums.shape[-1] // groups
    of_groups: Tensor = sums.unflatten(-1, (groups, within)).sum(-1)
    return of_groups / (within * pixels)


def to_channels(statistic: Tensor, channels: int) -> Tensor:
    """A statistic of norm groups ``[..., groups]`` for every channel, as ``[..., C, 1, 1]``."""
    within = channels // statistic.shape[-1]
    return (statistic.repeat_interleave(within, -1) if within > 1 else statistic)[..., None, None]


def scaled(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``z``."""
    return xhat if weight is None or bias is None else torch.addcmul(bias, xhat, weight)


def affine_tangent(
    xhat: Tensor, dxhat: Tensor, weight: Tensor | None, dweight: Tensor | None, dbias: Tensor | None
) -> Tensor:
    """``ż``."""
    if weight is None or dweight is None or dbias is None:
        return dxhat
    return torch.addcmul(dbias, xhat, dweight).addcmul_(dxhat, weight)


def normalised_tangent(centred: Tensor, xhat: Tensor, r: Tensor, dr: Tensor) -> Tensor:
    """Tangent of x̂ from ``ẋ − mean(ẋ)``, whose memory it takes; ``dr`` is the tangent of ``log r``."""
    return centred.mul_(r).addcmul_(xhat, dr)


def _normalised(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂, and mean and 1/std ``[s, g, n, groups]``."""
    lead, (channels, height, width) = x.shape[:3], x.shape[3:]
    # torch's own is not vectorised on that layout when norm groups are channels
    if channels_last(x):
        mean = to_groups(x.sum(_PIXELS), groups, height * width)
        xhat = x - to_channels(mean, channels)
        rstd = (to_groups(xhat.square().sum(_PIXELS), groups, height * width) + eps).rsqrt()
        return xhat.mul_(to_channels(rstd, channels)), mean, rstd
    flat = x.flatten(0, 2).contiguous()
    xhat, mean, rstd = torch.native_group_norm(flat, None, None, len(flat), channels, height * width, groups, eps)
    return xhat.unflatten(0, lead), mean.unflatten(0, lead), rstd.unflatten(0, lead)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, activation: str, pooling: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, mean and 1/std of a piece; weight and bias as `Affine.of` gives them."""
    nothing = x.new_empty(*x.shape[:3], 0)
    xhat, mean, rstd = _normalised(x, groups, eps) if groups else (x, nothing, nothing)
    return pool(value(activation, scaled(xhat, weight, bias)), None, pooling)[0], mean, rstd


def norm_act_pool(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, activation: str, pooling: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``pool(a(norm(x)))``.

    Returns:
        ``y`` and the statistics mean and 1/std ``[S, G, n, groups]``.
    """
    dtype = statistics_dtype(x)
    y = empty_in_layout(x, *pooled_size(x, pooling))
    mean, rstd = (torch.empty(*x.shape[:3], groups, dtype=dtype, device=x.device) for _ in range(2))
    affine = Affine(weight, bias)
    for at in pieces(x):
        found = _forward(x[at].to(dtype), *affine.of(at, dtype), groups, activation, pooling, eps)
        y[at], mean[at], rstd[at] = found
    return y, mean, rstd


def _dual_forward(
    x: Tensor,
    dx: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    tangent: tuple[Tensor | None, Tensor | None],
    groups: int,
    activation: str,
    pooling: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``y`` and its tangent, mean, 1/std and the tangents of both, of a piece."""
    xhat, dxhat = x, dx
    mean = rstd = dmean = drstd = x.new_empty(*x.shape[:3], 0)
    if groups:
        channels, pixels = x.shape[3], x.shape[4] * x.shape[5]
        xhat, mean, rstd = _normalised(x, groups, eps)
        dmean = to_groups(dx.sum(_PIXELS), groups, pixels)
        centred = dx - to_channels(dmean, channels)
        cross = to_groups((xhat * centred).sum(_PIXELS), groups, pixels)
        r, dr = to_channels(rstd, channels), to_channels(-rstd * cross, channels)
        dxhat = normalised_tangent(centred, xhat, r, dr)
        drstd = -rstd.square() * cross
    z = scaled(xhat, *affine)
    dz = affine_tangent(xhat, dxhat, affine[0], *tangent)
    y, dy = pool(value(activation, z), sloped(activation, z, dz), pooling)
    assert dy is not None
    return y, dy, mean, rstd, dmean, drstd


def dual_norm_act_pool(
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    groups: int,
    activation: str,
    pooling: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``norm_act_pool`` and its tangent along ``(dx, dweight, dbias)``.

    Returns:
        ``y``, ``dy``, mean, 1/std, and the tangents of these two.
    """
    dtype = statistics_dtype(x)
    y, dy = (empty_in_layout(x, *pooled_size(x, pooling)) for _ in range(2))
    mean, rstd, dmean, drstd = (torch.empty(*x.shape[:3], groups, dtype=dtype, device=x.device) for _ in range(4))
    affine, tangent = Affine(weight, bias), Affine.tangent(dweight, dbias, weight)
    for at in pieces(x):
        given = x[at].to(dtype), dx[at].to(dtype), affine.of(at, dtype), tangent.of(at, dtype)
        found = _dual_forward(*given, groups, activation, pooling, eps)
        y[at], dy[at], mean[at], rstd[at], dmean[at], drstd[at] = found
    return y, dy, mean, rstd, dmean, drstd
