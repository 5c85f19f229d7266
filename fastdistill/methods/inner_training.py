"""What methods share that train students on synthetic images: optimisers, labels, views, and where it went wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fastdistill.augmentation import dsa
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD, Adam, InnerOptimizer, Momentum
from fastdistill.derivatives.locate import first_nonfinite
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import Batches, unroll
from fastdistill.draws import Purpose
from fastdistill.methods.inner_batches import View
from fastdistill.students.ensemble import Ensemble, Students
from fastdistill.students.gtn import has_only_means


def refuse_buffers(module: nn.Module, use: str, *, means: bool = False) -> None:
    """Refuses students with running statistics.

    Args:
        module: the architecture.
        use: such as ``for trajectory matching``.
        means: whether those are taken whose statistics are means that every training step sets anew.

    Raises:
        ValueError: for students with buffers, whose training has no adjoint here.
    """
    if not dict(module.named_buffers()) or (means and has_only_means(module)):
        return
    if has_only_means(module):
        found, remedy = "mean-only batch norm", "another student.architecture than gtn"
    else:
        found, remedy = "batch norm", "instance, group, layer or none for student.norm"
    raise ValueError(f"expected students without running statistics {use}, got {found}: use {remedy}")


def inner_optimizer(name: str, decay: float) -> InnerOptimizer:
    """The students' optimiser: sgd, momentum or adam, with weight decay."""
    kinds: dict[str, type[SGD] | type[Momentum] | type[Adam]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
    return kinds[name](decay=decay)


def one_hot_labels(runs: int, classes: int, ipc: int) -> Tensor:
    """What learned labels start from, int64 ``[R, C, M, C]``."""
    hard = torch.arange(classes).view(1, classes, 1).expand(runs, classes, ipc)
    return one_hot(hard, classes)


def shown(strategy: dsa.Strategy, *, seed: int, step: int, students: Tensor) -> View | None:
    """How students are shown images: augmented by DSA, drawn for every student, image and inner step.

    Args:
        strategy: the operations.
        seed: the run's seed.
        step: the draw of inner step 0; later ones follow it.
        students: global student indices ``[S]``.

    Returns:
        A `View`, or None where nothing is augmented.
    """
    if not strategy.operations:
        return None

    def view(number: int, images: Tensor) -> Tensor:
        draw = dsa.draw_per_image(
            strategy,
            seed=seed,
            step=step + number,
            students=students,
            images=images.shape[-4],
            purpose=Purpose.TRAINING_AUGMENTATION,
        )
        return dsa.augment(images, strategy, draw)

    return view


def first_nonfinite_step(
    ensemble: Ensemble,
    primitive: Functional,
    student: Students,
    batches: Batches,
    steps: Steps,
    real: tuple[Tensor, Tensor] | None = None,
) -> str:
    """Where one student's training stopped being finite, or its loss on real images; see `first_nonfinite`.

    Args:
        ensemble: gives the architecture.
        primitive: the derivative.
        student: the one.
        batches: what it is shown in every step.
        steps: that it trains, the first of them at its birth.
        real: images ``[1, B, D, H, W]`` and labels ``[1, B]`` of the outer loss.
    """
    weights, buffers, state = student.weights, student.buffers, None
    for number in range(steps.first, steps.first + len(steps)):
        images, labels = batches(number)
        own = images[0] if images.ndim == 5 else images
        targets = labels[0] if labels.ndim == (3 if labels.is_floating_point() else 2) else labels
        seen = {f"the images of inner step {number}": (own, targets)}
        where = first_nonfinite(ensemble.module, weights[0], _of_first(buffers), seen, training=bool(buffers))
        if where:
            return where
        # a step at a time: a trajectory to look at afterwards could be more than memory holds
        step = steps.split(number + 1 - steps.first)[0].split(number - steps.first)[1]
        one = unroll(primitive, weights, buffers, batches, step, state=state)
        weights, buffers, state = one.weights, one.buffers, one.state
    if real is None:
        return ""
    seen = {"real images": (real[0][0], real[1][0])}
    return first_nonfinite(ensemble.module, weights[0], _of_first(buffers), seen)


def _of_first(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[0] for name, tensor in buffers.items()}
