"""The arms of a run's final table: distilled images beside random real ones and the whole training set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sampler import class_batches
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images, evaluate_students, store_fetch
from fastdistill.evaluation.protocols import Protocol, protocol
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module

# students that select are others than students that test, else "best" would be chosen for the ones it is shown to
_SELECTING = 1 << 31
WHOLE = "whole training set"


class Judge:
    """Evaluates one run's images.

    Validation during the run uses the held-out part of the training set; the test set is used by `arms` alone.

    Args:
        config: the run.
        train: training images without the validation split.
        validation: the held-out images.
        test: test images.
        dtype: of the students.

    Raises:
        ValueError: when images are to be selected but nothing is held out.
    """

    def __init__(
        self, config: RunConfig, train: ImageStore, validation: ImageStore, test: ImageStore, dtype: torch.dtype
    ) -> None:
        if config.evaluation.validation_every and not len(validation):
            raise ValueError(
                "expected a validation split for validation_every, got a validation_fraction that holds nothing out: "
                "raise data.validation_fraction or set evaluation.validation_every to 0"
            )
        self._config, self._train, self._validation, self._test = config, train, validation, test
        self._dtype = dtype
        self._protocol = protocol(
            config.evaluation.protocol,
            dataset=config.data.source,
            architecture=config.student.architecture,
            norm=config.student.norm,
            align_corners=config.method.align_corners,
        )
        self._module = student_module(config.student, train.shape, train.num_classes)

    def validate(self, images: Tensor) -> Evaluation:
        """Validation accuracy of images ``[R, C, M, D, H, W]`` with few students and epochs; runs in order."""
        evaluation = self._config.evaluation
        quick = self._protocol.with_epochs(min(evaluation.validation_epochs, self._protocol.epochs))
        return self._images(images, evaluation.validation_students, self._validation, quick, first_student=_SELECTING)

    def arms(
        self, images: Tensor, best: Tensor | None, progress: Silent, done: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[dict[str, Any]]:
        """Yields the test accuracy of every arm as soon as it is measured, by the configured protocol.

        Args:
            images: the last synthetic images ``[R, C, M, D, H, W]``.
            best: those with the best validation accuracy, where any were selected; the very tensor ``images`` where
                the last ones were.
            progress: what is said meanwhile.
            done: arms that an earlier start has measured already; they are yielded as they are.

        Yields:
            Name, mean, std, per-student and per-run accuracies, students, images, epochs and seconds.
        """
        before = {arm["arm"]: dict(arm) for arm in done}
        evaluation, runs = self._config.evaluation, images.shape[0]
        last = "distilled (last)"

        def judged(name: str, images: Tensor, students: int) -> dict[str, Any]:
            if name in before:
                return before[name]
            result = self._images(
                images, students, self._test, self._protocol, progress=progress, title=f"testing: {name}"
            )
            return _arm(name, result, runs if name.startswith("distilled") else 1)

        first = judged(last, images, evaluation.students)
        yield first
        if best is images:
            yield {**first, "arm": "distilled (best on validation)", "seconds": 0.0}
        elif best is not None:
            yield judged("distilled (best on validation)", best, evaluation.students)
        if evaluation.random_real and min(self._train.class_sizes) < self._config.ipc:
            progress.say(f"no random real arm: a class has fewer than {self._config.ipc} training images")
        elif evaluation.random_real:
            # every student has its own draw, as a run of its own
            yield judged("random real", self._random_real(runs * evaluation.students), 1)
        if evaluation.whole_epochs:
            yield before.get(WHOLE) or _arm(WHOLE, self._whole(progress), 1)

    @property
    def conditions(self) -> dict[str, str]:
        """What the arms hold for: ``protocol`` and ``architecture``."""
        return {"protocol": self._protocol.name, "architecture": self._config.student.architecture}

    def _whole(self, progress: Silent) -> Evaluation:
        evaluation = self._config.evaluation
        epochs = min(evaluation.whole_epochs, self._protocol.epochs)
        return evaluate_students(
            self._module,
            store_fetch(self._train, self._dtype),
            len(self._train),
            self._test,
            self._protocol.with_epochs(epochs),
            students=torch.arange(evaluation.whole_students, device=self._test.device),
            seed=self._config.seed,
            distribution=self._config.student.weights,
            dtype=self._dtype,
            progress=progress,
            title=f"testing: {WHOLE}",
        )

    def _images(
        self,
        images: Tensor,
        students: int,
        test: ImageStore,
        chosen: Protocol,
        *,
        first_student: int = 0,
        progress: Silent | None = None,
        title: str = "",
    ) -> Evaluation:
        classes, ipc = images.shape[1:3]
        return evaluate_images(
            self._module,
            images.flatten(1, 2),
            torch.arange(classes, device=images.device).repeat_interleave(ipc),
            test,
            chosen,
            students=students,
            first_student=first_student,
            seed=self._config.seed,
            distribution=self._config.student.weights,
            dtype=self._dtype,
            progress=progress,
            title=title,
        )

    def _random_real(self, draws: int) -> Tensor:
        """As many random real images as there are synthetic ones, ``[draws, C, M, D, H, W]``."""
        chosen = class_batches(
            self._train.class_index,
            seed=self._config.seed,
            step=0,
            students=torch.arange(draws, device=self._train.device),
            batch=self._config.ipc,
            purpose=Purpose.RANDOM_REAL,
        )
        return self._train.batch(chosen, self._dtype)


def _arm(name: str, result: Evaluation, runs: int) -> dict[str, Any]:
    per_run = len(result.per_student) // runs
    return {
        "arm": name,
        "mean": result.mean,
        "std": result.std,
        "per_student": result.per_student,
        "per_run": [fmean(result.per_student[run * per_run : (run + 1) * per_run]) for run in range(runs)],
        "students": len(result.per_student),
        "images": result.images,
        "epochs": result.epochs,
        "seconds": result.seconds,
    }
