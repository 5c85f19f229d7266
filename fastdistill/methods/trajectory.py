"""Trajectory matching: training on the synthetic images is to go where training on real ones went.

A student starts at the weights ``θ*_t`` of an expert, a network trained on real images, after its epoch ``t``, and
trains on the synthetic images for ``T`` steps of plain SGD with one learned step size. Its loss is how far it ends from
``θ*``, the same expert some epochs later: ``‖θ_T − θ*‖² / ‖θ*_t − θ*‖²`` (MTT: Cazenavette et al., "Dataset
distillation by matching training trajectories", CVPR 2022, equation 2). MTT differentiates it exactly, by the adjoint
recursion of `derivatives.unroll`; TESLA (Cui et al., "Scaling up dataset distillation to ImageNet-1K with constant
memory", ICML 2023) takes every ``θ_i`` for a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from fastdistill.augmentation import dsa
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import adjoint, first_order, unroll
from fastdistill.draws import Purpose, uniform
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods.inner_batches import InnerBatches
from fastdistill.methods.inner_training import first_nonfinite_step, one_hot_labels, refuse_buffers, shown
from fastdistill.methods.outer_gradient import OuterGradient, gathered, runs_of
from fastdistill.methods.primitives import Primitives
from fastdistill.phases import DATA, MATCH, SECOND_ORDER, TRAINING, phase
from fastdistill.students.ensemble import Ensemble, Students


class Experts(Protocol):
    """Networks trained on real images, of which the weights at the start and after every epoch are known."""

    @property
    def count(self) -> int:
        """``E``."""

    @property
    def epochs(self) -> int:
        """``K``."""

    def at(self, experts: Tensor, epochs: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights ``[S, P]`` of experts int64 ``[S]`` after epochs int64 ``[S]`` in ``[0, K]``, both on the CPU."""


