"""Judging a finished run again: other students, another architecture, another protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fastdistill.config import StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.data.store import ImageStore
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images
from fastdistill.evaluation.protocols import protocol as protocol_of
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.record import BEST_FILE, LAST_FILE
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.synthetic.distilled import load

_FILES = {"last": LAST_FILE, "best": BEST_FILE}


def evaluate_run(
    folder: Path,
    *,
    student: dict[str, Any],
    students: int = 20,
    protocol: str | None = None,
    epochs: int | None = None,
    images: str = "last",
    seed: int = 0,
    device: str = "auto",
    source: str | None = None,
    root: str | None = None,
    progress: Silent | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluates a run's images and appends the result to the folder's ``evaluations.jsonl``.

    Args:
        folder: the run folder, or one of its files of images.
        student: fields of `StudentConfig` that differ from the run's.
        students: fresh students per run.
        protocol: the run's by default.
        epochs: the protocol's by default.
        images: ``last`` or ``best`` (on validation).
        seed: of every draw.
        device: auto, cpu or cuda.
        source: where the test set is, where it has moved; the run's by default.
        root: folder of torchvision's sets; the run's by default.
        progress: what is said meanwhile.

    Returns:
        The evaluation and the line that was appended.

    Raises:
        ValueError: for a folder without a finished run, or settings that do not fit it.
    """
    if images not in _FILES:
        raise ValueError(f"expected images among {', '.join(_FILES)}, got {images!r}: choose one of these")
    file = folder if folder.is_file() else folder / _FILES[images]
    folder = file.parent
    if images == "best" and not file.exists() and (folder / LAST_FILE).exists():
        raise ValueError(f"expected images selected on validation in {folder}, got a run that selected none: use last")
    distilled = load(file)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except OSError as error:
        raise ValueError(
            f"expected config.yaml beside the images in {folder}, found none: name a run folder"
        ) from error
    chosen = StudentConfig(**{**config["student"], "initialization": "fresh", "pretrained": "", **student})
    place = resolve_device(device)
    data = config["data"]
    real = load_source(source or data["source"], root=root or data["root"])
    test = ImageStore(
        images=real.test.images,
        labels=real.test.labels,
        class_names=distilled.class_names,
        normalization=distilled.normalization,
    ).to(place)
    rules = protocol_of(
        protocol or config["evaluation"]["protocol"],
        dataset=data["source"],
        architecture=chosen.architecture,
        norm=chosen.norm,
        align_corners=config["method"]["align_corners"],
    )
    if epochs is not None:
        rules = rules.with_epochs(epochs)
    evaluation = evaluate_images(
        student_module(chosen, test.shape, test.num_classes),
        distilled.images.to(place),
        distilled.labels.to(place),
        test,
        rules,
        students=students,
        seed=seed,
        distribution=chosen.weights,
        progress=progress,
    )
    line = {
        "architecture": chosen.architecture,
        "norm": chosen.norm,
        "protocol": rules.name,
        "epochs": rules.epochs,
        "images": file.name,
        "seed": seed,
        "mean": evaluation.mean,
        "std": evaluation.std,
        "per_student": evaluation.per_student,
        "seconds": evaluation.seconds,
    }
    with (folder / "evaluations.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    return evaluation, line
