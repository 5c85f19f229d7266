"""Training many students as one batched program, on their own synthetic images or on shared real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from fastdistill.derivatives.functional import Functional
from fastdistill.draws import Purpose, uniform

Fetch = Callable[[Tensor | None], tuple[Tensor, Tensor]]
Augment = Callable[[Tensor, int], Tensor]
Observe = Callable[[Tensor | None, Tensor], None]
SCHEDULES = ("constant", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How students are trained: SGD on mini-batches.

    Attributes:
        epochs: passes over the images.
        learning_rate: of the first step.
        momentum: of SGD, 0 for none.
        weight_decay: added to the gradient of every parameter, as ``torch.optim.SGD`` does.
        batch: images a step; the last batch of an epoch may be smaller.
        schedule: ``constant``, ``step`` (×0.1 once) or ``cosine`` (to 0 over all epochs).
        decay_epoch: first epoch (from 0) that runs at the decayed rate; for ``step``.
        restart: the momentum is lost at the decay, as where code builds a new optimiser there.
    """

    epochs: int
    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    schedule: str = "constant"
    decay_epoch: int = 0
    restart: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"expected epochs >= 0, batch >= 1 and a positive learning rate, got {self.epochs}, {self.batch} and "
                f"{self.learning_rate}: correct the training settings"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(f"expected a schedule among {', '.join(SCHEDULES)}, got {self.schedule!r}: choose one")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        return self.learning_rate * self.factor(epoch)

    def factor(self, epoch: int) -> float:
        """What an epoch's learning rate is of the first step's."""
        if self.schedule == "step" and epoch >= self.decay_epoch:
            return 0.1
        if self.schedule == "cosine":
            return 0.5 * (1 + cos(pi * epoch / self.epochs))
        return 1.0


def image_fetch(images: Tensor, labels: Tensor) -> Fetch:
    """Mini-batches of images ``[N, D, H, W]`` shared by the students, or ``[S, N, D, H, W]`` of their own.

    Args:
        images: see above.
        labels: classes ``[N]`` or soft rows ``[N, C]``, the same for all students, or, beside images of their own, rows
            ``[S, N, C]`` of their own.

    Raises:
        ValueError: for rows of the students' own beside shared images.
    """
    own_labels = labels.ndim == 3
    if own_labels and images.ndim != 5:
        raise ValueError(
            f"expected images [S, N, D, H, W] beside labels [S, N, C], got {tuple(images.shape)} and "
            f"{tuple(labels.shape)}: give every student images of its own, or all the same labels"
        )

    def fetch(indices: Tensor | None) -> tuple[Tensor, Tensor]:
        if indices is None:
            return images, labels
        if images.ndim == 4:
            return images[indices], labels[indices]
        own = torch.arange(images.shape[0], device=images.device)[:, None]
        return images[own, indices], labels[own, indices] if own_labels else labels[indices]

    return fetch


def train_students(
    primitive: Functional,
    weights: Tensor,
    buffers: dict[str, Tensor],
    fetch: Fetch,
    count: int,
    training: Training,
    *,
    seed: int,
    students: Tensor,
    first_epoch: int = 0,
    purpose: Purpose = Purpose.MINIBATCH,
    augment: Augment | None = None,
    rates: Tensor | None = None,
    velocity: Tensor | None = None,
    observe: Observe | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Trains ``S`` students at once and returns their new weights and buffers.

    Every student shuffles by its own keyed permutation, so it ends up the same in any batch of students.

    Args:
        primitive: the derivative of the architecture.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``.
        fetch: maps image indices ``[S, b]``, or None for all, to images ``[S, b, D, H, W]`` (or ``[b, D, H, W]``,
            shared) and classes ``[S, b]`` (or ``[b]``) or soft rows ``[S, b, C]`` (or ``[b, C]``).
        count: number of images there are.
        training: the settings.
        seed: the run's seed.
        students: global student indices ``[S]``.
        first_epoch: number of epochs these students' streams have already used.
        purpose: stream of the shuffles.
        augment: maps images and the step's draw counter to augmented images ``[S, b, D, H, W]``.
        rates: learning rates ``[S]`` in place of the settings' one; they fall as it does.
        velocity: of the momentum at the start ``[S, P]``, for training that goes on; zero when not given.
        observe: called after every epoch with the velocity ``[S, P]`` (None without momentum) and the students' losses
            ``[S]``, each the mean over the epoch's images as they were trained on.
        progress: called with the number of every finished epoch.
    """
    if training.momentum and velocity is None:
        velocity = torch.zeros_like(weights)
    own = None if rates is None else rates.to(weights)[:, None]
    batches = -(-count // training.batch)
    for epoch in range(training.epochs):
        rate = training.rate(epoch) if own is None else own * training.factor(epoch)
        if velocity is not None and training.restart and epoch == training.decay_epoch:
            velocity = torch.zeros_like(weights)
        draw = first_epoch + epoch
        order = None
        if batches > 1:
            order = uniform(seed, purpose, draw, students, count).argsort(dim=1, stable=True)
        loss = weights.new_zeros(weights.shape[0])
        for batch in range(batches):
            part = None if order is None else order[:, batch * training.batch : (batch + 1) * training.batch]
            images, labels = fetch(part)
            if augment is not None:
                images = augment(images, draw * batches + batch)
            result = primitive.value_and_gradient(weights, buffers, *grouped(images, labels), training=True)
            buffers = result.buffers
            if observe is not None:
                loss = loss + result.loss[:, 0] * (images.shape[-4] / count)
            change = result.gradient[:, 0]
            if training.weight_decay:
                change = change + training.weight_decay * weights
            if velocity is not None:
                velocity = training.momentum * velocity + change
                change = velocity
            weights = weights - rate * change
        if observe is not None:
            observe(velocity, loss)
        if progress is not None:
            progress(epoch + 1)
    return weights, buffers


def grouped(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch as the primitive takes it: with a group axis of one, right behind the student axis if there is one."""
    behind = labels.ndim - (2 if labels.is_floating_point() else 1)
    return images.unsqueeze(images.ndim - 4), labels.unsqueeze(behind)


def count_correct(
    primitive: Functional, weights: Tensor, buffers: dict[str, Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """How many of the shared images ``[n, D, H, W]`` each student classifies as ``labels [n]``; int64 ``[S]``."""
    with torch.no_grad():
        return (primitive.logits(weights, buffers, images).argmax(-1) == labels).sum(-1)
