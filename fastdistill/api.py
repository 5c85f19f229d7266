"""The package from Python: distil own arrays or data sets, and evaluate any images; nothing is written to disk."""

from __future__ import annotations

from typing import Any

import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig, matching_recipe
from fastdistill.data.arrays import ArrayLike, from_arrays, image_tensor, label_tensor
from fastdistill.data.datasets import from_dataset
from fastdistill.data.store import ImageStore
from fastdistill.evaluation.evaluate import Evaluation, evaluate_students
from fastdistill.evaluation.protocols import protocol as protocol_of
from fastdistill.loop.outer import outer_steps
from fastdistill.loop.plan import make_plan, resolve_device
from fastdistill.loop.setup import as_distilled, initial_state, make_method
from fastdistill.progress import Silent, Talkative
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import image_fetch
from fastdistill.synthetic.distilled import Distilled


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
        device: auto, cpu or cuda.
        progress: show a progress bar on stderr.
        **recipe: other settings that differ from the published ones, see `fastdistill.config.MatchingConfig`.

    Returns:
        The distilled images, a data set of (image, label) that carries its normalisation.

    Raises:
        ValueError: for images or settings that cannot be used, saying which and what to do.
    """
    store = from_dataset(images) if labels is None else from_arrays(images, labels)
    settings = recipe if steps is None else {**recipe, "steps": steps}
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
    with talk.stage("distilling", total) as advance:
        for following, _ in outer_steps(make_method(config, plan, train), state, config.method, total):
            state = following
            advance(state.step, "")
    return as_distilled(config, state.images, train, "own", "")


def evaluate(
    distilled: Distilled | tuple[ArrayLike, ArrayLike],
    test_images: ArrayLike,
    test_labels: ArrayLike,
    *,
    students: int = 20,
    protocol: str = "default",
    epochs: int | None = None,
    student: StudentConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Trains fresh students on some images and tests them.

    Args:
        distilled: what `distill` or `load` returns, or a pair of images and labels in the form `distill` takes.
        test_images: test images in the form `distill` takes, in the original range: they get the training images'
            normalisation.
        test_labels: their classes.
        students: fresh students, per run of a distilled set of several runs.
        protocol: ``dc``, ``dsa`` or ``default``.
        epochs: epochs to train; the protocol's by default.
        student: the network; ConvNet-3-128 by default. Only its weight distribution and architecture are used.
        seed: of every draw.
        device: auto, cpu or cuda.
        progress: show a progress bar on stderr.

    Returns:
        An object with ``mean``, ``std`` and ``per_student`` accuracies, shares in [0, 1].

    Raises:
        ValueError: for images or settings that cannot be used, saying which and what to do.
    """
    place = resolve_device(device)
    student = student or StudentConfig()
    if isinstance(distilled, Distilled):
        normalization, class_names = distilled.normalization, distilled.class_names
        runs, dataset = distilled.runs, distilled.dataset
        images, labels = distilled.images.to(place), distilled.labels.to(place)
        own = images[0] if runs == 1 else images.repeat_interleave(students, dim=0)
    else:
        store = from_arrays(*distilled).to(place)
        normalization, class_names, runs, dataset = store.normalization, store.class_names, 1, "own"
        own, labels = store.batch(torch.arange(len(store), device=place)), store.labels
    raw = image_tensor(test_images)
    test = ImageStore(
        images=raw, labels=label_tensor(test_labels, len(raw)), class_names=class_names, normalization=normalization
    ).to(place)
    if test.shape != tuple(own.shape[-3:]):
        raise ValueError(
            f"expected test images of the training images' size {tuple(own.shape[-3:])}, got {test.shape}: resize them"
        )
    chosen = protocol_of(protocol, dataset=dataset, norm=student.norm)
    if epochs is not None:
        chosen = chosen.with_epochs(epochs)
    talk = Talkative() if progress else Silent()
    with talk.stage("testing", chosen.training.epochs) as advance:
        return evaluate_students(
            student_module(student, test.shape, test.num_classes),
            image_fetch(own, labels),
            len(labels),
            test,
            chosen,
            students=torch.arange(runs * students, device=place),
            seed=seed,
            distribution=student.weights,
            progress=lambda epoch: advance(epoch, ""),
        )
