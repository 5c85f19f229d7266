"""The augmentation that gradient matching's evaluation uses (Zhao et al. 2021): crop, scale, rotate or noise.

Every image draws one operation of the strategy. Vectorised over students and images; where published code rotates by
scipy's cubic spline, images here are rotated by bicubic interpolation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fastdistill.draws import Purpose, normal, uniform

OPERATIONS = ("crop", "scale", "rotate", "noise")
_CROP, _SCALE, _ROTATE, _NOISE = 4, 0.2, 45, 0.001


def parse_strategy(text: str) -> tuple[str, ...]:
    """Reads ``crop_scale_rotate`` and the like.

    Raises:
        ValueError: for an operation that does not exist.
    """
    operations = tuple(text.split("_"))
    for name in operations:
        if name not in OPERATIONS:
            raise ValueError(f"expected operations among {', '.join(OPERATIONS)}, got {name!r}: correct the strategy")
    return operations


def augment(
    images: Tensor, operations: tuple[str, ...], *, seed: int, purpose: Purpose, step: int, students: Tensor
) -> Tensor:
    """Augments every image by one drawn operation.

    Args:
        images: ``[S, n, D, H, W]``, normalised.
        operations: what is drawn from.
        seed: the run's seed.
        purpose: stream of draws.
        step: the student's training step.
        students: global student indices ``[S]``.

    Returns:
        ``[S, n, D, H, W]``.
    """
    count = images.shape[1]
    choice, first, second = uniform(seed, purpose, step, students, 3 * count).view(-1, 3, count).unbind(1)
    operation = (choice * len(operations)).long()
    result = images
    for index, name in enumerate(operations):
        match name:
            case "crop":
                changed = _crop(images, first, second)
            case "scale":
                changed = _scale(images, first, second)
            case "rotate":
                changed = _rotate(images, first)
            case _:
                # the noise has its own counter behind the uniforms of the same step
                numbers = normal(seed, Purpose.AUGMENTATION_NOISE, step, students, images[0].numel())
                changed = images + _NOISE * numbers.view_as(images).to(images.dtype)
        result = torch.where((operation == index)[..., None, None, None], changed, result)
    return result


def _read(images: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """Pixels at ``rows [S, n, H]`` and ``columns [S, n, W]``, ``fill`` where an index is negative."""
    height, width = images.shape[-2:]
    inside = (rows >= 0)[..., :, None] & (columns >= 0)[..., None, :]
    index = (rows.clamp_min(0)[..., :, None] * width + columns.clamp_min(0)[..., None, :]).flatten(-2)
    index = index[..., None, :].expand(*images.shape[:-2], height * width)
    moved = images.flatten(-2).gather(-1, index).view_as(images)
    return torch.where(inside[..., None, :, :], moved, fill)


def _crop(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Shifts by −4 to 3 pixels; the border is filled with each channel's mean over the student's batch."""

    def source(numbers: Tensor, extent: int) -> Tensor:
        shift = (numbers * (2 * _CROP)).long() - _CROP
        position = torch.arange(extent, device=images.device) + shift[..., None]
        return torch.where(position < extent, position, -1)

    mean = images.mean((1, 3, 4), keepdim=True)
    return _read(images, source(first, images.shape[-2]), source(second, images.shape[-1]), mean)


def _scale(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Nearest-neighbour resize of height and width by 0.8 to 1.2, centred; zeros outside."""
    height, width = images.shape[-2:]
    sizes = [((1 - _SCALE + 2 * _SCALE * numbers) * height).long().clamp_min(1) for numbers in (first, second)]
    canvas = torch.maximum(sizes[0], sizes[1]).clamp_min(max(height, width))

    def source(size: Tensor, extent: int) -> Tensor:
        offset = torch.div(canvas - extent, 2, rounding_mode="floor") - torch.div(
            canvas - size, 2, rounding_mode="floor"
        )
        position = torch.arange(extent, device=images.device) + offset[..., None]
        read = torch.div(position * extent, size[..., None], rounding_mode="floor")
        return torch.where((position >= 0) & (position < size[..., None]), read, -1)

    return _read(images, source(sizes[0], height), source(sizes[1], width), images.new_zeros(()))


def _rotate(images: Tensor, numbers: Tensor) -> Tensor:
    """Rotates counterclockwise by whole degrees in [−45, 45); outside is the mean over all of the student's batch."""
    angle = ((numbers * (2 * _ROTATE)).floor() - _ROTATE) * (math.pi / 180)
    cosine, sine, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    aspect = images.shape[-2] / images.shape[-1]  # the grid is in half extents, a rotation is in pixels
    matrix = torch.stack((cosine, -sine * aspect, zero, sine / aspect, cosine, zero), dim=-1).to(images.dtype)
    flat = images.flatten(0, 1)
    grid = affine_grid(matrix.view(-1, 2, 3), list(flat.shape), align_corners=False)
    mean = images.mean((1, 2, 3, 4), keepdim=True)
    centred = (images - mean).flatten(0, 1)
    return grid_sample(centred, grid, mode="bicubic", padding_mode="zeros", align_corners=False).view_as(images) + mean
