"""What a step's students say about what is learned: every method's answer to the outer loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdistill.students.ensemble import Students


@dataclass(frozen=True, kw_only=True)
class OuterGradient:
    """Gradients in everything that is learned, with what they were averaged from.

    Attributes:
        gradients: by name, shaped as what is learned ``[R, ...]``: the mean over every run's finite students; zero for
            a run without any.
        loss: of every student ``[R·S]``.
        finite: whether a student's loss and derivatives are finite, bool ``[R·S]``; the others count for nothing.
        values: further figures of the step to log, scalars on the device.
        carried: what the students keep for the next step, name to ``[R·S, ...]``; replaces `Students.carried`.
    """

    gradients: dict[str, Tensor]
    loss: Tensor
    finite: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)


Cotangents = Callable[[Students, int], tuple[dict[str, Tensor], Tensor]]


def gathered(
    learned: Mapping[str, Tensor], students: Students, chunk: int, per_run: int, cotangents: Cotangents
) -> OuterGradient:
    """The gradients of all students from those of chunks of them.

    Args:
        learned: by name ``[R, ...]``.
        students: of all runs ``[R·S]``.
        chunk: most students at once.
        per_run: ``S``.
        cotangents: maps some students and the place of the first to the derivatives of each one's own outer loss, by
            the names of ``learned``, ``[S', ...]``, and that loss ``[S']``.
    """
    totals = {name: torch.zeros_like(value) for name, value in learned.items()}
    losses, finite = [], []
    for start in range(0, len(students.indices), chunk):
        found, loss = cotangents(students.some(slice(start, start + chunk)), start)
        sums = torch.stack([value.flatten(1).sum(1) for value in found.values()])
        sound = loss.isfinite() & sums.isfinite().all(0)  # a sum is finite where its terms are
        for name, value in found.items():
            totals[name] += summed_per_run(masked(value, sound), start, totals[name].shape[0], per_run)
        losses.append(loss)
        finite.append(sound)
    whole = torch.cat(finite)
    means = {name: per_finite_student(total, whole, per_run) for name, total in totals.items()}
    return OuterGradient(gradients=means, loss=torch.cat(losses), finite=whole)


def pulled(
    images: Tensor,
    students: Students,
    chunk: int,
    per_run: int,
    matched: Callable[[Students, int], tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]],
) -> OuterGradient:
    """The gradient in images that students see through a view of their own, from chunks of students.

    Args:
        images: ``[R, C, M, D, H, W]``.
        students: of all runs ``[R·S]``.
        chunk: most students at once.
        per_run: ``S``.
        matched: maps some students and the place of the first to their losses ``[S']``, the derivative of each one's
            own loss in what it saw ``[S', C, M, D, H, W]``, and what takes such derivatives to their sum by run.
    """
    total, losses, finite = torch.zeros_like(images), [], []
    for start in range(0, len(students.indices), chunk):
        loss, cotangent, pull = matched(students.some(slice(start, start + chunk)), start)
        sound = loss.isfinite() & cotangent.flatten(1).sum(1).isfinite()  # a sum is finite where its terms are
        total += pull(masked(cotangent, sound))
        losses.append(loss)
        finite.append(sound)
    whole = torch.cat(finite)
    mean = per_finite_student(total, whole, per_run)
    return OuterGradient(gradients={"images": mean}, loss=torch.cat(losses), finite=whole)


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