def followed(
    config: TrajectoryConfig, experts: int, *, seed: int, step: int, students: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of ``E`` experts each student follows, and from the end of which epoch on.

    Returns:
        Experts int64 ``[S]`` in ``[0, E)`` and epochs int64 ``[S]`` in ``[0, max_start_epoch)``, on the device of
        ``students``.
    """
    numbers = uniform(seed, Purpose.EXPERT_CHOICE, step, students, 2)
    return (numbers[:, 0] * experts).long(), (numbers[:, 1] * config.max_start_epoch).long()


def orders(config: TrajectoryConfig, images: int) -> int:
    """How many random orders of ``N`` images the inner steps use up; 0 where every step takes all images."""
    return 0 if config.batch in (0, images) else -(-config.inner_steps // -(-images // config.batch))


def batch_sizes(config: TrajectoryConfig, images: int) -> list[int]:
    """Images of each of the ``T`` inner steps, of ``N`` in all; see `minibatches`."""
    rest = images % config.batch if config.batch else 0
    order = [images] if not orders(config, images) else [rest] * (rest > 0) + [config.batch] * (images // config.batch)
    return [order[step % len(order)] for step in range(config.inner_steps)]


def minibatches(config: TrajectoryConfig, images: int, *, seed: int, step: int, students: Tensor) -> list[Tensor]:
    """Which of the ``N`` images each inner step takes: pieces of random orders, every student's own.

    As in MTT's code an order is used up from its end, so that the piece that may be short comes first.

    Returns:
        ``T`` tensors int64 ``[S, n]`` on the device of ``students``, no image twice in a step; ``[N]`` where every
        step takes all images, whose order then means nothing.
    """
    count = orders(config, images)
    if not count:
        return [torch.arange(images, device=students.device)] * config.inner_steps
    found: list[Tensor] = []
    for number in range(count):
        numbers = uniform(seed, Purpose.MINIBATCH, step * count + number, students, images)
        found += reversed(numbers.argsort(dim=1, stable=True).split(config.batch, dim=1))
    return found[: config.inner_steps]


def trajectory_loss(weights: Tensor, start: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How far from the target students ended, as a share of how far from it they began, and the derivative.

    Args:
        weights: ``θ_T [S, P]``.
        start: ``θ_0 [S, P]``.
        target: ``θ* [S, P]``; one that equals the start gives no finite loss.

    Returns:
        ``‖θ_T − θ*‖² / ‖θ_0 − θ*‖² [S]`` and ``λ_T = 2 (θ_T − θ*) / ‖θ_0 − θ*‖² [S, P]``.
    """
    whole, gap = (start - target).square().sum(1), weights - target
    return gap.square().sum(1) / whole, gap * (2 / whole)[:, None]


def expert_labels(primitive: Functional, weights: Tensor, images: Tensor) -> Tensor:
    """What networks say of images: softmax rows ``[S, N, C]``.

    Args:
        primitive: the derivative of the architecture.
        weights: ``[S, P]``.
        images: shared ``[N, D, H, W]``, or ``[S, N, D, H, W]``, as they are: not augmented.
    """
    return primitive.logits(weights, {}, images).softmax(-1)


def final_labels(config: TrajectoryConfig, primitive: Functional, experts: Experts, images: Tensor) -> Tensor:
    """The labels that images which were learned with experts' labels are kept and judged with.

    While images are learned every student has the labels of its own target. What is kept needs one row an image: the
    mean of what all experts say after the last epoch that is ever a target.

    Args:
        config: the recipe.
        primitive: the derivative of the architecture.
        experts: all of them; read one after the other.
        images: ``[R, C, M, D, H, W]``.

    Returns:
        ``[R, C, M, C]``.
    """
    epoch = torch.tensor([last_epoch(config)])
    total, flat = torch.zeros((), dtype=images.dtype, device=images.device), images.flatten(0, 2)
    for number in range(experts.count):
        weights = experts.at(torch.tensor([number]), epoch, dtype=images.dtype, device=images.device)
        total = total + expert_labels(primitive, weights, flat)[0]
    mean: Tensor = total / experts.count
    return mean.view(*images.shape[:3], -1)


def last_epoch(config: TrajectoryConfig) -> int:
    """The last epoch of experts that is ever a target."""
    return config.max_start_epoch - 1 + config.expert_epochs


def refuse_short(config: TrajectoryConfig, experts: Experts) -> None:
    """Refuses experts that end before the last target.

    Raises:
        ValueError: saying how many epochs are needed.
    """
    if last_epoch(config) > experts.epochs:
        raise ValueError(
            f"expected experts of at least {last_epoch(config)} epochs, got ones of {experts.epochs}: lower "
            "method.max_start_epoch or expert_epochs, or train the experts longer"
        )


def initial_settings(
    config: TrajectoryConfig, runs: int, classes: int, ipc: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What is learned beside the images, before the first step.

    Returns:
        ``rate [R]``, the students' step size, and ``labels [R, C, M, C]``, one-hot, where these are learned.
    """
    learned = {"rate": torch.full((runs,), config.inner_learning_rate, dtype=torch.float64)}
    if config.labels == "learned":
        learned["labels"] = one_hot_labels(runs, classes, ipc)
    return {name: value.to(device, dtype) for name, value in learned.items()}


class TrajectoryMatching:
    """The method for one student architecture.

    Args:
        config: the recipe.
        ensemble: gives the architecture; the weights are the experts'.
        primitives: the derivative, for the synthetic batches.
        experts: of this architecture.
        labels: synthetic labels ``[C, M]``.
        runs: ``R``; student ``k`` belongs to run ``k // S``.
        students: ``S``.
        chunk: most students whose trajectories are in memory at once.
        seed: the run's seed.
        dtype: of the students.

    Raises:
        ValueError: for students with buffers, whose training has no adjoint here, experts that end too soon, or steps
            of more images than there are.
    """

    def __init__(
        self,
        config: TrajectoryConfig,
        ensemble: Ensemble,
        primitives: Primitives,
        experts: Experts,
        labels: Tensor,
        *,
        runs: int,
        students: int,
        chunk: int,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        refuse_buffers(ensemble.module, "for trajectory matching")
        refuse_short(config, experts)
        if config.batch > labels.numel():
            raise ValueError(
                f"expected a batch of at most the {labels.numel()} synthetic images, got {config.batch}: lower "
                "method.batch, or set it to 0 for all of them"
            )
        self._config, self._ensemble, self._primitive, self._experts = config, ensemble, primitives.synthetic, experts
        self._labels, self._seed, self._dtype = labels.flatten(), seed, dtype
        self._per_run, self._chunk = students, chunk
        self._strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
        # on the host too, where it is known which experts to read without asking the device
        self._numbers = torch.arange(runs * students)
        self._indices = self._numbers.to(labels.device)

    def fresh(self, step: int) -> Students:
        """The students that begin at a step: each with the weights of its expert at the drawn epoch."""
        return Students(indices=self._indices, weights=self._expert(self._numbers, step, later=0), buffers={})

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """The students as they are."""
        return students

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """None: every step begins with students of its own."""
        return None

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean loss in everything that is learned.

        Args:
            learned: ``images [R, C, M, D, H, W]``, ``rate [R]``, and ``labels [R, C, M, C]`` where these are learned.
            students: the students of all runs, ``[R·S]``.
            step: the outer step, which keys the experts, batches and augmentations.
        """

        def cotangents(part: Students, start: int) -> tuple[dict[str, Tensor], Tensor]:
            return self._cotangents(learned, part, start, step)

        # students are told apart by a leading axis, which a number each has no further ones behind
        columns = {**learned, "rate": learned["rate"][:, None]}
        found = gathered(columns, students, self._chunk, self._per_run, cotangents)
        return replace(
            found,
            gradients={**found.gradients, "rate": found.gradients["rate"][:, 0]},
            values={"inner/learning_rate": learned["rate"].mean()},
        )

    def _cotangents(
        self, learned: Mapping[str, Tensor], students: Students, start: int, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Derivatives of each student's own loss, by name ``[S, ...]``, that of the rate ``[S, 1]``, and that loss."""
        config, primitive = self._config, self._primitive
        target = self._target(students, start, step)
        with phase(DATA):  # which image in which step, and the labels that the target gives them
            batches, steps = self._inner(learned, students.indices, target, start, step)
        storage = torch.bfloat16 if config.storage == "bfloat16" else None
        with phase(TRAINING):
            trajectory = unroll(
                primitive, students.weights, students.buffers, batches, steps, keep=config.keep, storage=storage
            )
        with phase(MATCH):
            loss, slope = trajectory_loss(trajectory.weights, students.weights, target)
        soft = config.labels == "learned"
        with phase(SECOND_ORDER):
            if config.gradient == "tesla":
                rates = first_order(primitive, trajectory, batches, slope, batches.pull, labels=soft)
            else:
                rates = adjoint(primitive, trajectory, batches, slope, batches.pull, labels=soft).rates
        found = batches.found
        if config.halved:
            found = {name: value / 2 for name, value in found.items()}
        found["rate"] = rates.sum(0)[:, None]
        return found, loss

    def _expert(self, numbers: Tensor, step: int, *, later: int) -> Tensor:
        """Weights ``[S, P]`` of some students' experts, some epochs after these begin."""
        experts, epochs = followed(self._config, self._experts.count, seed=self._seed, step=step, students=numbers)
        with phase(DATA):
            return self._experts.at(experts, epochs + later, dtype=self._dtype, device=self._indices.device)

    def _target(self, students: Students, start: int, step: int) -> Tensor:
        """Where the experts of some students were when these have trained, ``[S, P]``."""
        numbers = self._numbers[start : start + len(students.indices)]
        return self._expert(numbers, step, later=self._config.expert_epochs)

    def _inner(
        self, learned: Mapping[str, Tensor], indices: Tensor, target: Tensor, start: int, step: int
    ) -> tuple[InnerBatches, Steps]:
        """The batches and steps of some students."""
        config, count, labels = self._config, len(indices), self._labels
        runs = torch.arange(start, start + count, device=indices.device) // self._per_run
        spread = runs_of(start, count, self._per_run)
        run = spread[0][0] if len(spread) == 1 else None
        if config.labels == "expert":
            images = learned["images"].flatten(1, 2)
            labels = expert_labels(self._primitive, target, images[runs] if run is None else images[run])
        batches = InnerBatches(
            learned,
            labels,
            runs,
            minibatches(config, self._labels.numel(), seed=self._seed, step=step, students=indices),
            run=run,
            view=shown(self._strategy, seed=self._seed, step=step * config.inner_steps, students=indices),
        )
        return batches, Steps(optimizer=SGD(), rates=learned["rate"][runs].expand(config.inner_steps, -1))

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a student of ``students``, as it was trained at a step, stopped being finite.

        Its expert is looked at first, then its training; see `first_nonfinite`.
        """
        config, own = self._config, students.some(slice(student, student + 1))
        target = self._target(own, student, step)
        number = self._numbers[student : student + 1]
        experts, epochs = followed(config, self._experts.count, seed=self._seed, step=step, students=number)
        expert, epoch = int(experts), int(epochs)
        for later, weights in ((0, own.weights), (config.expert_epochs, target)):
            for name, tensor in self._primitive.layout.views(weights[0]).items():
                if not bool(tensor.isfinite().all()):
                    return f"weights {name} of expert {expert} after epoch {epoch + later}"
        if torch.equal(own.weights, target):
            return f"expert {expert}, which is the same after epochs {epoch} and {epoch + config.expert_epochs}"
        batches, steps = self._inner(learned, own.indices, target, student, step)
        return first_nonfinite_step(self._ensemble, self._primitive, own, batches, steps)
