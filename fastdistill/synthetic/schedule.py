"""The inner steps that images were learned with: which images each step takes, and at what rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """``T`` steps of plain SGD from fresh weights, as unrolled methods learn them together with the images.

    Attributes:
        rates: learning rate of each step, floating point: ``[T]``, or ``[R, T]`` where every run has learned its own.
        images: indices of the synthetic images of each step, int64 ``[T, n]``; the rows are the order of the steps.

    Raises:
        ValueError: when shapes or dtypes are others, a rate is not finite or an index is negative.
    """

    rates: Tensor
    images: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.ndim != 2 or 0 in shape or self.images.dtype != torch.int64:
            raise ValueError(
                f"expected a schedule's images as int64 [T, n], got {self.images.dtype} {shape}: give every step the "
                "indices of its images"
            )
        if self.rates.ndim not in (1, 2) or 0 in self.rates.shape or self.rates.shape[-1] != shape[0]:
            raise ValueError(
                f"expected a schedule's rates [T] or [R, T] of {shape[0]} steps, got {tuple(self.rates.shape)}: give "
                "every step one learning rate"
            )
        if not self.rates.is_floating_point() or not bool(self.rates.isfinite().all()):
            found = "NaN or infinity" if self.rates.is_floating_point() else str(self.rates.dtype)
            raise ValueError(
                f"expected finite floating-point rates in a schedule, got {found}: take those of a run that did not "
                "diverge"
            )
        if int(self.images.min()) < 0:
            raise ValueError(
                f"expected image indices from 0 on in a schedule, got {int(self.images.min())}: number the synthetic "
                "images from 0"
            )

    @property
    def steps(self) -> int:
        """``T``."""
        return self.images.shape[0]

    def run(self, index: int) -> Schedule:
        """The schedule of one run."""
        return self if self.rates.ndim == 1 else replace(self, rates=self.rates[index : index + 1])
