"""Training students by the very steps and rates that images were learned with, as unrolled methods need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fastdistill.derivatives.functional import Functional
from fastdistill.students.training import Fetch


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """What is replayed.

    Attributes:
        rates: learning rate of each step, ``[T]``, or ``[S, T]`` for rates of their own (``[R, T]`` before `spread`).
        order: indices of the images of each step, int64 ``[T, n]``.
    """

    rates: Tensor
    order: Tensor

    @property
    def steps(self) -> int:
        """``T``."""
        return self.order.shape[0]

    def spread(self, students: int) -> Replay:
        """The replay of ``students`` students for each run's rates."""
        if self.rates.ndim == 1:
            return self
        return replace(self, rates=self.rates.repeat_interleave(students, dim=0))


def replay_students(
    primitive: Functional,
    weights: Tensor,
    buffers: dict[str, Tensor],
    fetch: Fetch,
    replay: Replay,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Trains ``S`` students by plain SGD, step by step: ``θ_{t+1} = θ_t − η_t ∇L(θ_t, x_{order[t]})``.

    Args:
        primitive: the derivative of the architecture.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``.
        fetch: maps image indices ``[n]`` to images ``[S, n, D, H, W]`` (or ``[n, D, H, W]``, shared) and labels
            ``[n]``.
        replay: steps and rates.
        progress: called with the number of every finished step.

    Returns:
        New weights and buffers.
    """
    order = replay.order.to(weights.device)
    rates = replay.rates.to(weights).reshape(-1, replay.steps)
    for step in range(replay.steps):
        images, labels = fetch(order[step])
        group = images.ndim - 4  # a group axis of one, right behind the student axis if there is one
        result = primitive.value_and_gradient(
            weights, buffers, images.unsqueeze(group), labels.unsqueeze(0), training=True
        )
        buffers = result.buffers
        weights = weights - rates[:, step, None] * result.gradient[:, 0]
        if progress is not None:
            progress(step + 1)
    return weights, buffers
