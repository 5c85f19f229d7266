"""What students see of the synthetic images while they train, and the way back from it to what is learned.

Every method that differentiates through training, or at its end, shows students a batch of the synthetic images in each
inner step: the same to all, or to every student its own images, augmented by its own draw. Drawing a batch is ordinary
differentiable code outside the primitive, so a batch's cotangent is pulled back in plain reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vjp

View = Callable[[int, Tensor], Tensor]


class InnerBatches:
    """The batches of some students, and their cotangents; callable as `derivatives.unroll` wants its batches.

    Args:
        learned: ``images [R, C, M, D, H, W]``, and ``labels [R, C, M, C]`` where these are learned.
        labels: hard labels int64 ``[N]``, for when none are learned, or soft rows ``[S, N, C]`` that are not learned.
        runs: the run of each student, int64 ``[S]``.
        order: images of each inner step, int64 ``[T, n]``, or ``[S, T, n]`` where every student has its own order; or
            one ``[n]`` or ``[S, n]`` for each of the ``T`` steps, whose ``n`` then may differ; no image twice in a
            step.
        run: the one run that all students belong to, whose images need no student axis where nothing tells students
            apart; None for several.
        view: maps a step's number and images ``[S, n, D, H, W]`` to what students are shown, differentiable.
    """

    def __init__(
        self,
        learned: Mapping[str, Tensor],
        labels: Tensor,
        runs: Tensor,
        order: Tensor | Sequence[Tensor],
        *,
        run: int | None,
        view: View | None = None,
    ) -> None:
        images = learned["images"].detach()
        self._classes, self._per_class = images.shape[1:3]
        self._images, self._runs, self._view = images.flatten(1, 2), runs, view
        self._order = tuple(order.unbind(-2)) if isinstance(order, Tensor) else tuple(order)
        self._soft = learned["labels"].detach().flatten(1, 2) if "labels" in learned else None
        self._labels = labels
        self._students = torch.arange(len(runs), device=runs.device)[:, None]
        # labels of the students' own need images with a student axis too
        alike = self._order[0].ndim == 1 and labels.ndim < 3
        self._run, self._shared = run, run is not None and view is None and alike
        self._pulled = images.new_zeros(len(runs), *self._images.shape[1:])
        self._pulled_labels = None if self._soft is None else images.new_zeros(len(runs), *self._soft.shape[1:])

    @property
    def steps(self) -> int:
        """``T``."""
        return len(self._order)

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Images ``[S, n, D, H, W]`` and labels of inner step ``number``; without the student axis where all agree."""
        members = self._order[number]
        picked = self._picked(members)
        return picked if self._view is None else self._view(number, picked), self._targets(members)

    def pull(self, number: int, images: Tensor, labels: Tensor | None = None) -> None:
        """Adds the cotangents of a step's batch, ``[S, n, D, H, W]`` and ``[S, n, C]``, to those of what is learned."""
        members = self._order[number]
        if self._view is not None:
            view = self._view
            images = vjp(lambda picked: view(number, picked), self._picked(members))[1](images)[0]
        # a student's own cotangents, since one that turns out non-finite must not have reached the others' sum
        place = (slice(None), members) if members.ndim == 1 else (self._students, members)
        self._pulled[place] = self._pulled[place] + images
        if self._pulled_labels is not None and labels is not None:
            self._pulled_labels[place] = self._pulled_labels[place] + labels

    @property
    def found(self) -> dict[str, Tensor]:
        """Cotangents of each student, by name: ``images [S, C, M, D, H, W]`` and ``labels [S, C, M, C]``."""
        shape = (self._classes, self._per_class)
        found = {"images": self._pulled.unflatten(1, shape)}
        if self._pulled_labels is not None:
            found["labels"] = self._pulled_labels.unflatten(1, shape)
        return found

    def _picked(self, members: Tensor) -> Tensor:
        if self._shared:
            return self._images[self._run, members]
        if self._run is not None and members.ndim == 1:
            return self._images[self._run, members].expand(len(self._runs), -1, -1, -1, -1)
        return self._images[self._runs[:, None], members]

    def _targets(self, members: Tensor) -> Tensor:
        if self._soft is not None:
            return self._soft[self._run, members] if self._shared else self._soft[self._runs[:, None], members]
        if self._labels.ndim == 1:
            return self._labels[members]
        return self._labels[self._students, members]
