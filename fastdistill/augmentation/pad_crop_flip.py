"""The augmentation of real CIFAR images in Dataset Distillation (Wang et al. 2018): reflect, crop, mirror.

On normalised images instead of pixels, which is the same: a channel is reflected and mirrored like its pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdistill.draws import Purpose, uniform

_PAD = 4  # pixels on every side


def pad_crop_flip(images: Tensor, *, seed: int, step: int, students: Tensor) -> Tensor:
    """Pads every image by reflection, crops it at a random place to its size and mirrors it with probability ½.

    Args:
        images: ``[S, n, D, H, W]``; each image has its own draw.
        seed: the run's seed.
        step: counts the draws.
        students: global student indices ``[S]``.

    Raises:
        ValueError: for images too small to be reflected.
    """
    count, (height, width) = images.shape[1], images.shape[-2:]
    if min(height, width) <= _PAD:
        raise ValueError(
            f"expected images of more than {_PAD} pixels a side for pad_crop_flip, got {height}×{width}: choose "
            "another method.real_augmentation"
        )
    numbers = uniform(seed, Purpose.AUGMENTATION, step, students, 3 * count).view(-1, 3)
    padded = pad(images.flatten(0, 1), (_PAD,) * 4, mode="reflect")
    top, left = (numbers[:, :2] * (2 * _PAD + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(numbers[:, 2:] < 0.5, columns.flip(1), columns)
    every = torch.arange(len(padded), device=images.device)[:, None, None]
    cropped = padded[every, :, rows[:, :, None], columns[:, None, :]]  # [S·n, H, W, D]
    return cropped.movedim(-1, 1).reshape(images.shape)
