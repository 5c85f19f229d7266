"""Judging a finished run again: other students, another architecture, another protocol."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastdistill.evaluation.evaluate import Evaluation
from fastdistill.files import append
from fastdistill.loop.examination import examination, images_file
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import load_file

# what of a student tells it from others; a convnet alone has the second ones to choose
_STUDENT, _CONVNET = ("architecture", "norm", "weights"), ("depth", "width", "activation", "pooling")


def evaluate_run(
    folder: Path,
    *,
    student: dict[str, Any],
    students: int = 20,
    protocol: str | None = None,
    epochs: int | None = None,
    images: str = "last",
    test_images: int = 0,
    seed: int = 0,
    device: str = "auto",
    source: str | None = None,
    root: str | None = None,
    random_real: bool = True,
    progress: Silent | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluates a run's images and appends the result to the folder's ``evaluations.jsonl``.

    Args:
        folder: the run folder, or one of its files of images.
        student: fields of `StudentConfig` that differ from the run's.
        students: students per run; fresh ones unless ``student`` says otherwise, but for the protocol ``own`` of images
            that were learned for fixed or pretrained weights, which it trains.
        protocol: by default ``own`` for images with steps and rates of their own, else the run's.
        epochs: the protocol's by default.
        images: ``last`` or ``best`` (on validation).
        test_images: how many of the test set, evenly spread over it; 0 for all.
        seed: of every draw.
        device: auto, cpu or cuda.
        source: where the test set is, where it has moved; the run's by default.
        root: folder of torchvision's sets; the run's by default.
        random_real: also judge as many random real images, in the same way.
        progress: what is said meanwhile.

    Returns:
        The evaluation and the line that was appended, which is said where the disk no longer takes it.

    Raises:
        ValueError: for a folder without a finished run, or settings that do not fit it.
        OSError: before any training, when the file cannot be written.
    """
    progress = progress or Silent()
    file = images_file(folder, images)
    distilled = load_file(file)
    test = examination(
        file.parent,
        distilled,
        student=student,
        students=students,
        protocol=protocol,
        seed=seed,
        device=device,
        source=source,
        root=root,
    )
    if epochs is not None:
        test = replace(test, rules=test.rules.with_epochs(epochs))
    if test_images:
        test = test.with_test_images(test_images)
    kept = file.parent / "evaluations.jsonl"
    append(kept, b"")  # a training of hours should not find out at its end
    if distilled.note:
        progress.say(distilled.note)
    evaluation = test.judge(distilled, progress=progress)
    beside = test.random_real(distilled, progress=progress) if random_real else None
    fresh = asdict(test.student)
    line = {
        **{name: fresh[name] for name in _STUDENT + (_CONVNET if test.student.architecture == "convnet" else ())},
        "protocol": evaluation.protocol,
        "epochs": evaluation.epochs,
        "steps": evaluation.steps,
        "source": test.source,
        "images": file.name,
        "seed": seed,
        "mean": evaluation.mean,
        "std": evaluation.std,
        "per_student": evaluation.per_student,
        "seconds": evaluation.seconds,
    }
    if test_images:
        line["test_images"] = len(test.test)
    if test.born is not None:
        line["initialization"] = test.student.initialization
    if beside is not None:
        line |= {"random_real_mean": beside.mean, "random_real_std": beside.std}
    if distilled.note:
        line["note"] = distilled.note
    try:
        append(kept, (json.dumps(line) + "\n").encode())
    except OSError as error:
        progress.say(f"the evaluation is not kept: expected to write {kept}, got {error.strerror}: note it down")
    return evaluation, line
