"""Experts that nobody trained: to measure a step of trajectory matching where there are none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.draws import Purpose
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods.trajectory import last_epoch
from fastdistill.students.ensemble import Ensemble

_PACE = 0.01  # how much longer an epoch makes the weights, as a share of the first ones


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomExperts:
    """One expert whose weights get longer with every epoch, so that no start is its own target; see `Experts`.

    Attributes:
        weights: those it begins with, ``[P]``, drawn as a student's.
        epochs: ``K``, as many as are asked for.
        count: ``E``.
    """

    weights: Tensor
    epochs: int
    count: int = 1

    @classmethod
    def of(cls, config: RunConfig, shape: tuple[int, int, int], classes: int) -> RandomExperts:
        """One of the student and the length that a run of trajectory matching wants."""
        assert isinstance(config.method, TrajectoryConfig)
        ensemble = Ensemble(config.student, shape, classes, seed=config.seed, dtype=torch.float32)
        drawn = ensemble.draw(0, torch.zeros(1, dtype=torch.int64), Purpose.EXPERT_WEIGHTS)
        return cls(weights=drawn.weights[0], epochs=last_epoch(config.method))

    def at(self, experts: Tensor, epochs: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights ``[S, P]`` after epochs ``[S]``."""
        return (self.weights.to(device) * (1 + _PACE * epochs.to(device))[:, None]).to(dtype)
