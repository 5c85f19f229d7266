"""Truth of `fastdistill_kernels.dsa`, and what a CPU runs: every pair's own operation and no other.

The formulas are those of Zhao and Bilen 2021 (DiffAugment in their published code), each with its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
PARAMETERS = 3  # uniform numbers an operation may use
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, FLIP, SCALE = 0.125, 0.5, 0.5, 1.2
ROTATE = 15 * math.pi / 180
_PIECE = 1 << 20  # bytes of images worked on together: what an operation makes of them stays in a core's cache


def dsa(
    images: Tensor, operation: Tensor, parameters: Tensor, operations: Sequence[int], align_corners: bool
) -> Tensor:
    """Applies every pair's drawn operation; arguments as `fastdistill_kernels.dsa.dsa`, operations by their codes."""
    return _of_pairs(images, operation, parameters, operations, align_corners, transpose=False)


def dsa_transpose(
    cotangent: Tensor, operation: Tensor, parameters: Tensor, operations: Sequence[int], align_corners: bool
) -> Tensor:
    """Applies the transpose of every pair's drawn operation, without the constant that brightness adds."""
    return _of_pairs(cotangent, operation, parameters, operations, align_corners, transpose=True)


def reach(extent: int) -> int:
    """The farthest that a crop moves an image."""
    return int(extent * CROP + 0.5)


def side(extent: int) -> int:
    """The side of the square that cutout hides."""
    return int(extent * CUTOUT + 0.5)


def _of_pairs(
    images: Tensor,
    operation: Tensor,
    parameters: Tensor,
    operations: Sequence[int],
    align_corners: bool,
    *,
    transpose: bool,
) -> Tensor:
    groups, tail = operation.shape[1], images.shape[-4:]
    out = images.new_empty(*operation.shape, *tail)
    if out.numel() == 0:
        return out
    for axis in (0, 1):  # an axis that is only spread out holds one copy
        images = images.narrow(axis, 0, 1) if images.stride(axis) == 0 else images
    of_student, of_group = (images.shape[1] if images.shape[0] > 1 else 0), int(images.shape[1] > 1)
    given, numbers, made = images.flatten(0, 1), parameters.flatten(0, 1), out.flatten(0, 1)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    for code, pairs in _pieces(operation, operations, made[0].nbytes):
        place = torch.tensor(pairs, device=images.device)
        source = place // groups * of_student + place % groups * of_group
        own = given.index_select(0, source).to(dtype)
        if code is not None:
            u = numbers.index_select(0, place).to(dtype).flatten(0, 1)  # [U, 3]: a row an image, or for all of a pair
            own = _apply(OPERATIONS[code], own.view(len(u), -1, *tail[1:]), u, align_corners, transpose)
        made.index_copy_(0, place, own.view(-1, *tail).to(out.dtype))
    return out


