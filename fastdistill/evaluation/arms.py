"""The arms of a run's final table: distilled images beside random real ones and the whole training set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sampler import class_batches
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose
from fastdistill.evaluation.born import born_for
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images, evaluate_students, store_fetch
from fastdistill.evaluation.protocols import Protocol, protocol
from fastdistill.evaluation.replay import Replay
from fastdistill.method_configs import DistributionConfig, MatchingConfig, TrajectoryConfig
from fastdistill.progress import Silent
from fastdistill.students.ensemble import Ensemble

# students that select are others than students that test, else "best" would be chosen for the ones it is shown to
SELECTING = 1 << 31
WHOLE = "whole training set"
# what a run has learned, by name, a leading run axis each
Learned = Mapping[str, Tensor]


class Judge:
    """Evaluates one run's images.

    Validation during the run uses the held-out part of the training set; the test set is used by `arms` alone.

    Args:
        config: the run.
        train: training images without the validation split.
        validation: the held-out images.
        test: test images.
        dtype: of the students.
        replay: gives the steps and rates that images were learned with, for the protocol ``own``.
        learning_rate: gives the learning rates ``[R]`` that images were learned with, for the other protocols, which
            train on real images with their own.
        labels: gives the soft labels ``[R, C, M, C]`` of what is learned; None where every image has its class.
        show: gives what is learned with its images, where something else makes these.

    Raises:
        ValueError: when images are to be selected but nothing is held out.
    """

    def __init__(
        self,
        config: RunConfig,
        train: ImageStore,
        validation: ImageStore,
        test: ImageStore,
        dtype: torch.dtype,
        *,
        replay: Callable[[Learned], Replay | None] = lambda learned: None,
        learning_rate: Callable[[Learned], Tensor | None] = lambda learned: None,
        labels: Callable[[Learned], Tensor | None] = lambda learned: learned.get("labels"),
        show: Callable[[Learned], Learned] = lambda learned: learned,
    ) -> None:
        if config.evaluation.validation_every and not len(validation):
            raise ValueError(
                "expected a validation split for validation_every, got a validation_fraction that holds nothing out: "
                "raise data.validation_fraction or set evaluation.validation_every to 0"
            )
        self._config, self._train, self._validation, self._test = config, train, validation, test
        self._dtype, self._replay, self._learning_rate, self._labels = dtype, replay, learning_rate, labels
        self._show = show
        ensemble = Ensemble(config.student, train.shape, train.num_classes, seed=config.seed, dtype=dtype)
        self._module, self._born = ensemble.module, born_for(config, ensemble)

    def validate(self, learned: Learned) -> Evaluation:
        """Validation accuracy of what is learned, with few students and epochs; runs in order."""
        learned = self._show(learned)
        evaluation, quick = self._config.evaluation, self._protocol(learned)
        if not quick.steps:
            quick = quick.with_epochs(min(evaluation.validation_epochs, quick.epochs))
        return self._images(
            learned["images"],
            self._labels(learned),
            evaluation.validation_students,
            self._validation,
            quick,
            first_student=SELECTING,
        )

    def arms(
        self, learned: Learned, best: Learned | None, progress: Silent, done: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[dict[str, Any]]:
        """Yields the test accuracy of every arm as soon as it is measured, by the configured protocol.

        Args:
            learned: what was learned last, ``images [R, C, M, D, H, W]`` and what belongs to them.
            best: what had the best validation accuracy, where any was selected; the very ``learned`` where that was.
            progress: what is said meanwhile.
            done: arms that an earlier start has measured already; they are yielded as they are.

        Yields:
            Name, mean, std, per-student and per-run accuracies, students, images, epochs or own steps, and seconds.
        """
        before = {arm["arm"]: dict(arm) for arm in done}
        same, learned = best is learned, self._show(learned)
        best = None if best is None else learned if same else self._show(best)
        evaluation, runs = self._config.evaluation, learned["images"].shape[0]
        last, rules = "distilled (last)", self._protocol(learned)

        def judged(name: str, shown: Learned, students: int, rules: Protocol) -> dict[str, Any]:
            if name in before:
                return before[name]
            ours = name.startswith("distilled")
            result = self._images(
                shown["images"],
                self._labels(shown) if ours else None,
                students,
                self._test,
                rules,
                progress=progress,
                title=f"testing: {name}",
            )
            return arm_row(name, result, runs if ours else 1)

        first = judged(last, learned, evaluation.students, rules)
        yield first
        if best is learned:
            yield {**first, "arm": "distilled (best on validation)", "seconds": 0.0}
        elif best is not None:
            yield judged("distilled (best on validation)", best, evaluation.students, self._protocol(best))
        if evaluation.random_real and min(self._train.class_sizes) < self._config.ipc:
            progress.say(f"no random real arm: a class has fewer than {self._config.ipc} training images")
        elif evaluation.random_real:
            # every student has its own draw, as a run of its own
            own = replace(rules, rates=None).spread(evaluation.students)
            yield judged("random real", {"images": self._random_real(runs * evaluation.students)}, 1, own)
        if evaluation.whole_epochs:
            yield before.get(WHOLE) or arm_row(WHOLE, self._whole(progress), 1)

    @property
    def conditions(self) -> dict[str, str]:
        """What the arms hold for: ``protocol`` and ``architecture``."""
        return {"protocol": self._config.evaluation.protocol, "architecture": self._config.student.architecture}

    def _protocol(self, learned: Learned) -> Protocol:
        config = self._config
        method = config.method
        as_shown = isinstance(method, MatchingConfig | TrajectoryConfig | DistributionConfig)
        return protocol(
            config.evaluation.protocol,
            dataset=config.data.source,
            architecture=config.student.architecture,
            norm=config.student.norm,
            align_corners=method.align_corners if as_shown else True,
            replay=self._replay(learned),
            rates=self._learning_rate(learned),
        )

    def _whole_protocol(self) -> Protocol:
        """Real images have no steps of their own: they are trained on as ``default`` says."""
        config = self._config
        name = config.evaluation.protocol
        return protocol(
            "default" if name == "own" else name,
            dataset=config.data.source,
            architecture=config.student.architecture,
            norm=config.student.norm,
        )

    def _whole(self, progress: Silent) -> Evaluation:
        evaluation, rules = self._config.evaluation, self._whole_protocol()
        epochs = min(evaluation.whole_epochs, rules.epochs)
        return evaluate_students(
            self._module,
            store_fetch(self._train, self._dtype),
            len(self._train),
            self._test,
            rules.with_epochs(epochs),
            students=torch.arange(evaluation.whole_students, device=self._test.device),
            seed=self._config.seed,
            distribution=self._config.student.weights,
            dtype=self._dtype,
            progress=progress,
            title=f"testing: {WHOLE}",
            compile="never" if self._config.compile == "never" else "auto",
        )

    def _images(
        self,
        shown: Tensor,
        labels: Tensor | None,
        students: int,
        test: ImageStore,
        chosen: Protocol,
        *,
        first_student: int = 0,
        progress: Silent | None = None,
        title: str = "",
    ) -> Evaluation:
        images, (classes, ipc) = shown.flatten(1, 2), shown.shape[1:3]
        hard = torch.arange(classes, device=images.device).repeat_interleave(ipc)
        return evaluate_images(
            self._module,
            images,
            hard if labels is None else labels.flatten(1, 2),
            test,
            chosen,
            students=students,
            first_student=first_student,
            seed=self._config.seed,
            distribution=self._config.student.weights,
            born=None if chosen.replay is None else self._born,
            dtype=self._dtype,
            progress=progress,
            title=title,
            compile="never" if self._config.compile == "never" else "auto",
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


def arm_row(name: str, result: Evaluation, runs: int) -> dict[str, Any]:
    """A row of the table: what students trained on something reached, run by run."""
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
        "steps": result.steps,
        "seconds": result.seconds,
    }
