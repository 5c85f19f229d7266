"""What unrolled training runs and what it keeps: its steps, and the weights and states along the way.

Shapes: ``θ [S, P]``; optimiser state ``[K, S, P]``; learning rates and momenta ``[T, S]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdistill.derivatives.inner import InnerOptimizer, Setting


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Inner steps to run.

    Attributes:
        optimizer: one of `inner`.
        rates: learning rates ``[T, S]``.
        momenta: momenta of `Momentum`, ``β₁`` of `Adam`, ``[T, S]``; None for `SGD`.
        first: number of the first step, counted from the students' birth; steps and batches are numbered on from it.

    Raises:
        ValueError: for rates that are not a matrix, or momenta missing, superfluous or of another shape.
    """

    optimizer: InnerOptimizer
    rates: Tensor
    momenta: Tensor | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.rates.ndim != 2:
            raise ValueError(
                f"expected learning rates [T, S], got {tuple(self.rates.shape)}: expand them over steps and students"
            )
        found = None if self.momenta is None else tuple(self.momenta.shape)
        expected = tuple(self.rates.shape) if self.optimizer.slots else None
        if found != expected:
            raise ValueError(
                f"expected momenta {expected} for {type(self.optimizer).__name__}, got {found}: give one per step and "
                "student to an optimiser with a state, and none to one without"
            )

    def __len__(self) -> int:
        return self.rates.shape[0]

    def split(self, count: int) -> tuple[Steps, Steps]:
        """The first ``count`` steps and the others, numbered on: what runs before a window, and the window.

        Raises:
            ValueError: for a count below 0 or above ``T``.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"expected a count of 0 to {len(self)} steps, got {count}: split inside the steps")
        parts = []
        for part in (slice(0, count), slice(count, len(self))):
            momenta = None if self.momenta is None else self.momenta[part]
            first = self.first + part.start
            parts.append(Steps(optimizer=self.optimizer, rates=self.rates[part], momenta=momenta, first=first))
        return parts[0], parts[1]

    def setting(self, step: int) -> Setting:
        """What the optimiser is told in a step, counted from 0 here."""
        rate = self.rates[step].detach()
        momentum = torch.zeros_like(rate) if self.momenta is None else self.momenta[step].detach()
        return Setting(rate, momentum, self.first + step)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Trained students and what their adjoint needs.

    Attributes:
        steps: the steps that were run.
        keep: every how many steps weights and state are stored; the others are run again by the adjoint.
        weights: the trained ``θ_T [S, P]``.
        state: the optimiser's state behind them ``[K, S, P]``.
        losses: training loss of every step, before it, ``[T, S]``.
        stored_weights: ``θ_0, θ_k, θ_2k, …`` ``[ceil(T / keep), S, P]``, or narrow their way from ``origin``.
        stored_states: the states before these steps ``[ceil(T / keep), K, S, P]``.
        origin: ``θ_0 [S, P]`` where the weights are stored narrow, else None.
        stored_buffers: values of the buffers before every step and after the last, name to ``[T + 1, S, ...]``.
    """

    steps: Steps
    keep: int
    weights: Tensor
    state: Tensor
    losses: Tensor
    stored_weights: Tensor
    stored_states: Tensor
    origin: Tensor | None
    stored_buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers ``[S, ...]`` of the trained students."""
        return self.buffers_at(len(self.steps))

    def buffers_at(self, step: int) -> dict[str, Tensor]:
        """Buffers ``[S, ...]`` before a step; behind the last, those after it."""
        return {name: stored[step] for name, stored in self.stored_buffers.items()}

    def weights_at(self, row: int) -> Tensor:
        """Weights ``[S, P]`` before step ``row · keep``."""
        stored = self.stored_weights[row]
        return stored if self.origin is None else self.origin + stored

    def state_at(self, row: int) -> Tensor:
        """State ``[K, S, P]`` before step ``row · keep``; behind the last row, the state after the last step."""
        return self.state if row == self.stored_states.shape[0] else self.stored_states[row]


def trajectory_bytes(
    optimizer: InnerOptimizer,
    steps: int,
    students: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    keep: int = 1,
    storage: torch.dtype | None = None,
) -> int:
    """Bytes that a `Trajectory` holds, and with ``keep > 1`` the steps that its adjoint runs again and holds.

    Buffers, a few numbers a channel, are not counted.

    Args:
        optimizer: the inner optimiser.
        steps: ``T``.
        students: ``S``.
        size: ``P``, padding included.
        dtype: of the weights.
        keep: as for `unroll`.
        storage: as for `unroll`.
    """
    narrow = storage is not None and storage != dtype
    rows, again = -(-steps // keep), min(keep, steps) - 1
    width = storage.itemsize if storage is not None else dtype.itemsize
    whole = (1 + optimizer.slots) * (1 + again) + optimizer.slots * rows + narrow
    return students * (size * (whole * dtype.itemsize + rows * width) + steps * dtype.itemsize)
