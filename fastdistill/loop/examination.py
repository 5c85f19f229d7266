"""The test that a run's images are put to, as its folder describes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig, StudentConfig
from fastdistill.data.sampler import class_batches
from fastdistill.data.sources import RealData, load_source
from fastdistill.data.split import stratified_split
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose
from fastdistill.evaluation.born import born_for
from fastdistill.evaluation.evaluate import Born, Evaluation, evaluate_images
from fastdistill.evaluation.protocols import Protocol
from fastdistill.evaluation.protocols import protocol as protocol_of
from fastdistill.evaluation.replay import Replay
from fastdistill.loop.configuration import read_configuration
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.record import BEST_FILE, LAST_FILE
from fastdistill.progress import Silent
from fastdistill.students.ensemble import Ensemble, student_module
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.schedule import Schedule

_FILES = {"last": LAST_FILE, "best": BEST_FILE}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The test of a run's images.

    Attributes:
        student: the network, and which weights of it are trained.
        train: the run's training images, without those that selected.
        test: the run's test images.
        source: where both were loaded from.
        rules: how students are trained.
        students: fresh students per run.
        seed: of every draw.
        born: gives students weights other than fresh ones, where images with steps of their own were learned for such.
    """

    student: StudentConfig
    train: ImageStore
    test: ImageStore
    source: str
    rules: Protocol
    students: int
    seed: int
    born: Born | None = None

    def with_test_images(self, count: int) -> Examination:
        """The same test by some of the test images, evenly spread over the test set.

        Raises:
            ValueError: for more than there are.
        """
        if not 1 <= count <= len(self.test):
            raise ValueError(f"expected 1 to {len(self.test)} test images, got {count}: lower test_images")
        chosen = torch.arange(count, device=self.test.device) * len(self.test) // count
        return replace(self, test=self.test.subset(chosen))

    def judge(self, distilled: Distilled, *, progress: Silent | None = None, title: str = "testing") -> Evaluation:
        """Trains students, the same in every call, and tests them."""
        place = self.test.device
        return self._evaluate(
            distilled.images.to(place),
            distilled.labels.to(place),
            self.students,
            self.rules,
            progress=progress,
            title=title,
        )

    def random_real(self, distilled: Distilled, *, progress: Silent | None = None) -> Evaluation | None:
        """The same test of as many random real images, another draw for every student, with the protocol's own rate.

        None, which is said, where the distilled images are not equally many of every class, or a class has fewer real
        ones.
        """
        counts, sizes = distilled.classes.bincount(minlength=len(distilled.class_names)), self.train.class_sizes
        ipc, fewest = int(counts[0]), min(sizes)
        reason = ""
        if not bool((counts == ipc).all()):
            reason = f"the distilled ones are {int(counts.min())} to {int(counts.max())} of a class, not equally many"
        elif fewest < ipc:
            name = self.train.class_names[sizes.index(fewest)]
            reason = f"class {name!r} has {fewest} training images, fewer than {ipc}"
        if reason:
            (progress or Silent()).say(f"no random real images are judged beside: {reason}")
            return None
        train = self.train.to(self.test.device)
        chosen = class_batches(
            train.class_index,
            seed=self.seed,
            step=0,
            students=torch.arange(distilled.runs * self.students, device=train.device),
            batch=ipc,
            purpose=Purpose.RANDOM_REAL,
        )
        labels = torch.arange(len(counts), device=train.device).repeat_interleave(ipc)
        # every student's draw is a run of its own
        rules = replace(self.rules, rates=None).spread(self.students)
        return self._evaluate(
            train.batch(chosen.flatten(1)), labels, 1, rules, progress=progress, title="testing: random real"
        )

    def _evaluate(
        self, images: Tensor, labels: Tensor, students: int, rules: Protocol, *, progress: Silent | None, title: str
    ) -> Evaluation:
        return evaluate_images(
            student_module(self.student, self.test.shape, self.test.num_classes),
            images,
            labels,
            self.test,
            rules,
            students=students,
            seed=self.seed,
            distribution=self.student.weights,
            born=self.born,
            progress=progress,
            title=title,
        )


def protocol_for(
    schedule: Schedule | None,
    name: str | None,
    fallback: str,
    *,
    dataset: str,
    student: StudentConfig,
    align_corners: bool,
    learning_rate: Tensor | None = None,
) -> Protocol:
    """The protocol of some images.

    Args:
        schedule: the images' own steps and rates, where they have any.
        name: of the protocol; if none is given, ``own`` where there is a schedule, else the fallback.
        fallback: name of a protocol.
        dataset: name of the data set.
        student: the evaluated network.
        align_corners: of DSA's sampling grid, as the images were distilled.
        learning_rate: ``[R]`` that the images were learned with, where they have any.

    Raises:
        ValueError: for an unknown name, or ``own`` for images without a schedule.
    """
    return protocol_of(
        name or (fallback if schedule is None else "own"),
        dataset=dataset,
        architecture=student.architecture,
        norm=student.norm,
        align_corners=align_corners,
        replay=None if schedule is None else Replay.of(schedule),
        rates=learning_rate,
    )


