"""How the students of a class-wise method see images: real and synthetic ones of a class under one draw (DSA).

Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation", ICML 2021. Without augmentation the
images are seen as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import vjp

from fastdistill.augmentation import dsa
from fastdistill.methods.outer_gradient import runs_of
from fastdistill.phases import AUGMENTATION, phase


class Siamese:
    """One augmentation for the real and the synthetic images of every (student, class) pair.

    Args:
        strategy: the operations; none for images as they are.
        classes: ``C``.
        per_run: ``S``; student ``k`` belongs to run ``k // S``.
        seed: the run's seed.
    """

    def __init__(self, strategy: dsa.Strategy, *, classes: int, per_run: int, seed: int) -> None:
        self._strategy, self._classes, self._per_run, self._seed = strategy, classes, per_run, seed

    def draw(self, step: int, indices: Tensor) -> dsa.Draw | None:
        """What the students of global ``indices [S]`` draw at an outer step; None where nothing is augmented."""
        if not self._strategy.operations:
            return None
        with phase(AUGMENTATION):
            return dsa.draw_siamese(self._strategy, seed=self._seed, step=step, students=indices, groups=self._classes)

    def seen(self, images: Tensor, draw: dsa.Draw | None) -> Tensor:
        """Images ``[S, C, n, D, H, W]`` under a draw."""
        if draw is None:
            return images
        with phase(AUGMENTATION):
            return dsa.augment(images, self._strategy, draw)

    def synthetic(
        self, images: Tensor, start: int, count: int, draw: dsa.Draw | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The synthetic images as the students from number ``start`` see them, and the way back.

        Args:
            images: of all runs, ``[R, C, M, D, H, W]``.
            start: place of the first student among those of all runs.
            count: students.
            draw: theirs.

        Returns:
            ``[S, C, M, D, H, W]``, without the student axis where all see the same; and what takes cotangents
            ``[S, C, M, D, H, W]`` to their sum over each run's students, ``[R, C, M, D, H, W]``.
        """
        if draw is None and images.shape[0] == 1:
            # images of one run that nothing augments are the same for all students and get no student axis
            return images[0], partial(torch.sum, dim=0, keepdim=True)

        def view(images: Tensor) -> Tensor:
            runs = runs_of(start, count, self._per_run)
            own = torch.cat([images[run].expand(students, *images.shape[1:]) for run, students in runs])
            return own if draw is None else dsa.augment(own, self._strategy, draw)

        with phase(AUGMENTATION):
            pulled = vjp(view, images)

        def back(cotangent: Tensor) -> Tensor:
            with phase(AUGMENTATION):
                found: Tensor = pulled[1](cotangent)[0]
                return found

        return pulled[0], back
