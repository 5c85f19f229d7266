"""How what is learned moves along its gradient: the outer optimisers, as pure functions of named tensors.

Everything that is learned has a leading run axis; names are those of `outer.State.learned`. The moments are part of
the state, so a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Protocol

import torch
from torch import Tensor

Named = dict[str, Tensor]


class Descent(Protocol):
    """An outer optimiser."""

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """The moments before the first step."""

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """What is learned and the moments after step ``number``, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """SGD with momentum: ``m' = μ m + g``, ``φ' = φ − η m'``.

    Attributes:
        rates: ``η`` by name.
        momentum: ``μ``.
    """

    rates: Mapping[str, float]
    momentum: float

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """See `Descent`."""
        return {f"{name}.velocity": torch.zeros_like(value) for name, value in learned.items()}

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """See `Descent`."""
        velocity = {name: self.momentum * moments[f"{name}.velocity"] + gradients[name] for name in learned}
        moved = {name: value - self.rates[name] * velocity[name] for name, value in learned.items()}
        return moved, {f"{name}.velocity": value for name, value in velocity.items()}


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015), bias-corrected, with a rate that falls by steps, along a cosine, or both.

    Attributes:
        rate: at first.
        beta1: of the mean.
        beta2: of the mean square.
        epsilon: added to the root.
        decay_every: steps after which the rate is multiplied by ``decay``; 0 for never.
        decay: that factor.
        final_share: share of the rate that half a cosine ends at behind the last step; 1 for no cosine.
        steps: of the whole run, which a cosine needs.
    """

    rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay_every: int = 0
    decay: float = 1.0
    final_share: float = 1.0
    steps: int = 0

    def rate_at(self, number: int) -> float:
        """The rate of a step, ``η d^⌊n/k⌋ (f + (1 − f)(1 + cos(π n / steps)) / 2)`` with the final share ``f``."""
        rate = self.rate * (self.decay ** (number // self.decay_every) if self.decay_every else 1.0)
        if self.final_share == 1:
            return rate
        return rate * (self.final_share + (1 - self.final_share) * (1 + cos(pi * number / self.steps)) / 2)

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """See `Descent`."""
        return {
            f"{name}.{moment}": torch.zeros_like(learned[name]) for name in learned for moment in ("mean", "square")
        }

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """See `Descent`."""
        rate, count = self.rate_at(number), number + 1
        moved, after = {}, {}
        for name, value in learned.items():
            gradient = gradients[name]
            mean = self.beta1 * moments[f"{name}.mean"] + (1 - self.beta1) * gradient
            square = self.beta2 * moments[f"{name}.square"] + (1 - self.beta2) * gradient * gradient
            root = (square / (1 - self.beta2**count)).sqrt() + self.epsilon
            moved[name] = value - rate / (1 - self.beta1**count) * mean / root
            after[f"{name}.mean"], after[f"{name}.square"] = mean, square
        return moved, after


@dataclass(frozen=True, kw_only=True)
class Parted:
    """Two optimisers, each for a part of what is learned.

    Attributes:
        own: of the names that ``belongs`` takes.
        others: of the rest.
        belongs: whether a name is ``own``'s.
    """

    own: Descent
    others: Descent
    belongs: Callable[[str], bool]

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """See `Descent`."""
        own, others = self._parts(learned)
        return {**self.own.start(own), **self.others.start(others)}

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """See `Descent`."""
        moved: Named = {}
        after: Named = {}
        for descent, part in zip((self.own, self.others), self._parts(learned), strict=True):
            found, kept = descent.step(part, gradients, moments, number)
            moved |= found
            after |= kept
        return {name: moved[name] for name in learned}, after

    def _parts(self, learned: Mapping[str, Tensor]) -> tuple[Named, Named]:
        own = {name: value for name, value in learned.items() if self.belongs(name)}
        return own, {name: value for name, value in learned.items() if name not in own}
