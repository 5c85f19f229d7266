"""2×2 pooling of images in plain torch: averages and maxima, their tangents, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.reference.activation import value

POOLINGS = ("none", "avg", "max")


def channels_last(x: Tensor) -> bool:
    """Whether ``x [..., C, H, W]`` keeps the channels of a pixel together in memory."""
    return x.shape[-3] > 1 and x.stride(-3) == 1 and x.stride(-1) == x.shape[-3]


def pooled_size(x: Tensor, pooling: str) -> tuple[int, int]:
    """Height and width of ``y``: halves, rounded down, under pooling."""
    return (x.shape[4], x.shape[5]) if pooling == "none" else (x.shape[4] // 2, x.shape[5] // 2)


def _flat(x: Tensor) -> Tensor:
    """Images ``[n, C, H, W]`` with the strides that torch expects of a layout, even along axes of size 1."""
    flat = x.flatten(0, -4)
    if not channels_last(x):
        return flat.contiguous()
    behind = flat.permute(0, 2, 3, 1)
    return behind.reshape(-1).view(behind.shape).permute(0, 3, 1, 2)


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
