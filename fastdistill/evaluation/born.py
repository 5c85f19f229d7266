"""The students that images with steps of their own are replayed on, where they were not learned for fresh ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.evaluation.evaluate import Born
from fastdistill.students.ensemble import Ensemble

_HELD_OUT = 1 << 30  # no run has that many steps, so its pool is drawn from anew


def born_for(config: RunConfig, ensemble: Ensemble) -> Born | None:
    """What gives a run's judges their weights: the very fixed students, or others of the very pool.

    Args:
        config: the run; its initialization, runs and students count.
        ensemble: of its students; its seed must be the run's where they are fixed.

    Returns:
        A function of student indices ``[R·S']``, as many for every run in turn, to weights and buffers; None where
        images were learned for fresh students.
    """
    kind = config.student.initialization
    if kind == "fresh":
        return None

    def born(students: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if kind == "fixed":
            # those of the run in turn: its first student that is judged is its first student again
            place, per_run = torch.arange(len(students), device=students.device), len(students) // config.runs
            students = place // per_run * config.students + place % per_run % config.students
        drawn = ensemble.draw(_HELD_OUT, students)
        return drawn.weights, drawn.buffers

    return born
