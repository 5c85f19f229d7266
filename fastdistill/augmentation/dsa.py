"""Differentiable Siamese augmentation (Zhao and Bilen 2021), for many (student, class) pairs at once.

Every pair draws one operation of the strategy and its parameters. *Siamese*: all images of the pair share them, and
the real and the synthetic images of the pair are augmented with the same draw. For training networks the parameters
are drawn for every image instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fastdistill.draws import Purpose, uniform

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
_PARAMETERS = 3  # uniform numbers an operation may use
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5
_CROP, _CUTOUT, _FLIP, _SCALE, _ROTATE = 0.125, 0.5, 0.5, 1.2, 15.0


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Which operations may be drawn.

    Attributes:
        operations: names among ``OPERATIONS``, in the order they are drawn by; empty for no augmentation.
        align_corners: of the sampling grid of scale and rotate. The published runs used True (torch 1.2's default).
    """

    operations: tuple[str, ...]
    align_corners: bool = True

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise ValueError(
                    f"expected operations among {', '.join(OPERATIONS)}, got {name!r}: correct the strategy"
                )

    @classmethod
    def parse(cls, text: str, *, align_corners: bool = True) -> Strategy:
        """Reads ``color_crop_cutout`` and the like; ``none`` is no augmentation."""
        return cls(operations=() if text == "none" else tuple(text.split("_")), align_corners=align_corners)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The operation of every pair and its parameters.

    Attributes:
        operation: index into the strategy's operations, int64 ``[...]``.
        parameters: uniform numbers ``[..., 1 or n, 3]``: one row for all images of a pair, or one an image.
    """

    operation: Tensor
    parameters: Tensor


def draw_siamese(strategy: Strategy, *, seed: int, step: int, students: Tensor, groups: int) -> Draw:
    """One draw for every (student, group) pair, ``[S, G]``, keyed by student."""
    numbers = uniform(seed, Purpose.AUGMENTATION, step, students, groups * (1 + _PARAMETERS)).unflatten(1, (groups, -1))
    return Draw(operation=_choose(numbers[..., 0], strategy), parameters=numbers[..., None, 1:])


def draw_per_image(
    strategy: Strategy, *, seed: int, step: int, students: Tensor, images: int, purpose: Purpose
) -> Draw:
    """One operation for every student ``[S]`` with parameters for each of its images ``[S, n, 3]``."""
    numbers = uniform(seed, purpose, step, students, 1 + images * _PARAMETERS)
    return Draw(
        operation=_choose(numbers[:, 0], strategy), parameters=numbers[:, 1:].unflatten(1, (images, _PARAMETERS))
    )


def _choose(numbers: Tensor, strategy: Strategy) -> Tensor:
    return (numbers * len(strategy.operations)).long()


def augment(images: Tensor, strategy: Strategy, draw: Draw) -> Tensor:
    """Applies every pair's drawn operation.

    Args:
        images: ``[..., n, D, H, W]`` in normalised space, leading axes those of the draw (or 1).
        strategy: the operations drawn from.
        draw: from `draw_siamese` or `draw_per_image`.

    Returns:
        The augmented images, leading axes broadcast against the draw's.
    """
    if not strategy.operations:
        return images
    lead = torch.broadcast_shapes(images.shape[:-4], draw.operation.shape)
    images = images.expand(*lead, *images.shape[-4:])
    numbers = draw.parameters.to(images.dtype)
    numbers = numbers.expand(*lead, images.shape[-4], _PARAMETERS)
    result = images
    for index, name in enumerate(strategy.operations):
        # computed for all and selected: no host synchronisation, one graph whatever is drawn
        chosen = (draw.operation == index)[..., None, None, None, None]
        result = torch.where(chosen, _apply(name, images, numbers, strategy.align_corners), result)
    return result


def _apply(name: str, images: Tensor, numbers: Tensor, align_corners: bool) -> Tensor:
    height, width = images.shape[-2:]
    u = numbers[..., None, None, None]  # [..., n, 3, 1, 1, 1]
    first, second, third = u.unbind(-4)
    match name:
        case "color":
            images = images + (first - 0.5) * _BRIGHTNESS
            mean = images.mean(-3, keepdim=True)
            images = (images - mean) * (second * _SATURATION) + mean
            mean = images.mean((-3, -2, -1), keepdim=True)
            return (images - mean) * (third + _CONTRAST) + mean
        case "crop":
            return _shift(images, _whole_shift(numbers[..., 0], height), _whole_shift(numbers[..., 1], width))
        case "cutout":
            hidden = _cut(numbers[..., 0], height)[..., :, None] & _cut(numbers[..., 1], width)[..., None, :]
            return torch.where(hidden[..., None, :, :], torch.zeros_like(images), images)
        case "flip":
            return torch.where(first < _FLIP, images.flip(-1), images)
        case "scale":
            low = 1 / _SCALE
            x, y = (low + numbers[..., axis] * (_SCALE - low) for axis in (0, 1))
            zero = torch.zeros_like(x)
            return _sample(images, (x, zero, zero, y), align_corners)
        case _:
            angle = (numbers[..., 0] - 0.5) * (2 * _ROTATE / 180 * math.pi)
            cosine, sine = torch.cos(angle), torch.sin(angle)
            return _sample(images, (cosine, -sine, sine, cosine), align_corners)


def _whole_shift(numbers: Tensor, extent: int) -> Tensor:
    """Integer shifts in ``[−s, s]``, ``s = int(extent/8 + ½)``."""
    reach = int(extent * _CROP + 0.5)
    return (numbers * (2 * reach + 1)).long() - reach


def _shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images read at ``(y + down, x + right)``, zero outside; shifts ``[..., n]``."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + down[..., None]
    columns = torch.arange(width, device=images.device) + right[..., None]
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    index = index.flatten(-2)[..., None, :].expand(*images.shape[:-2], height * width)
    moved = images.flatten(-2).gather(-1, index).unflatten(-1, (height, width))
    return torch.where(inside[..., None, :, :], moved, torch.zeros_like(moved))


def _cut(numbers: Tensor, extent: int) -> Tensor:
    """Which positions ``[..., n, extent]`` a square of side ``int(extent/2 + ½)`` around a drawn centre hides.

    The square is clamped at the borders, so it still hides the border line when its centre lies past it.
    """
    side = int(extent * _CUTOUT + 0.5)
    centre = (numbers * (extent + (1 - side % 2))).long()
    low = (centre - side // 2).clamp(0, extent - 1)[..., None]
    high = (centre - side // 2 + side - 1).clamp(0, extent - 1)[..., None]
    positions = torch.arange(extent, device=numbers.device)
    return (positions >= low) & (positions <= high)


def _sample(images: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor], align_corners: bool) -> Tensor:
    """Bilinear sampling on the grid of a 2×2 matrix per image, zeros outside."""
    zero = torch.zeros_like(matrix[0])
    rows = torch.stack((matrix[0], matrix[1], zero, matrix[2], matrix[3], zero), dim=-1)
    flat = images.reshape(-1, *images.shape[-3:])
    grid = affine_grid(rows.reshape(-1, 2, 3), list(flat.shape), align_corners=align_corners)
    moved = grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    return moved.view(images.shape)
