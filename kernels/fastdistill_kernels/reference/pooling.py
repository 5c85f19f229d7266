"""2×2 pooling of images in plain torch: averages and maxima, their tangents, and the way back.

Eager programs take what torch has made fast; compiled ones what a compiler makes one loop of with its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

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
    if torch.compiler.is_compiling():
        return (first + others[0] + others[1] + others[2]) * 0.25
    total = first + others[0]
    for corner in others[1:]:
        total.add_(corner)
    return total.mul_(0.25)


def _winners(u: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima ``[n, C, H/2, W/2]`` and where in the map they are."""
    best, places = torch.ops.aten.max_pool2d_with_indices(_flat(u), [2, 2])
    return best, places


def _strongest(u: Tensor, du: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Maxima ``[..., H/2, W/2]``, the corner that each is in, and the tangents there, in a compiled program."""
    best, *others = _corners(u)
    along, *tangents = [None] * 4 if du is None else _corners(du)
    place = torch.zeros_like(best, dtype=torch.int8)
    for corner, (one, tangent) in enumerate(zip(others, tangents, strict=True), start=1):
        taken = (one > best) | one.isnan()
        best, place = torch.where(taken, one, best), torch.where(taken, corner, place)
        along = None if along is None or tangent is None else torch.where(taken, tangent, along)
    return best, place, along


def pool(u: Tensor, du: Tensor | None, pooling: str) -> tuple[Tensor, Tensor | None]:
    """Pools ``u`` and, with the same choices, a tangent of it where there is one."""
    if pooling == "none":
        return u, du
    if pooling == "avg":
        return _average(u), None if du is None else _average(du)
    if torch.compiler.is_compiling():
        strongest, _, along = _strongest(u, du)
        return strongest, along
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
    if torch.compiler.is_compiling():
        mask = _where(_strongest(u, None)[1], u)
        return mask * _widened(g, z), None if dg is None else mask * _widened(dg, z)
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
    if torch.compiler.is_compiling():
        return _widened(g * 0.25, like)
    whole, quarter = torch.zeros_like(like) if cropped else torch.empty_like(like), g * 0.25
    for corner in _corners(whole):
        corner.copy_(quarter)
    return whole


def _widened(g: Tensor, like: Tensor) -> Tensor:
    """Every element of ``g`` at the four of its window, zero for those in none, in a compiled program.

    It reads each element four times where it is used, which costs less than writing in four passes.
    """
    return _closed(g[..., :, None, :, None].expand(*g.shape[:-1], 2, g.shape[-1], 2), like)


def _where(place: Tensor, like: Tensor) -> Tensor:
    """1 at the corners of windows that ``place`` names, zero elsewhere."""
    corners = torch.arange(4, dtype=place.dtype, device=place.device).view(2, 1, 2)
    return _closed((place[..., :, None, :, None] == corners).to(like.dtype), like)


def _closed(windows: Tensor, like: Tensor) -> Tensor:
    """Windows ``[..., H/2, 2, W/2, 2]`` side by side, with zeros for a row or column left over."""
    *lead, rows, _, columns, _ = windows.shape
    whole = windows.reshape(*lead, 2 * rows, 2 * columns)
    left = (0, like.shape[-1] % 2, 0, like.shape[-2] % 2)
    return functional.pad(whole, left) if any(left) else whole
