"""Differentiable Siamese augmentation with its random numbers handed in (Zhao and Bilen 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")

_CROP_RATIO = 0.125
_CUTOUT_RATIO = 0.5
_SCALE_RATIO = 1.2
_ROTATION_DEGREES = 15.0


def operations_of(strategy: str) -> tuple[str, ...]:
    """Return the operations that a strategy such as `color_crop_cutout` names.

    Raises:
        ValueError: if a name is unknown.
    """
    names = tuple(strategy.split("_"))
    for name in names:
        _check(name)
    return names


def diff_augment(x: Tensor, operation: str, uniforms: Tensor, *, align_corners: bool = True) -> Tensor:
    """Apply one operation with the same parameters to all images; differentiable in the images.

    Args:
        x: normalised images [n, D, H, W].
        operation: one of `OPERATIONS`.
        uniforms: numbers in [0, 1) [at least 3] on the device of `x`; color reads three, flip and rotate one, the
            others two, the vertical one first except for scale, whose first is the horizontal one.
        align_corners: the convention of scale and rotate; the published results used True, PyTorch's default today
            would be False.

    Raises:
        ValueError: if the operation is unknown.
    """
    _check(operation)
    if operation == "crop":
        return _crop(x, uniforms)
    if operation == "cutout":
        return _cutout(x, uniforms)
    # scalars do not widen the images, so a narrow image keeps its type while its parameters stay exact
    u = uniforms.to(torch.promote_types(x.dtype, uniforms.dtype))
    if operation == "color":
        return _color(x, u)
    if operation == "flip":
        return torch.where(u[0] < 0.5, x.flip(3), x)
    theta = _scale_matrix(u) if operation == "scale" else _rotation_matrix(u)
    grid = F.affine_grid(theta.to(x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=align_corners)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


def siamese(
    operations: Sequence[str], uniforms: Sequence[Tensor] | Tensor, *, align_corners: bool = True
) -> Callable[[Tensor, int], Tensor]:
    """Return the `augment` of `matching_loss` for given draws: one operation and its numbers [3] per class."""

    def augment(x: Tensor, label: int) -> Tensor:
        return diff_augment(x, operations[label], uniforms[label], align_corners=align_corners)

    return augment


def _check(operation: str) -> None:
    if operation not in OPERATIONS:
        raise ValueError(f"expected operations out of {', '.join(OPERATIONS)}, got {operation!r}; join them by '_'")


def _color(x: Tensor, u: Tensor) -> Tensor:
    x = x + (u[0] - 0.5)
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (2 * u[1]) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (u[2] + 0.5) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    for axis, uniform in ((2, u[0]), (3, u[1])):
        size = x.shape[axis]
        reach = int(_CROP_RATIO * size + 0.5)
        shift = _integer_below(uniform, 2 * reach + 1) - reach
        # whatever lies outside the image is read from the border of zeros
        indices = (torch.arange(size, device=x.device) + shift + 1).clamp(0, size + 1)
        padded = padded.index_select(axis, indices)
    return padded


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    square = []
    for size, uniform in ((x.shape[2], u[0]), (x.shape[3], u[1])):
        side = int(_CUTOUT_RATIO * size + 0.5)
        centre = _integer_below(uniform, size + (1 - side % 2))
        square.append((torch.arange(side, device=x.device) + centre - side // 2).clamp(0, size - 1))
    mask = x.new_ones(x.shape[2:])
    mask[square[0][:, None], square[1][None, :]] = 0
    return x * mask


def _scale_matrix(u: Tensor) -> Tensor:
    low = 1 / _SCALE_RATIO
    scale = low + u[:2] * (_SCALE_RATIO - low)
    return torch.cat([scale.diag(), scale.new_zeros(2, 1)], dim=1)


def _rotation_matrix(u: Tensor) -> Tensor:
    angle = (u[0] - 0.5) * (2 * _ROTATION_DEGREES * math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero]).view(2, 3)


def _integer_below(uniform: Tensor, count: int) -> Tensor:
    """Return an integer in [0, count); the largest number below 1 never rounds up to `count`."""
    return (uniform * count).floor().long()
