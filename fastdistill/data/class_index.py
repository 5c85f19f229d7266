"""Where the images of every class stand in a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassIndex:
    """The images of a data set sorted by class.

    Attributes:
        order: image indices, class after class, ascending within a class; int64 ``[n]``.
        starts: where each class begins in `order`; int64 ``[C]``.
        counts: images of each class; int64 ``[C]``, beside `sizes` so that sampling never waits for the device.
        sizes: `counts` on the host.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor
    sizes: tuple[int, ...]

    def of_class(self, label: int) -> Tensor:
        """The images of class `label`, ascending; int64 ``[sizes[label]]``."""
        start = sum(self.sizes[:label])
        return self.order[start : start + self.sizes[label]]


def one_class(count: int, device: torch.device) -> ClassIndex:
    """All ``count`` images as a single class, on a device."""
    return ClassIndex(
        order=torch.arange(count, device=device),
        starts=torch.zeros(1, dtype=torch.int64, device=device),
        counts=torch.full((1,), count, device=device),
        sizes=(count,),
    )


def class_index(labels: Tensor, num_classes: int) -> ClassIndex:
    """Sorts images by class.

    Args:
        labels: int64 ``[n]`` in ``0 .. num_classes - 1``.
        num_classes: ``C``; classes without an image are allowed.

    Returns:
        The index, on the device of `labels`.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    return ClassIndex(
        order=torch.argsort(labels, stable=True),
        starts=counts.cumsum(0) - counts,
        counts=counts,
        sizes=tuple(counts.tolist()),
    )
