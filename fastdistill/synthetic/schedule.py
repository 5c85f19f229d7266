"""The inner steps that images were learned with: which images each step takes, and how it moves the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdistill.augmentation.dsa import Strategy

OPTIMIZERS = ("sgd", "momentum", "adam")


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """``T`` steps from fresh weights, as unrolled methods learn them together with the images.

    Attributes:
        rates: learning rate of each step, floating point: ``[T]``, or ``[R, T]`` where every run has learned its own.
        images: indices of the synthetic images of each step, int64 ``[T, n]``; the rows are the order of the steps.
        optimizer: ``sgd``, ``momentum`` or ``adam``, as torch has them.
        momenta: momentum of each step, ``β₁`` of Adam, ``[T]`` or ``[R, T]`` like the rates; None for ``sgd``.
        decay: weight decay, added to the gradient.
        augmentation: DSA strategy that is drawn anew for every image in every step, or ``none``.
        align_corners: of that strategy's sampling grid.

    Raises:
        ValueError: when shapes or dtypes are others, a rate or momentum is not finite, an index or the decay is
            negative, or the optimiser or an operation of the strategy does not exist.
    """

    rates: Tensor
    images: Tensor
    optimizer: str = "sgd"
    momenta: Tensor | None = None
    decay: float = 0.0
    augmentation: str = "none"
    align_corners: bool = True

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.ndim != 2 or 0 in shape or self.images.dtype != torch.int64:
            raise ValueError(
                f"expected a schedule's images as int64 [T, n], got {self.images.dtype} {shape}: give every step the "
                "indices of its images"
            )
        _check_numbers("rates", self.rates, self.steps)
        if int(self.images.min()) < 0:
            raise ValueError(
                f"expected image indices from 0 on in a schedule, got {int(self.images.min())}: number the synthetic "
                "images from 0"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"expected a schedule's optimizer among {', '.join(OPTIMIZERS)}, got {self.optimizer!r}: choose one"
            )
        if (self.momenta is None) != (self.optimizer == "sgd"):
            found = "none" if self.momenta is None else "some"
            raise ValueError(
                f"expected momenta exactly for momentum and adam, got {found} for {self.optimizer}: give every step "
                "one, or leave them out"
            )
        if self.momenta is not None:
            _check_numbers("momenta", self.momenta, self.steps)
            low, high = float(self.momenta.min()), float(self.momenta.max())
            if low < 0 or high > 1 or (high == 1 and self.optimizer == "adam"):
                raise ValueError(
                    f"expected a schedule's momenta from 0 to 1, for adam below 1, got {low:g} to {high:g}: take those "
                    "of a run that did not diverge"
                )
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"expected a schedule's decay of at least 0, got {self.decay}: correct it")
        Strategy.parse(self.augmentation)

    @property
    def steps(self) -> int:
        """``T``."""
        return self.images.shape[0]

    def run(self, index: int) -> Schedule:
        """The schedule of one run."""
        rates, momenta = _of_run(self.rates, index), None if self.momenta is None else _of_run(self.momenta, index)
        same = rates is self.rates and momenta is self.momenta
        return self if same else replace(self, rates=rates, momenta=momenta)


def _of_run(values: Tensor, index: int) -> Tensor:
    return values if values.ndim == 1 else values[index : index + 1]


def _check_numbers(name: str, values: Tensor, steps: int) -> None:
    """Refuses rates or momenta that are not one finite number per step."""
    one = {"rates": "learning rate", "momenta": "momentum"}[name]
    if values.ndim not in (1, 2) or 0 in values.shape or values.shape[-1] != steps:
        raise ValueError(
            f"expected a schedule's {name} [T] or [R, T] of {steps} steps, got {tuple(values.shape)}: give every step "
            f"one {one}"
        )
    if not values.is_floating_point() or not bool(values.isfinite().all()):
        found = "NaN or infinity" if values.is_floating_point() else str(values.dtype)
        raise ValueError(
            f"expected finite floating-point {name} in a schedule, got {found}: take those of a run that did not "
            "diverge"
        )
