"""One outer step: students give the images' gradient, the images move, the students train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastdistill.config import MatchingConfig
from fastdistill.methods.image_gradient import ImageGradient
from fastdistill.students.ensemble import Students


class Method(Protocol):
    """What the outer loop needs of a distillation method."""

    def fresh(self, step: int) -> Students:
        """Students that begin at a step."""

    def prepare(self, students: Students, step: int) -> Students:
        """The students as they are matched at a step, such as with statistics of real images."""

    def gradient(self, images: Tensor, students: Students, step: int) -> ImageGradient:
        """Gradient in the images ``[R, C, M, D, H, W]``, of the students that are finite."""

    def advance(self, images: Tensor, students: Students, step: int) -> Students | None:
        """Students after training on the updated images, or None where new ones begin."""

    def locate(self, images: Tensor, students: Students, step: int, student: int) -> str:
        """Where student number ``student`` of these stopped being finite; empty when not found."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that outlives an outer step, beside the selection of the best images.

    Attributes:
        step: outer steps done.
        images: ``φ [R, C, M, D, H, W]``.
        velocity: momentum of the images' SGD, same shape.
        students: those that the next step continues with; None where fresh ones begin.
    """

    step: int
    images: Tensor
    velocity: Tensor
    students: Students | None = None

    def to(self, device: torch.device) -> State:
        """The same state on a device."""
        return State(
            step=self.step,
            images=self.images.to(device),
            velocity=self.velocity.to(device),
            students=self.students and self.students.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Best:
    """The images that validation accuracy has selected so far, for every run by itself.

    Attributes:
        images: ``φ [R, C, M, D, H, W]``.
        accuracy: their mean validation accuracies, ``R`` values.
        step: outer steps done when they were selected, ``R`` values.
    """

    images: Tensor
    accuracy: tuple[float, ...]
    step: tuple[int, ...]

    def to(self, device: torch.device) -> Best:
        """The same selection on a device."""
        return replace(self, images=self.images.to(device))

    @classmethod
    def choose(cls, before: Best | None, state: State, accuracy: tuple[float, ...]) -> Best:
        """What is best after a selection at ``state`` that found these accuracies, ``R`` values."""
        if before is None:
            return cls(images=state.images, accuracy=accuracy, step=(state.step,) * len(accuracy))
        better = [new > old for new, old in zip(accuracy, before.accuracy, strict=True)]
        mask = torch.tensor(better, device=state.images.device).view(-1, *[1] * (state.images.ndim - 1))
        return cls(
            images=torch.where(mask, state.images, before.images),
            accuracy=tuple(map(max, accuracy, before.accuracy)),
            step=tuple(state.step if wins else old for wins, old in zip(better, before.step, strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one outer step found, all on the device.

    Attributes:
        values: scalars ``outer/loss``, ``outer/loss_std`` (over the finite students), ``outer/grad_norm`` and
            ``outer/masked``, the number of students that were not finite.
        finite: bool ``[R·S]``.
        sound: bool scalar; False where too many students of a run, or the updated images, were not finite. The images
            then stayed as they were.
    """

    values: dict[str, Tensor]
    finite: Tensor
    sound: Tensor


def outer_step(
    method: Method, state: State, *, learning_rate: float, momentum: float, masked_share: float = 0.0
) -> tuple[State, Step]:
    """Advances the state by one update of the images by SGD with momentum, without waiting for the device.

    Args:
        method: gives the gradient.
        state: before the step.
        learning_rate: of the images.
        momentum: of the images.
        masked_share: largest share of a run's students that may be non-finite for the update to take place.
    """
    students = method.prepare(state.students or method.fresh(state.step), state.step)
    found = method.gradient(state.images, students, state.step)
    finite, count = found.finite, found.finite.sum()
    velocity = momentum * state.velocity + found.gradient
    images = state.images - learning_rate * velocity
    # the share is of each run's own students, so that a run fares among others as it would alone
    per_run = finite.view(state.images.shape[0], -1)
    few = (per_run.shape[1] - per_run.sum(1) <= masked_share * per_run.shape[1]).all()
    sound = few & images.sum().isfinite()  # a sum is finite where its terms are
    images = torch.where(sound, images, state.images)
    values = {
        "outer/loss": (mean := torch.where(finite, found.loss, 0).sum() / count),
        "outer/loss_std": (torch.where(finite, found.loss - mean, 0).square().sum() / count).sqrt(),
        "outer/grad_norm": torch.linalg.vector_norm(found.gradient),
        "outer/masked": len(finite) - count,
    }
    following = method.advance(images, students, state.step)
    after = replace(
        state,
        step=state.step + 1,
        images=images,
        velocity=torch.where(sound, velocity, state.velocity),
        students=following,
    )
    return after, Step(values=values, finite=finite, sound=sound)


def outer_steps(
    method: Method, state: State, config: MatchingConfig, until: int, *, masked_share: float = 0.0
) -> Iterator[tuple[State, Step]]:
    """Yields the state and findings of every outer step up to step ``until``."""
    while state.step < until:
        state, step = outer_step(
            method,
            state,
            learning_rate=config.image_learning_rate,
            momentum=config.image_momentum,
            masked_share=masked_share,
        )
        yield state, step
