"""The package from Python: distil own arrays or data sets, and evaluate any images; nothing is written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.arrays import ArrayLike, from_arrays, image_tensor, label_tensor
from fastdistill.data.datasets import from_dataset
from fastdistill.data.store import ImageStore
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images
from fastdistill.evaluation.protocols import DIGITS
from fastdistill.loop.artefact import as_distilled
from fastdistill.loop.descents import make_descent
from fastdistill.loop.examination import protocol_for
from fastdistill.loop.guard import Guard
from fastdistill.loop.outer import outer_steps
from fastdistill.loop.plan import make_plan, resolve_device
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.students.ensemble import student_module
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.load import load
from fastdistill.talkative import Talkative


def distill(
    images: Any,
    labels: ArrayLike | None = None,
    *,
    method: str = "dc",
    ipc: int = 1,
    students: int = 1,
    runs: int = 1,
    steps: int | None = None,
    seed: int = 0,
    student: StudentConfig | None = None,
    dataset: str = "own",
    device: str = "auto",
    progress: bool = False,
    **recipe: Any,
) -> Distilled:
    """Distils real images into ``ipc`` synthetic ones per class.

    Args:
        images: arrays or tensors ``[n, H, W]``, ``[n, H, W, D]`` or ``[n, D, H, W]``, uint8 or float; or, without
            ``labels``, any indexable data set of (image, label).
        labels: class indices ``[n]`` from 0 to C − 1.
        method: ``dc`` or ``dsa``, with the published settings for ``ipc``.
        ipc: synthetic images per class, ``M``.
        students: students per step, ``S``.
        runs: independent runs at once, ``R``.
        steps: updates of the images; the published number by default.
        seed: of every draw; equal seeds give equal images on one machine.
        student: the network; ConvNet-3-128 by default.
        dataset: name of the data set, where it matters: DSA does not mirror ``mnist``, ``svhn`` and ``digits``, and
            the protocol ``dc`` treats ``mnist`` apart.
        device: auto, cpu or cuda.
        progress: show a progress bar on stderr.
        **recipe: other settings that differ from the published ones, see `fastdistill.config.MatchingConfig`.

    Returns:
        The distilled images, a data set of (image, label) that carries its normalisation.

    Raises:
        ValueError: for images or settings that cannot be used, saying which and what to do.
        RunFailed: when too many students are not finite, naming the step and the layer.
    """
    store = from_dataset(images) if labels is None else from_arrays(images, labels)
    settings = recipe if steps is None else {**recipe, "steps": steps}
    settings.setdefault("flip", dataset not in DIGITS)
    config = RunConfig(
        name=method,
        ipc=ipc,
        students=students,
        runs=runs,
        seed=seed,
        student=student or StudentConfig(),
        method=matching_recipe(method, ipc, **settings),
        evaluation=EvaluationConfig(),
        device=device,
    )
    plan = make_plan(config, store.shape, store.num_classes)
    train = store.to(torch.device(plan.device))
    state = initial_state(config, plan, train)
    total = config.method.steps
    talk = Talkative() if progress else Silent()
    distilling = make_method(config, plan, train)
    guard = Guard(distilling, lambda step, text: talk.say(f"step {step}: {text}"))
    descent = make_descent(config.method)
    course = outer_steps(distilling, descent, state, total, masked_share=config.max_masked_share)
    with talk.stage("distilling", total) as advance:
        for following, found in course:
            guard.watch(state, found)
            state = following
            advance(state.step, "")
    guard.look()
    return as_distilled(config, state.learned, train, dataset, "")


def evaluate(
    distilled: Distilled | str | Path | tuple[ArrayLike, ArrayLike],
    test_images: ArrayLike,
    test_labels: ArrayLike,
    *,
    students: int = 20,
    protocol: str | None = None,
    epochs: int | None = None,
    student: StudentConfig | None = None,
    dataset: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Trains fresh students on some images and tests them.

    Args:
        distilled: what `distill` or `load` returns, a path that `load` takes, or a pair of images and labels in the
            form that `distill` takes.
        test_images: test images in the form `distill` takes, in the unit of the training images (bytes, or the same
            floats): they get the training images' normalisation.
        test_labels: their classes.
        students: fresh students, per run of a distilled set of several runs.
        protocol: ``dc``, ``dsa``, ``default``, or ``own``, which replays the steps and rates that the images were
            learned with; by default ``own`` where they have any, else ``default``.
        epochs: epochs to train; the protocol's by default.
        student: the network; ConvNet-3-128 by default. Only its weight distribution and architecture are used.
        dataset: name of the data set, for protocols that treat some apart; the distilled images' own by default.
        seed: of every draw.
        device: auto, cpu or cuda.
        progress: show a progress bar on stderr.

    Returns:
        An object with ``mean``, ``std`` and ``per_student`` accuracies, shares in [0, 1], and the ``protocol``.

    Raises:
        ValueError: for images or settings that cannot be used, saying which and what to do.
    """
    place = resolve_device(device)
    student = student or StudentConfig()
    if isinstance(distilled, str | Path):
        distilled = load(distilled)
    schedule = learning_rate = None
    if isinstance(distilled, Distilled):
        schedule, learning_rate = distilled.schedule, distilled.learning_rate
        normalization, class_names, unit = distilled.normalization, distilled.class_names, distilled.unit
        images, labels = distilled.images, distilled.labels
        name, align_corners = dataset or distilled.dataset, distilled.align_corners
    else:
        store = from_arrays(*distilled)
        normalization, class_names, unit = store.normalization, store.class_names, store.unit
        images, labels = store.batch(torch.arange(len(store)))[None], store.labels
        name, align_corners = dataset or "own", True
    raw = image_tensor(test_images)
    test = ImageStore(
        images=raw,
        labels=label_tensor(test_labels, len(raw)).to(raw.device),
        class_names=class_names,
        normalization=normalization,
    ).to(place)
    if test.unit != unit:
        raise ValueError(
            f"expected test images in the unit of the training images ({unit}), got {test.unit}: convert them, bytes "
            "stand for 0 to 1"
        )
    if test.shape != tuple(images.shape[-3:]):
        raise ValueError(
            f"expected test images of the training images' size {tuple(images.shape[-3:])}, got {test.shape}: resize "
            "them"
        )
    chosen = protocol_for(
        schedule,
        protocol,
        "default",
        dataset=name,
        student=student,
        align_corners=align_corners,
        learning_rate=learning_rate,
    )
    return evaluate_images(
        student_module(student, test.shape, test.num_classes),
        images.to(place),
        labels.to(place),
        test,
        chosen if epochs is None else chosen.with_epochs(epochs),
        students=students,
        seed=seed,
        distribution=student.weights,
        progress=Talkative() if progress else Silent(),
    )
