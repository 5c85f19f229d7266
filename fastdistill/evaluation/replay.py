"""Training students by the very steps and rates that images were learned with, as unrolled methods need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD, Adam, InnerOptimizer, Momentum, Setting
from fastdistill.students.training import Augment, Fetch, grouped
from fastdistill.synthetic.schedule import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What is replayed; a `Schedule` whose rows of a run become those of students.

    Attributes:
        rates: learning rate of each step, ``[T]``, or ``[S, T]`` for rates of their own (``[R, T]`` before `spread`).
        order: indices of the images of each step, int64 ``[T, n]``.
        optimizer: ``sgd``, ``momentum`` or ``adam``.
        momenta: momentum of each step, ``β₁`` of Adam, like the rates; None for ``sgd``.
        decay: weight decay, added to the gradient.
        augmentation: DSA strategy that is drawn anew for every image in every step, or ``none``.
        align_corners: of that strategy's sampling grid.
    """

    rates: Tensor
    order: Tensor
    optimizer: str = "sgd"
    momenta: Tensor | None = None
    decay: float = 0.0
    augmentation: str = "none"
    align_corners: bool = True

    @classmethod
    def of(cls, schedule: Schedule) -> Replay:
        """The replay of a schedule."""
        return cls(
            rates=schedule.rates,
            order=schedule.images,
            optimizer=schedule.optimizer,
            momenta=schedule.momenta,
            decay=schedule.decay,
            augmentation=schedule.augmentation,
            align_corners=schedule.align_corners,
        )

    @property
    def steps(self) -> int:
        """``T``."""
        return self.order.shape[0]

    def spread(self, students: int) -> Replay:
        """The replay of ``students`` students for each run's rates and momenta."""
        momenta = None if self.momenta is None else _spread(self.momenta, students)
        return replace(self, rates=_spread(self.rates, students), momenta=momenta)


def replay_students(
    primitive: Functional,
    weights: Tensor,
    buffers: dict[str, Tensor],
    fetch: Fetch,
    replay: Replay,
    *,
    augment: Augment | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Trains ``S`` students step by step, by the very arithmetic of unrolled training.

    With plain SGD that is ``θ_{t+1} = θ_t − η_t ∇L(θ_t, x_{order[t]})``; momentum and Adam are those of
    `derivatives.inner`, from a state of zeros.

    Args:
        primitive: the derivative of the architecture.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``.
        fetch: maps image indices ``[n]`` to images ``[S, n, D, H, W]`` (or ``[n, D, H, W]``, shared) and classes
            ``[n]`` or soft rows ``[S, n, C]`` (or ``[n, C]``).
        replay: steps and rates.
        augment: maps images and the step's number to augmented images ``[S, n, D, H, W]``, where the replay has an
            augmentation.
        progress: called with the number of every finished step.

    Returns:
        New weights and buffers.
    """
    order, optimizer = replay.order.to(weights.device), _optimizer(replay)
    rates = _per_student(replay.rates, weights)
    momenta = torch.zeros_like(rates) if replay.momenta is None else _per_student(replay.momenta, weights)
    state = weights.new_zeros(optimizer.slots, *weights.shape)
    for step in range(replay.steps):
        images, labels = fetch(order[step])
        if augment is not None:
            images = augment(images, step)
        result = primitive.value_and_gradient(weights, buffers, *grouped(images, labels), training=True)
        buffers = result.buffers
        setting = Setting(rates[:, step], momenta[:, step], step)
        weights, state = optimizer.step(weights, state, result.gradient[:, 0], setting)
        if progress is not None:
            progress(step + 1)
    return weights, buffers


def _spread(values: Tensor, students: int) -> Tensor:
    return values if values.ndim == 1 else values.repeat_interleave(students, dim=0)


def _per_student(values: Tensor, weights: Tensor) -> Tensor:
    """``[S, T]`` of ``[T]`` or ``[S, T]``."""
    return values.to(weights).expand(weights.shape[0], -1)


def _optimizer(replay: Replay) -> InnerOptimizer:
    kinds: dict[str, type[SGD] | type[Momentum] | type[Adam]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
    return kinds[replay.optimizer](decay=replay.decay)