def images_file(folder: Path, images: str) -> Path:
    """The file of a run's images.

    Args:
        folder: the run folder, or one of its files of images.
        images: ``last`` or ``best`` (on validation).

    Raises:
        ValueError: for another name, or where none were selected.
    """
    if images not in _FILES:
        raise ValueError(f"expected images among {', '.join(_FILES)}, got {images!r}: choose one of these")
    file = folder if folder.is_file() else folder / _FILES[images]
    if images == "best" and not file.exists() and (file.parent / LAST_FILE).exists():
        raise ValueError(f"expected images selected on validation in {folder}, got a run that selected none: use last")
    return file


def examination(
    folder: Path,
    distilled: Distilled,
    *,
    student: dict[str, Any],
    students: int,
    protocol: str | None = None,
    seed: int = 0,
    device: str = "auto",
    source: str | None = None,
    root: str | None = None,
) -> Examination:
    """Prepares the test of a run's images; arguments as of `evaluate_run`.

    Raises:
        ValueError: for a folder without a run, settings that do not fit it, or test data that are missing or of other
            images or classes.
    """
    config = read_configuration(folder)
    chosen = StudentConfig(**{**asdict(config.student), "initialization": "fresh", "pretrained": "", **student})
    rules = protocol_for(
        distilled.schedule,
        protocol,
        config.evaluation.protocol,
        dataset=config.data.source,
        student=chosen,
        align_corners=distilled.align_corners,
        learning_rate=distilled.learning_rate,
    )
    place = resolve_device(device)
    real = load_source(source or config.data.source, root=root or config.data.root)
    found, needed = (real.test.shape, real.test.unit), (tuple(distilled.images.shape[2:]), distilled.unit)
    if found != needed:
        raise ValueError(
            f"expected test images like the distilled ones, {needed[0]} in {needed[1]}, got {found[0]} in {found[1]}: "
            "name the data set that they were distilled from"
        )
    _refuse_other_classes(real, distilled)
    asked = "initialization" in student
    if asked and chosen.initialization != "fresh":
        born = _begun(config, distilled, chosen, seed)
    else:
        born = None if rules.replay is None or asked else _born(folder, config, distilled, chosen, seed)
    kept, _ = stratified_split(real.train.labels, config.data.validation_fraction, config.seed)
    train, unseen = (
        ImageStore(
            images=store.images,
            labels=store.labels,
            class_names=distilled.class_names,
            normalization=distilled.normalization,
        )
        for store in (real.train.subset(kept), real.test)
    )
    return Examination(
        student=chosen if born is None or asked else config.student,
        train=train,
        test=unseen.to(place),
        source=real.name,
        rules=rules,
        students=students,
        seed=seed,
        born=born,
    )


def _born(folder: Path, config: RunConfig, distilled: Distilled, student: StudentConfig, seed: int) -> Born | None:
    """The weights that images with steps of their own are replayed on; None for fresh ones.

    Fixed ones are the run's, whatever the seed; that of a pool draws from it.
    """
    kind = config.student.initialization
    if kind == "fresh":
        return None
    own = replace(student, initialization=kind, pretrained=config.student.pretrained)
    if own != config.student:
        raise ValueError(
            f"expected the network that the images in {folder} were learned for, together with its {kind} weights, got "
            "other settings of it: leave them out, or choose another protocol"
        )
    if distilled.runs != config.runs:
        raise ValueError(
            f"expected the images of the {config.runs} runs in {folder}, which have {kind} weights of their own, got "
            f"those of {distilled.runs}: name the run folder, or choose another protocol"
        )
    return _begun(config, distilled, own, seed)


def _begun(config: RunConfig, distilled: Distilled, student: StudentConfig, seed: int) -> Born | None:
    """Weights that are fixed, as those of the run's seed are whatever the seed, or of a pool, drawn by the seed."""
    channels, height, width = distilled.images.shape[2:]
    ensemble = Ensemble(
        student,
        (channels, height, width),
        len(distilled.class_names),
        seed=config.seed if student.initialization == "fixed" else seed,
        dtype=torch.float32,
    )
    return born_for(replace(config, student=student), ensemble)


def _refuse_other_classes(real: RealData, distilled: Distilled) -> None:
    """Refuses a data set of other classes; numbers for names say nothing of them."""
    advice = "name the data set that they were distilled from"
    found, needed = real.test.class_names, distilled.class_names
    if len(found) != len(needed):
        raise ValueError(
            f"expected test images of the {len(needed)} classes of the distilled ones, got {len(found)} classes in "
            f"{real.name}: {advice}"
        )
    if found != needed and tuple(map(str, range(len(found)))) not in (found, needed):
        label = next(label for label, names in enumerate(zip(found, needed, strict=True)) if names[0] != names[1])
        raise ValueError(
            f"expected test images of the distilled ones' classes, got class {label} named {found[label]!r} in "
            f"{real.name} in place of {needed[label]!r}: {advice}"
        )
