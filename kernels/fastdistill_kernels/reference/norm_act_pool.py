"""Truth of `fastdistill_kernels.norm_act_pool`; the formulas are derived in ``kernels/README.md``.

Images are worked on in pieces that stay in cache from the first pass over them to the last. Pooling, here and in
`fastdistill_kernels.reference.first_block`, takes ``[..., C, H, W]`` with any axes in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill_kernels.reference.activation import sloped, value

POOLINGS = ("none", "avg", "max")
PIECE = 1 << 18  # elements of x at once, 1 MB in float32: below it dispatches cost more, above it cache misses do
_PIXELS = (-2, -1)


def channels_last(x: Tensor) -> bool:
    """Whether ``x [..., C, H, W]`` keeps the channels of a pixel together in memory."""
    return x.shape[-3] > 1 and x.stride(-3) == 1 and x.stride(-1) == x.shape[-3]


def pooled_size(x: Tensor, pooling: str) -> tuple[int, int]:
    """Height and width of ``y``: halves, rounded down, under pooling."""
    return (x.shape[4], x.shape[5]) if pooling == "none" else (x.shape[4] // 2, x.shape[5] // 2)


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


def _flat(x: Tensor) -> Tensor:
    """Images ``[n, C, H, W]`` with the strides that torch expects of a layout, even along axes of size 1."""
    flat = x.flatten(0, -4)
    if not channels_last(x):
        return flat.contiguous()
    behind = flat.permute(0, 2, 3, 1)
    return behind.reshape(-1).view(behind.shape).permute(0, 3, 1, 2)


def _normalised(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂, and mean and 1/std ``[s, g, n, groups]``."""
    lead, (channels, height, width) = x.shape[:3], x.shape[3:]
    if channels_last(x):  # torch's own is not vectorised there when norm groups are channels
        mean = to_groups(x.sum(_PIXELS), groups, height * width)
        xhat = x - to_channels(mean, channels)
        rstd = (to_groups(xhat.square().sum(_PIXELS), groups, height * width) + eps).rsqrt()
        return xhat.mul_(to_channels(rstd, channels)), mean, rstd
    flat = x.flatten(0, 2).contiguous()
    xhat, mean, rstd = torch.native_group_norm(flat, None, None, len(flat), channels, height * width, groups, eps)
    return xhat.unflatten(0, lead), mean.unflatten(0, lead), rstd.unflatten(0, lead)


def _corners(x: Tensor) -> list[Tensor]:
    """The four elements of every whole window, as views ``[..., H/2, W/2]``."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


def _average(u: Tensor) -> Tensor:
    """Average pooling; torch's own is vectorised only where channels of a pixel lie together."""
    first, *others = _corners(u)
    total = first + others[0]
    for corner in others[1:]:
        total.add_(corner)
    return total.mul_(0.25)


def _winners(u: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima ``[n, C, H/2, W/2]`` and where in the map they are."""
    best, places = torch.ops.aten.max_pool2d_with_indices(_flat(u), [2, 2])
    return best, places


def pool(u: Tensor, du: Tensor | None, pooling: str) -> tuple[Tensor, Tensor | None]:
    """Pools ``u`` and, with the same choices, a tangent of it where there is one."""
    if pooling == "none":
        return u, du
    if pooling == "avg":
        return _average(u), None if du is None else _average(du)
    lead, (best, places) = u.shape[:-3], _winners(u)
    if du is None:
        return best.unflatten(0, lead), None
    chosen = du.flatten(0, -4).flatten(-2).gather(-1, places.flatten(-2)).reshape(best.shape)
    return best.unflatten(0, lead), chosen.unflatten(0, lead)


def spread(g: Tensor, dg: Tensor | None, z: Tensor, activation: str, pooling: str) -> tuple[Tensor, Tensor | None]:
    """What pooling's backward makes of ``g [..., C, H/2, W/2]`` and, with the same choices, of ``dg``."""
    if pooling == "none":
        return g, dg
    if pooling == "avg":
        return _shared_out(g, z), None if dg is None else _shared_out(dg, z)
    u = value(activation, z)
    places = _winners(u)[1]

    def pull(cotangent: Tensor) -> Tensor:
        back = torch.ops.aten.max_pool2d_with_indices_backward
        flat: Tensor = back(_flat(cotangent), _flat(u), [2, 2], [2, 2], [0, 0], [1, 1], False, places)
        images: Tensor = flat.unflatten(0, z.shape[:-3])
        return images

    return pull(g), None if dg is None else pull(dg)


def _shared_out(g: Tensor, like: Tensor) -> Tensor:
    """A quarter of ``g`` for every element of a whole window, zero for the others."""
    cropped = like.shape[-2] % 2 or like.shape[-1] % 2
    whole, quarter = torch.zeros_like(like) if cropped else torch.empty_like(like), g * 0.25
    for corner in _corners(whole):
        corner.copy_(quarter)
    return whole


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
        xhat = x[at].to(dtype)
        if groups:
            xhat, mean[at], rstd[at] = _normalised(xhat, groups, eps)
        u = value(activation, scaled(xhat, *affine.of(at, dtype)))
        y[at] = pool(u, None, pooling)[0]
    return y, mean, rstd


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
    dtype, channels, pixels = statistics_dtype(x), x.shape[3], x.shape[4] * x.shape[5]
    y, dy = (empty_in_layout(x, *pooled_size(x, pooling)) for _ in range(2))
    mean, rstd, dmean, drstd = (torch.empty(*x.shape[:3], groups, dtype=dtype, device=x.device) for _ in range(4))
    affine, tangent = Affine(weight, bias), Affine.tangent(dweight, dbias, weight)
    for at in pieces(x):
        xhat, dxhat = x[at].to(dtype), dx[at].to(dtype)
        if groups:
            xhat, mean[at], rstd[at] = _normalised(xhat, groups, eps)
            dmean[at] = to_groups(dxhat.sum(_PIXELS), groups, pixels)
            centred = dxhat - to_channels(dmean[at], channels)
            cross = to_groups((xhat * centred).sum(_PIXELS), groups, pixels)
            drstd[at] = -rstd[at].square() * cross
            r, dr = to_channels(rstd[at], channels), to_channels(-rstd[at] * cross, channels)
            dxhat = normalised_tangent(centred, xhat, r, dr)
        w, b = affine.of(at, dtype)
        z = scaled(xhat, w, b)
        dz = affine_tangent(xhat, dxhat, w, *tangent.of(at, dtype))
        y[at], pooled = pool(value(activation, z), sloped(activation, z, dz), pooling)
        assert pooled is not None
        dy[at] = pooled
    return y, dy, mean, rstd, dmean, drstd
