"""One outer step: students give the gradient of what is learned, it moves, the students train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fastdistill.loop.descent import Descent, Named
from fastdistill.methods.outer_gradient import OuterGradient
from fastdistill.phases import FRESH, UPDATE, phase
from fastdistill.students.ensemble import Students


class Method(Protocol):
    """What the outer loop needs of a distillation method."""

    def fresh(self, step: int) -> Students:
        """Students that begin at a step."""

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """The students as they give the gradient: with statistics of real images, or trained to a minimum."""

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradients in what is learned, of the students that are finite."""

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """Students after training on what was just learned, or None where new ones begin."""

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where student number ``student`` of these, as they began a step, stopped being finite; empty when unknown."""


@runtime_checkable
class Warns(Protocol):
    """A method that has a view of its figures."""

    def warning(self, values: Mapping[str, float]) -> str | None:
        """What is wrong with the method's settings by the values of a log line, as one sentence; None for nothing."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that outlives an outer step, beside the selection of the best images.

    Attributes:
        step: outer steps done.
        learned: ``φ`` by name, a leading run axis each: ``images [R, C, M, D, H, W]``, and what else a method learns.
        moments: of the outer optimiser, by name.
        students: those that the next step continues with; None where fresh ones begin.
    """

    step: int
    learned: Named
    moments: Named
    students: Students | None = None

    @property
    def images(self) -> Tensor:
        """The synthetic images ``[R, C, M, D, H, W]``, where they are learned pixel by pixel."""
        return self.learned["images"]

    @property
    def runs(self) -> int:
        """``R``."""
        return next(iter(self.learned.values())).shape[0]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.learned.values())).device

    def to(self, device: torch.device) -> State:
        """The same state on a device."""
        return State(
            step=self.step,
            learned={name: value.to(device) for name, value in self.learned.items()},
            moments={name: value.to(device) for name, value in self.moments.items()},
            students=self.students and self.students.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Best:
    """What validation accuracy has selected so far, for every run by itself.

    Attributes:
        learned: ``φ`` by name, a leading run axis each.
        accuracy: its mean validation accuracies, ``R`` values.
        step: outer steps done when it was selected, ``R`` values.
    """

    learned: Named
    accuracy: tuple[float, ...]
    step: tuple[int, ...]

    def to(self, device: torch.device) -> Best:
        """The same selection on a device."""
        return replace(self, learned={name: value.to(device) for name, value in self.learned.items()})

    @classmethod
    def choose(cls, before: Best | None, state: State, accuracy: tuple[float, ...]) -> Best:
        """What is best after a selection at ``state`` that found these accuracies, ``R`` values."""
        if before is None:
            return cls(learned=state.learned, accuracy=accuracy, step=(state.step,) * len(accuracy))
        better = [new > old for new, old in zip(accuracy, before.accuracy, strict=True)]
        mask = torch.tensor(better, device=state.device)
        return cls(
            learned={
                name: torch.where(mask.view(-1, *[1] * (value.ndim - 1)), value, before.learned[name])
                for name, value in state.learned.items()
            },
            accuracy=tuple(map(max, accuracy, before.accuracy)),
            step=tuple(state.step if wins else old for wins, old in zip(better, before.step, strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one outer step found, all on the device.

    Attributes:
        values: scalars ``outer/loss``, ``outer/loss_std`` (over the finite students), ``outer/grad_norm`` (of the
            images, or of a generator's parameters) and ``outer/masked``, the number of students that were not finite;
            and what the method adds.
        finite: bool ``[R·S]``.
        sound: bool scalar; False where too many students of a run, or the updated values of anything learned, were not
            finite. What is learned then stayed as it was.
    """

    values: dict[str, Tensor]
    finite: Tensor
    sound: Tensor


def outer_step(method: Method, descent: Descent, state: State, *, masked_share: float = 0.0) -> tuple[State, Step]:
    """Advances the state by one update of what is learned, without waiting for the device.

    Args:
        method: gives the gradient.
        descent: the outer optimiser.
        state: before the step.
        masked_share: largest share of a run's students that may be non-finite for the update to take place.
    """
    students = state.students
    if students is None:
        with phase(FRESH):
            students = method.fresh(state.step)
    students = method.prepare(state.learned, students, state.step)
    found = method.gradient(state.learned, students, state.step)
    finite, count = found.finite, found.finite.sum()
    with phase(UPDATE):
        learned, moments = descent.step(state.learned, found.gradients, state.moments, state.step)
    # the share is of each run's own students, so that a run fares among others as it would alone
    per_run = finite.view(state.runs, -1)
    few = (per_run.shape[1] - per_run.sum(1) <= masked_share * per_run.shape[1]).all()
    sums = torch.stack([value.sum() for value in learned.values()])  # a sum is finite where its terms are
    sound = few & sums.isfinite().all()
    learned = {name: torch.where(sound, value, state.learned[name]) for name, value in learned.items()}
    moments = {name: torch.where(sound, value, state.moments[name]) for name, value in moments.items()}
    values = {
        "outer/loss": (mean := torch.where(finite, found.loss, 0).sum() / count),
        "outer/loss_std": (torch.where(finite, found.loss - mean, 0).square().sum() / count).sqrt(),
        "outer/grad_norm": _length(found.gradients),
        "outer/masked": len(finite) - count,
        **found.values,
    }
    students = replace(students, carried=found.carried)
    following = method.advance(learned, students, state.step)
    after = State(step=state.step + 1, learned=learned, moments=moments, students=following)
    return after, Step(values=values, finite=finite, sound=sound)


def _length(gradients: Mapping[str, Tensor]) -> Tensor:
    """Of the gradient in the images; in all that is learned, where a generator makes these."""
    chosen = [gradients["images"]] if "images" in gradients else list(gradients.values())
    length: Tensor = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in chosen]))
    return length


def outer_steps(
    method: Method, descent: Descent, state: State, until: int, *, masked_share: float = 0.0
) -> Iterator[tuple[State, Step]]:
    """Yields the state and findings of every outer step up to step ``until``."""
    while state.step < until:
        state, step = outer_step(method, descent, state, masked_share=masked_share)
        yield state, step
