"""Baselines: what distilled images have to beat, all judged by one protocol and in one table's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastdistill.baseline_config import LABELS, NEAREST, WHOLE, BaselineConfig
from fastdistill.data.sampler import class_batches
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose
from fastdistill.evaluation import coresets
from fastdistill.evaluation.arms import SELECTING, arm_row
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images, evaluate_students, store_fetch
from fastdistill.evaluation.feature_networks import FeatureNetworks, train_feature_networks
from fastdistill.evaluation.protocols import Protocol, protocol
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Training
from fastdistill.synthetic.distilled import Distilled


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """One that is judged.

    Attributes:
        name: as the configuration names it.
        arm: its row, as `arms.Judge.arms` yields them.
        images: what students were trained on, ``[R, C, M, D, H, W]``, normalised; None for the whole set.
    """

    name: str
    arm: dict[str, Any]
    images: Tensor | None


def judge_baselines(
    config: BaselineConfig,
    train: ImageStore,
    validation: ImageStore,
    test: ImageStore,
    *,
    against: Distilled | None = None,
    names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Silent | None = None,
) -> Iterator[Baseline]:
    """Yields baselines as soon as they are judged, the same ones whichever others are asked for.

    Every student has the same weights, shuffles and augmentation in all of them. Of ``random_real`` every student has a
    draw of its own; of sets that there are ``R`` of, each has the ``R``-th part of the students, rounded up.

    Args:
        config: of the baselines.
        train: training images without the validation split.
        validation: the held-out images, by which ``optimised_random`` selects; where there are none it selects by the
            training images, as Wang et al. (2018) do.
        test: test images, with the normalisation of the training ones.
        against: distilled images for ``nearest_neighbour``.
        names: which baselines; those of the configuration when not given.
        dtype: of the students.
        progress: what is said meanwhile.

    Raises:
        ValueError: before any is judged, for a class of fewer training images than ``ipc``, and for distilled images
            that are missing or do not fit the training images.
    """
    names = config.chosen if names is None else names
    if any(name != WHOLE for name in names):
        _check_sizes(train, config.ipc)
    if NEAREST in names:
        if against is None:
            raise ValueError(f"expected distilled images for {NEAREST}, got none: name a run folder as against")
        check_against(against, train, config.ipc)
    makers = _Makers(config, train, validation, test, against, dtype, progress or Silent())
    return (makers.judged(name) for name in names)


def check_against(distilled: Distilled, train: ImageStore, ipc: int) -> None:
    """Refuses distilled images that real ones cannot be the neighbours of.

    Raises:
        ValueError: for another shape, other classes, another unit of pixels or another number of images per class.
    """
    shape, names = tuple(distilled.images.shape[2:]), distilled.class_names
    if shape != train.shape:
        raise ValueError(
            f"expected distilled images of the training images' shape {train.shape}, got {shape}: name a run on the "
            "same data as against"
        )
    if names != train.class_names:
        other = next((name for name in names if name not in train.class_names), "another order")
        raise ValueError(
            f"expected distilled images of the training images' {train.num_classes} classes, got {len(names)} with "
            f"{other!r}: name a run on the same data as against"
        )
    if distilled.unit != train.unit:
        raise ValueError(
            f"expected distilled images of pixels in {train.unit}, as the training images are, got {distilled.unit}: "
            "name a run on the same data as against"
        )
    counts = distilled.classes.bincount(minlength=len(names))
    if not bool((counts == ipc).all()):
        raise ValueError(
            f"expected {ipc} distilled images of every class, got {int(counts.min())} to {int(counts.max())}: set ipc "
            "to what the run has"
        )


def _check_sizes(train: ImageStore, ipc: int) -> None:
    fewest = min(train.class_sizes)
    if fewest < ipc:
        name = train.class_names[train.class_sizes.index(fewest)]
        raise ValueError(
            f"expected at least {ipc} training images in every class, got {fewest} in class {name!r}: lower ipc"
        )


class _Makers:
    """Makes and judges the baselines of one training set; the networks they share are trained once, when first used."""

    def __init__(
        self,
        config: BaselineConfig,
        train: ImageStore,
        validation: ImageStore,
        test: ImageStore,
        against: Distilled | None,
        dtype: torch.dtype,
        progress: Silent,
    ) -> None:
        self._config, self._train, self._validation, self._test = config, train, validation, test
        self._against, self._dtype, self._progress = against, dtype, progress
        self._module = student_module(config.student, train.shape, train.num_classes)
        rules = protocol(
            config.protocol,
            dataset=config.data.source,
            architecture=config.student.architecture,
            norm=config.student.norm,
        )
        self._rules = rules.with_epochs(config.epochs) if config.epochs else rules

    def judged(self, name: str) -> Baseline:
        if name == WHOLE:
            return Baseline(name=name, arm=arm_row(LABELS[name], self._whole(), 1), images=None)
        images = self._images(name)
        runs = images.shape[0]
        found = self._evaluate(images, -(-self._config.students // runs), self._rules, title=f"testing: {LABELS[name]}")
        return Baseline(name=name, arm=arm_row(LABELS[name], found, runs), images=images)

    def _images(self, name: str) -> Tensor:
        """The images of a baseline, ``[R, C, M, D, H, W]``."""
        seed, count = self._config.seed, self._config.ipc
        match name:
            case "random_real":
                return self._drawn(self._config.students, Purpose.RANDOM_REAL)
            case "optimised_random":
                return self._optimised()
            case "class_average":
                return self._summaries(partial(coresets.class_average, seed=seed))
            case "k_means":
                return self._summaries(partial(coresets.k_means, seed=seed))
            case "herding":
                return self._picked(lambda of: coresets.herding(self._features(of), count))
            case "k_center":
                return self._picked(lambda of: coresets.k_center(self._features(of), count))
            case "forgetting":
                return self._picked(self._forgotten)
            case _:
                return self._neighbours()

    def _features(self, label: int) -> Tensor:
        return self._networks.features(self._train, self._train.class_indices(label))

    def _forgotten(self, label: int) -> Tensor:
        scores = coresets.forgetting_scores(self._networks.correct[..., self._train.class_indices(label)])
        return coresets.most_forgotten(scores, self._config.ipc, seed=self._config.seed, label=label)

    def _picked(self, pick: Callable[[int], Tensor]) -> Tensor:
        """Real images, by their positions within each class."""
        chosen = [self._train.class_indices(label)[pick(label)] for label in range(self._train.num_classes)]
        return self._train.batch(torch.stack(chosen), self._dtype)[None]

    def _summaries(self, summarise: Callable[..., Tensor]) -> Tensor:
        """Images made of the pixels of each class."""
        labels = range(self._train.num_classes)
        made = torch.cat([summarise(self._pixels(label), self._config.ipc, label=label) for label in labels])
        classes = torch.arange(len(labels), device=made.device).repeat_interleave(self._config.ipc)
        # a store of pixels rather than bytes has the same normalisation, whitening included
        store = replace(self._train, images=made, labels=classes)
        return store.batch(torch.arange(len(made), device=made.device).view(1, len(labels), -1), self._dtype)

    def _neighbours(self) -> Tensor:
        assert self._against is not None
        pixels, classes = self._against.pixels().to(self._train.device), self._against.classes.to(self._train.device)
        chosen = []
        for label in range(self._train.num_classes):
            ours, real = self._train.class_indices(label), self._pixels(label)
            chosen.append(torch.stack([ours[coresets.nearest_real(run[classes == label], real)] for run in pixels]))
        return self._train.batch(torch.stack(chosen, dim=1), self._dtype)

    def _pixels(self, label: int) -> Tensor:
        """The real images of a class in the unit of `Distilled.pixels`, float32 ``[n, D, H, W]``."""
        return self._train.images[self._train.class_indices(label)] / (255 if self._train.unit == "bytes" else 1)

    def _drawn(self, draws: int, purpose: Purpose) -> Tensor:
        chosen = class_batches(
            self._train.class_index,
            seed=self._config.seed,
            step=0,
            students=torch.arange(draws, device=self._train.device),
            batch=self._config.ipc,
            purpose=purpose,
        )
        return self._train.batch(chosen, self._dtype)

    def _optimised(self) -> Tensor:
        config, sets = self._config, self._drawn(self._config.candidates, Purpose.CANDIDATE_SETS)
        quick = self._rules.with_epochs(min(config.candidate_epochs, self._rules.epochs))
        found = self._evaluate(
            sets,
            config.candidate_students,
            quick,
            by=self._validation if len(self._validation) else self._train,
            first_student=SELECTING,
            title="choosing among random sets",
        )
        scores = torch.tensor(found.per_student, dtype=torch.float64).view(len(sets), -1).mean(1)
        return sets[coresets.best_sets(scores).to(sets.device)]

    @cached_property
    def _networks(self) -> FeatureNetworks:
        config = self._config
        # as the protocol `default` trains, but for the epochs
        training = Training(
            epochs=config.network_epochs, learning_rate=0.01, momentum=0.9, weight_decay=5e-4, schedule="cosine"
        )
        return train_feature_networks(
            student_module(config.network, self._train.shape, self._train.num_classes),
            self._train,
            training,
            count=config.networks,
            seed=config.seed,
            distribution=config.network.weights,
            dtype=self._dtype,
            progress=self._progress,
        )

    def _evaluate(
        self,
        images: Tensor,
        students: int,
        rules: Protocol,
        *,
        by: ImageStore | None = None,
        first_student: int = 0,
        title: str,
    ) -> Evaluation:
        classes, count = images.shape[1:3]
        return evaluate_images(
            self._module,
            images.flatten(1, 2),
            torch.arange(classes, device=images.device).repeat_interleave(count),
            by or self._test,
            rules,
            students=students,
            first_student=first_student,
            seed=self._config.seed,
            distribution=self._config.student.weights,
            dtype=self._dtype,
            progress=self._progress,
            title=title,
        )

    def _whole(self) -> Evaluation:
        config = self._config
        return evaluate_students(
            self._module,
            store_fetch(self._train, self._dtype),
            len(self._train),
            self._test,
            self._rules.with_epochs(min(config.whole_epochs, self._rules.epochs)),
            students=torch.arange(config.whole_students, device=self._test.device),
            seed=config.seed,
            distribution=config.student.weights,
            dtype=self._dtype,
            progress=self._progress,
            title=f"testing: {LABELS[WHOLE]}",
        )
