"""Differentiable Siamese augmentation (Zhao and Bilen 2021), for many (student, class) pairs at once.

Every pair draws one operation of the strategy and its parameters. *Siamese*: all images of the pair share them, and
the real and the synthetic images of the pair are augmented with the same draw. For training networks the parameters
are drawn for every image instead. The operations themselves are `fastdistill_kernels.dsa`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdistill.draws import Purpose, uniform
from fastdistill_kernels.dsa import OPERATIONS, PARAMETERS, dsa, dsa_transpose

__all__ = ["OPERATIONS", "Draw", "Strategy", "augment", "draw_per_image", "draw_siamese"]


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
    numbers = uniform(seed, Purpose.AUGMENTATION, step, students, groups * (1 + PARAMETERS)).unflatten(1, (groups, -1))
    return Draw(operation=_choose(numbers[..., 0], strategy), parameters=numbers[..., None, 1:])


def draw_per_image(
    strategy: Strategy, *, seed: int, step: int, students: Tensor, images: int, purpose: Purpose
) -> Draw:
    """One operation for every student ``[S]`` with parameters for each of its images ``[S, n, 3]``."""
    numbers = uniform(seed, purpose, step, students, 1 + images * PARAMETERS)
    return Draw(
        operation=_choose(numbers[:, 0], strategy), parameters=numbers[:, 1:].unflatten(1, (images, PARAMETERS))
    )


def _choose(numbers: Tensor, strategy: Strategy) -> Tensor:
    return (numbers * len(strategy.operations)).long()


def augment(images: Tensor, strategy: Strategy, draw: Draw) -> Tensor:
    """Applies every pair's drawn operation, and no other.

    Differentiable once in the images, in reverse mode (autograd and ``torch.func.vjp``).

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
    pairs, own = (math.prod(lead[:-1]), math.prod(lead[-1:])), images.shape[-4:]
    numbers = draw.parameters.to(torch.promote_types(images.dtype, torch.float32))  # as exact as they were drawn
    result = _augmentation(
        images.expand(*lead, *own).reshape(*pairs, *own),
        draw.operation.expand(lead).reshape(pairs),
        numbers.expand(*lead, *numbers.shape[-2:]).reshape(*pairs, *numbers.shape[-2:]),
        strategy,
    )
    return result.view(*lead, *own)


class _Augmentation(torch.autograd.Function):
    """The operator and its transpose, which needs no images: nothing but the draw is kept for the way back."""

    @staticmethod
    def forward(images: Tensor, operation: Tensor, parameters: Tensor, strategy: Strategy) -> Tensor:
        return dsa(images, operation, parameters, strategy.operations, align_corners=strategy.align_corners)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor, Strategy], output: Tensor) -> None:
        _, operation, parameters, context.strategy = inputs
        context.save_for_backward(operation, parameters)

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        strategy, (operation, parameters) = context.strategy, context.saved_tensors
        found = dsa_transpose(
            cotangent, operation, parameters, strategy.operations, align_corners=strategy.align_corners
        )
        return found, None, None, None


_augmentation: Callable[..., Tensor] = _Augmentation.apply