def _pieces(operation: Tensor, operations: Sequence[int], size: int) -> Iterator[tuple[int | None, list[int]]]:
    """Pairs that drew the same operation, by its code, as many at once as fit into a piece; None for no operation."""
    found: dict[int | None, list[int]] = {}
    for pair, index in enumerate(operation.flatten().tolist()):
        found.setdefault(operations[index] if 0 <= index < len(operations) else None, []).append(pair)
    step = max(1, _PIECE // size)
    for code, pairs in found.items():
        for start in range(0, len(pairs), step):
            yield code, pairs[start : start + step]


def _apply(name: str, x: Tensor, u: Tensor, align_corners: bool, transpose: bool) -> Tensor:
    """One operation on images ``[U, F, D, H, W]``, which it may overwrite, by numbers ``[U, 3]``."""
    height, width = x.shape[-2:]
    first, second, _ = u.unbind(-1)
    planes = x.flatten(1, 2)
    match name:
        case "color":
            return _color(x, u.view(-1, PARAMETERS, 1, 1, 1, 1), transpose)
        case "crop":
            down, right = (whole(n, 2 * reach(e) + 1) - reach(e) for n, e in ((first, height), (second, width)))
            return _shift(planes, -down, -right) if transpose else _shift(planes, down, right)
        case "cutout":
            hidden = _cut(first, height)[:, :, None] & _cut(second, width)[:, None, :]
            return planes.masked_fill_(hidden[:, None], 0)
        case "flip":
            return torch.where((first < FLIP).view(-1, 1, 1, 1), planes.flip(-1), planes)
        case "scale":
            low, zero = 1 / SCALE, torch.zeros_like(first)
            matrix = (low + first * (SCALE - low), zero, zero, low + second * (SCALE - low))
        case _:
            angle = (first - 0.5) * (2 * ROTATE)
            cosine, sine = torch.cos(angle), torch.sin(angle)
            matrix = (cosine, -sine, sine, cosine)
    return _sample(planes, matrix, align_corners, transpose)


def _color(x: Tensor, u: Tensor, transpose: bool) -> Tensor:
    """Brightness, saturation and contrast in one: ``c·s·x + c(1−s)·m + (1−c)·M + b``, symmetric but for ``b``.

    ``m`` is the mean over the channels, ``M`` over the whole image; saturation changes neither.
    """
    brightness, saturation, contrast = (u[:, 0] - 0.5) * BRIGHTNESS, u[:, 1] * SATURATION, u[:, 2] + CONTRAST
    constant = (1 - contrast) * x.mean((-3, -2, -1), keepdim=True)
    if not transpose:
        constant = constant + brightness
    if x.shape[-3] == 1:  # grey images have no saturation
        return x.mul_(contrast).add_(constant)
    constant = constant + contrast * (1 - saturation) * x.mean(-3, keepdim=True)
    return x.mul_(contrast * saturation).add_(constant)


def whole(numbers: Tensor, count: int) -> Tensor:
    """Integers in ``[0, count)``; a product that rounding lifts to ``count`` stays below it."""
    return (numbers * count).long().clamp_(max=count - 1)


def _shift(planes: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """``[U, ..., H, W]`` read at ``(y + down, x + right)``, zero outside; shifts ``[U]``."""
    height, width = planes.shape[-2:]
    rows = torch.arange(height, device=planes.device) + down[:, None]
    columns = torch.arange(width, device=planes.device) + right[:, None]
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None, :]
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = index.flatten(1)[:, None].expand(*planes.shape[:2], -1)
    return planes.flatten(-2).gather(-1, index).view(planes.shape).masked_fill_(outside[:, None], 0)


def _cut(numbers: Tensor, extent: int) -> Tensor:
    """Which positions ``[U, extent]`` a square around a drawn centre hides.

    The square is clamped at the borders, so it still hides the border line when its centre lies past it.
    """
    length = side(extent)
    low = whole(numbers, extent + 1 - length % 2) - length // 2
    positions = torch.arange(extent, device=numbers.device)
    first, last = low.clamp(0, extent - 1)[:, None], (low + length - 1).clamp(0, extent - 1)[:, None]
    return (positions >= first) & (positions <= last)


def _sample(planes: Tensor, matrix: tuple[Tensor, ...], align_corners: bool, transpose: bool) -> Tensor:
    """Bilinear sampling of ``[U, ..., H, W]`` on the grid of a 2×2 matrix ``[U]`` each, zeros outside."""
    height, width = planes.shape[-2:]
    rows = _base(height, planes, align_corners)[:, None]
    columns = _base(width, planes, align_corners)
    xx, xy, yx, yy = (number.view(-1, 1, 1) for number in matrix)
    # affine_grid makes the same of products of small matrices, and warns of extents of one
    grid = planes.new_empty(len(planes), height, width, 2)
    torch.add(xx * columns, xy * rows, out=grid[..., 0])
    torch.add(yx * columns, yy * rows, out=grid[..., 1])
    if not transpose:
        return grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    bilinear, zeros = 0, 0  # the input's values play no part in its own cotangent, only its shape does
    found: Tensor = torch.ops.aten.grid_sampler_2d_backward(
        planes, planes, grid, bilinear, zeros, align_corners, [True, False]
    )[0]
    return found


def _base(extent: int, like: Tensor, align_corners: bool) -> Tensor:
    """Normalised positions along an axis: −1 and 1 are the centres of the corners, or their outer edges."""
    if extent == 1:
        return like.new_zeros(1)
    positions = torch.linspace(-1, 1, extent, dtype=like.dtype, device=like.device)
    return positions if align_corners else positions * ((extent - 1) / extent)
