"""The arms of a run's final table: distilled images beside random real ones and the whole training set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sampler import class_batches
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import Evaluation, evaluate_students, store_fetch
from fastdistill.evaluation.protocols import protocol
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Fetch, image_fetch


class Judge:
    """Evaluates one run's images.

    Validation during the run uses the held-out part of the training set; the test set is used by `table` alone.

    Args:
        config: the run.
        train: training images without the validation split.
        validation: the held-out images.
        test: test images.
        dtype: of the students.
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
        self._protocol = protocol(config.evaluation.protocol, dataset=config.data.source, norm=config.student.norm)
        self._module = student_module(config.student, train.shape, train.num_classes)

    def validate(self, images: Tensor) -> Evaluation:
        """Validation accuracy of images ``[R, C, M, D, H, W]`` with few students and epochs."""
        evaluation = self._config.evaluation
        fetch, students = self._synthetic(images, evaluation.validation_students)
        quick = self._protocol.with_epochs(min(evaluation.validation_epochs, self._protocol.epochs))
        return self._evaluate(fetch, images.shape[1:3].numel(), students, self._validation, quick, None)

    def table(self, images: Tensor, best: Tensor | None, progress: Silent) -> dict[str, Any]:
        """Test accuracy of every arm, by the configured protocol.

        Args:
            images: the last synthetic images ``[R, C, M, D, H, W]``.
            best: those with the best validation accuracy, where any were selected.
            progress: what is said meanwhile.

        Returns:
            ``protocol``, ``architecture`` and ``arms``: a list of dicts of name, mean, std, per-student accuracies,
            students, images, epochs and seconds.
        """
        evaluation = self._config.evaluation
        count = images.shape[1:3].numel()
        arms: list[tuple[str, Evaluation]] = []

        def add(name: str, fetch: Fetch, images: int, students: Tensor, epochs: int | None = None) -> None:
            chosen = self._protocol if epochs is None else self._protocol.with_epochs(epochs)
            result = self._evaluate(fetch, images, students, self._test, chosen, (progress, name))
            arms.append((name, result))

        fetch, students = self._synthetic(images, evaluation.students)
        add("distilled (last)", fetch, count, students)
        if best is not None:
            if best is images:
                arms.append(("distilled (best on validation)", replace(arms[0][1], seconds=0.0)))
            else:
                fetch, students = self._synthetic(best, evaluation.students)
                add("distilled (best on validation)", fetch, count, students)
        if evaluation.random_real and min(self._train.class_sizes) >= self._config.ipc:
            add("random real", self._random_real(students), count, students)
        if evaluation.whole_epochs:
            whole = torch.arange(evaluation.whole_students, device=self._test.device)
            epochs = min(evaluation.whole_epochs, self._protocol.epochs)
            add("whole training set", store_fetch(self._train, self._dtype), len(self._train), whole, epochs)
        return {
            "protocol": self._protocol.name,
            "architecture": self._config.student.architecture,
            "arms": [
                {
                    "arm": name,
                    "mean": result.mean,
                    "std": result.std,
                    "per_student": result.per_student,
                    "students": len(result.per_student),
                    "images": result.images,
                    "epochs": result.epochs,
                    "seconds": result.seconds,
                }
                for name, result in arms
            ],
        }

    def _synthetic(self, images: Tensor, per_run: int) -> tuple[Fetch, Tensor]:
        """Batches of synthetic images for ``per_run`` students of every run, and the students' indices."""
        runs, classes, ipc = images.shape[:3]
        labels = torch.arange(classes, device=images.device).repeat_interleave(ipc)
        flat = images.flatten(1, 2)
        own = flat[0] if runs == 1 else flat.repeat_interleave(per_run, dim=0)
        return image_fetch(own, labels), torch.arange(runs * per_run, device=images.device)

    def _random_real(self, students: Tensor) -> Fetch:
        """As many random real images as there are synthetic ones, another draw for every student."""
        chosen = class_batches(
            self._train.class_index,
            seed=self._config.seed,
            step=0,
            students=students,
            batch=self._config.ipc,
            purpose=Purpose.RANDOM_REAL,
        ).flatten(1)
        return image_fetch(self._train.batch(chosen, self._dtype), self._train.labels[chosen[0]])

    def _evaluate(
        self,
        fetch: Fetch,
        count: int,
        students: Tensor,
        test: ImageStore,
        chosen: Any,
        shown: tuple[Silent, str] | None,
    ) -> Evaluation:
        progress, name = shown or (Silent(), "")
        with progress.stage(f"testing: {name}", chosen.training.epochs) as advance:
            return evaluate_students(
                self._module,
                fetch,
                count,
                test,
                chosen,
                students=students,
                seed=self._config.seed,
                distribution=self._config.student.weights,
                dtype=self._dtype,
                progress=lambda epoch: advance(epoch, ""),
            )
