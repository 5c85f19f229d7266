"""One outer step: students give the images' gradient, the images move, the students train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastdistill.config import MatchingConfig
from fastdistill.students.ensemble import Students


class Method(Protocol):
    """What the outer loop needs of a distillation method."""

    def fresh(self, step: int) -> Students:
        """Students that begin at a step."""

    def prepare(self, students: Students, step: int) -> Students:
        """The students as they are matched at a step, such as with statistics of real images."""

    def gradient(self, images: Tensor, students: Students, step: int) -> tuple[Tensor, Tensor]:
        """Gradient in the images ``[R, C, M, D, H, W]`` and loss of every student ``[S]``."""

    def advance(self, images: Tensor, students: Students, step: int) -> Students | None:
        """Students after training on the updated images, or None where new ones begin."""


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


def outer_step(
    method: Method, state: State, *, learning_rate: float, momentum: float
) -> tuple[State, dict[str, Tensor]]:
    """Advances the state by one update of the images by SGD with momentum.

    Returns:
        The new state, and device scalars ``outer/loss``, ``outer/loss_std`` (over students) and ``outer/grad_norm``.
    """
    students = method.prepare(state.students or method.fresh(state.step), state.step)
    gradient, loss = method.gradient(state.images, students, state.step)
    velocity = momentum * state.velocity + gradient
    images = state.images - learning_rate * velocity
    metrics = {
        "outer/loss": loss.mean(),
        "outer/loss_std": loss.std(correction=0),
        "outer/grad_norm": torch.linalg.vector_norm(gradient),
    }
    following = method.advance(images, students, state.step)
    return replace(state, step=state.step + 1, images=images, velocity=velocity, students=following), metrics


def outer_steps(
    method: Method, state: State, config: MatchingConfig, until: int
) -> Iterator[tuple[State, dict[str, Tensor]]]:
    """Yields the state and metrics of every outer step up to step ``until``."""
    while state.step < until:
        state, metrics = outer_step(
            method, state, learning_rate=config.image_learning_rate, momentum=config.image_momentum
        )
        yield state, metrics
