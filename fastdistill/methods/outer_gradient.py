"""What a step's students say about what is learned: every method's answer to the outer loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OuterGradient:
    """Gradients in everything that is learned, with what they were averaged from.

    Attributes:
        gradients: by name, shaped as what is learned ``[R, ...]``: the mean over every run's finite students; zero for
            a run without any.
        loss: of every student ``[R·S]``.
        finite: whether a student's loss and derivatives are finite, bool ``[R·S]``; the others count for nothing.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    finite: Tensor


def per_finite_student(total: Tensor, finite: Tensor, students: int) -> Tensor:
    """Sums over finite students ``[R, ...]`` as means, from the flags ``[R·S]`` and ``S``."""
    count = finite.view(-1, students).sum(1).clamp(min=1).view(-1, *[1] * (total.ndim - 1))
    mean: Tensor = total / count
    return mean


def masked(cotangent: Tensor, finite: Tensor) -> Tensor:
    """Cotangents ``[S, ...]``, zero for non-finite students; masked before a pull-back, a NaN reaches nothing."""
    return torch.where(finite.view(-1, *[1] * (cotangent.ndim - 1)), cotangent, 0)


def runs_of(start: int, count: int, per_run: int) -> list[tuple[int, int]]:
    """How many of the students ``start`` to ``start + count − 1`` belong to each run they touch."""
    runs: list[tuple[int, int]] = []
    while count:
        here = min(count, per_run - start % per_run)
        runs.append((start // per_run, here))
        start, count = start + here, count - here
    return runs


def summed_per_run(values: Tensor, start: int, runs: int, students: int) -> Tensor:
    """Sums of the students ``start`` to ``start + S' − 1``, ``[S', ...]``, over each of ``R`` runs: ``[R, ...]``."""
    total = values.new_zeros(runs, *values.shape[1:])
    done = 0
    for run, count in runs_of(start, values.shape[0], students):
        total[run] += values[done : done + count].sum(0)
        done += count
    return total
