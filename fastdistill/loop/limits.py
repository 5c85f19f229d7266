"""Bounds of an outer optimiser: on the gradient that it is given and on the values that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdistill.loop.descent import Descent, Named

_AVERAGE = "images.average_norm"
_DECAY = 0.9  # of the running average, as in RaT-BPTT's code


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A descent whose steps are bounded.

    Attributes:
        descent: what moves.
        factor: longest gradient of a run's images, as a multiple of the running average of its length (Feng et al.
            2024: 2); 0 for any. As in their code the average has taken in the very gradient that it bounds.
        norm: longest gradient of a run's images; 0 for any.
        floors: lowest values by name; what falls below is put there.
    """

    descent: Descent
    factor: float = 0.0
    norm: float = 0.0
    floors: Mapping[str, float] = field(default_factory=dict)

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """See `Descent`."""
        moments = self.descent.start(learned)
        if self.factor:
            moments[_AVERAGE] = learned["images"].new_zeros(learned["images"].shape[0])
        return moments

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """See `Descent`."""
        gradients, kept = dict(gradients), {}
        if self.norm:
            length = _lengths(gradients["images"])
            gradients["images"] = _shortened(gradients["images"], length, torch.full_like(length, self.norm))
        if self.factor:
            length = _lengths(gradients["images"])
            # the first length is the first average: a zero to begin with would stop the first steps
            average = _DECAY * moments[_AVERAGE] + (1 - _DECAY) * length if number else length
            gradients["images"] = _shortened(gradients["images"], length, self.factor * average)
            kept[_AVERAGE] = average
        moved, after = self.descent.step(learned, gradients, moments, number)
        for name, floor in self.floors.items():
            moved[name] = moved[name].clamp(min=floor)
        return moved, {**after, **kept}


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A descent that takes no gradient longer than a bound, measured over all its tensors together.

    Attributes:
        descent: what moves.
        norm: longest gradient of a run; 0 for any.
    """

    descent: Descent
    norm: float

    def start(self, learned: Mapping[str, Tensor]) -> Named:
        """See `Descent`."""
        return self.descent.start(learned)

    def step(
        self, learned: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Mapping[str, Tensor], number: int
    ) -> tuple[Named, Named]:
        """See `Descent`."""
        if self.norm:
            length = torch.linalg.vector_norm(torch.stack([_lengths(gradients[name]) for name in learned]), dim=0)
            longest = torch.full_like(length, self.norm)
            gradients = {name: _shortened(gradients[name], length, longest) for name in learned}
        return self.descent.step(learned, gradients, moments, number)


def _lengths(gradient: Tensor) -> Tensor:
    """Of each run, ``[R]``."""
    lengths: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return lengths


def _shortened(gradient: Tensor, length: Tensor, longest: Tensor) -> Tensor:
    """Each run's gradient, at most as long as given ``[R]``; one that is short enough keeps its bits."""
    factors = torch.where(length > longest, longest / length, 1)
    return gradient * factors.view(-1, *[1] * (gradient.ndim - 1))
