"""Keyed randomness: every draw is a pure function of (seed, purpose, step, student index).

No generator state exists anywhere in the package, so resuming needs none, and a student's draws are the same whatever
batch of students it is computed in.
"""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

import fastdistill_kernels


class Purpose(IntEnum):
    """What a draw is for; each purpose is its own stream. Numbers are part of the reproducibility contract."""

    WEIGHTS = 0
    REAL_BATCH = 1
    AUGMENTATION = 2
    MINIBATCH = 3
    PIXELS = 4
    PRETRAINED = 5
    VALIDATION_SPLIT = 6
    EVALUATION_WEIGHTS = 7
    EVALUATION_MINIBATCH = 8
    EVALUATION_AUGMENTATION = 9
    RANDOM_REAL = 10
    TRAINING_AUGMENTATION = 11
    TEST_SPLIT = 12
    NORM_STATISTICS = 13
    AUGMENTATION_NOISE = 14
    EXPERT_WEIGHTS = 15
    EXPERT_MINIBATCH = 16
    EXPERT_AUGMENTATION = 17
    WINDOW = 18
    EXPERT_CHOICE = 19
    EIGENVECTOR = 20
    GENERATOR = 21
    NOISE = 22
    SAMPLE = 23
    CANDIDATE_SETS = 24
    CLASS_PARTS = 25
    CLUSTERS = 26
    TIES = 27
    FEATURE_WEIGHTS = 28
    FEATURE_MINIBATCH = 29


def uniform(seed: int, purpose: Purpose, step: int, students: Tensor, count: int) -> Tensor:
    """Uniform numbers in ``[0, 1)`` for each student.

    Args:
        seed: the run's seed.
        purpose: the stream.
        step: outer step, or whatever counts the draws of this purpose.
        students: global student indices, int64 ``[S]``.
        count: numbers per student.

    Returns:
        float32 ``[S, count]`` on the device of ``students``.
    """
    return fastdistill_kernels.uniform(seed, int(purpose), step, students, count)


def normal(seed: int, purpose: Purpose, step: int, students: Tensor, count: int) -> Tensor:
    """Standard normal numbers for each student; arguments and result as `uniform`."""
    return fastdistill_kernels.normal(seed, int(purpose), step, students, count)
