"""Unrolled training: Dataset Distillation (Wang et al., "Dataset distillation", 2018) and RaT-BPTT (Feng et al. 2024).

Students train on the synthetic images for ``T`` steps; everything learned moves along the exact derivative of their
loss on real images, found by the adjoint recursion of `derivatives.unroll`. Dataset Distillation learns a rate for
every step of plain SGD; RaT-BPTT trains by Adam on drawn batches and differentiates a random window of the steps. The
student of generative teaching networks trains by the means of its batches, and is judged by those of its last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastdistill.augmentation import dsa
from fastdistill.derivatives.functional import Buffers
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import Slope, adjoint, advance, unroll
from fastdistill.draws import Purpose, uniform
from fastdistill.method_configs import UnrolledConfig
from fastdistill.methods.inner_batches import InnerBatches
from fastdistill.methods.inner_training import (
    first_nonfinite_step,
    inner_optimizer,
    one_hot_labels,
    refuse_buffers,
    shown,
)
from fastdistill.methods.outer_gradient import OuterGradient, gathered, runs_of
from fastdistill.methods.primitives import Primitives
from fastdistill.phases import DATA, REAL_GRADIENTS, SECOND_ORDER, TRAINING, phase
from fastdistill.students.ensemble import Ensemble, Students

# (outer step, students [S]) to real images [S, B, D, H, W] and labels [S, B]
Real = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def batch_order(config: UnrolledConfig, classes: int, ipc: int) -> Tensor:
    """Which of the ``N = C·M`` images each step takes, int64 ``[T, C·M / batches]``; a step has all classes alike."""
    own = torch.arange(classes * ipc).view(classes, config.batches, -1)
    return own.transpose(0, 1).flatten(1).repeat(config.epochs, 1)


def drawn_order(config: UnrolledConfig, classes: int, ipc: int, *, seed: int, step: int, students: Tensor) -> Tensor:
    """Random images of each step and student: ``M / batches`` of each of ``drawn_classes`` classes.

    Returns:
        int64 ``[S, T, n]``, no image twice in a step, on the device of ``students``.
    """
    chosen, each, steps = config.drawn_classes or classes, ipc // config.batches, config.inner_steps
    rows = []
    for number in range(steps):
        numbers = uniform(seed, Purpose.MINIBATCH, step * steps + number, students, classes * (1 + ipc))
        picked = numbers[:, :classes].argsort(dim=1, stable=True)[:, :chosen]
        within = numbers[:, classes:].unflatten(1, (classes, ipc)).argsort(dim=2, stable=True)[..., :each]
        members = picked[..., None] * ipc + within.gather(1, picked[..., None].expand(-1, -1, each))
        rows.append(members.flatten(1))
    return torch.stack(rows, dim=1)


def window(config: UnrolledConfig, step: int, *, seed: int) -> tuple[int, int]:
    """The inner steps that an outer step differentiates, the first and the one after the last.

    Training ends with the window. All students share it, since it decides how long they train.
    """
    if config.grow_every:
        begin = birth(config, step)
        return begin, begin + config.trained_steps(step)
    length = config.window or config.inner_steps
    last = config.inner_steps - length
    if config.window_start == "random":
        student = torch.zeros(1, dtype=torch.int64)  # on the host: a program's length cannot wait on a device
        share = float(uniform(seed, Purpose.WINDOW, step // config.window_every, student, 1))
        begin = config.window_least + int(share * (last - config.window_least + 1))
    elif config.window_start == "moving":
        share = step / max(config.steps - 1, 1)
        begin = config.window_least + round(share * (last - config.window_least))
    else:
        begin = last
    return begin, begin + length


def birth(config: UnrolledConfig, step: int) -> int:
    """The inner step that the students of an outer step begin with; those before it are not trained yet."""
    return config.inner_steps - config.trained_steps(step) if config.grow_backwards else 0


def initial_settings(
    config: UnrolledConfig, runs: int, classes: int, ipc: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What is learned beside the images, before the first step.

    Returns:
        ``rates [R, T]``, whose softplus is the learning rate, ``momenta [R, T]``, whose sigmoid is the momentum, and
        ``labels [R, C, M, C]``, one-hot; those that are learned.
    """
    shape, learned = (runs, config.inner_steps), {}
    if config.learn_rates:
        rate = config.inner_learning_rate
        start = rate + math.log(-math.expm1(-rate))  # where the softplus is the rate
        learned["rates"] = torch.full(shape, start, dtype=dtype, device=device)
    if config.learn_momenta:
        start = math.log(config.inner_momentum / (1 - config.inner_momentum))
        learned["momenta"] = torch.full(shape, start, dtype=dtype, device=device)
    if config.learn_labels:
        learned["labels"] = one_hot_labels(runs, classes, ipc).to(device, dtype)
    return learned


def learning_rates(config: UnrolledConfig, learned: Mapping[str, Tensor]) -> Tensor:
    """Learning rates ``[R, T]`` of what is learned."""
    if config.learn_rates:
        rates: Tensor = softplus(learned["rates"])
        return rates
    images = learned["images"]
    return images.new_full((images.shape[0], config.inner_steps), config.inner_learning_rate)


def momenta(config: UnrolledConfig, learned: Mapping[str, Tensor]) -> Tensor | None:
    """Momenta ``[R, T]`` of what is learned; None for plain SGD."""
    if config.optimizer == "sgd":
        return None
    if config.learn_momenta:
        return learned["momenta"].sigmoid()
    images = learned["images"]
    return images.new_full((images.shape[0], config.inner_steps), config.inner_momentum)


class Unrolled:
    """The method for one student architecture.

    Args:
        config: the recipe.
        ensemble: draws students.
        primitives: the derivative, for the real batch and for the synthetic ones.
        real: real images for a step.
        labels: synthetic labels ``[C, M]``.
        runs: ``R``; student ``k`` belongs to run ``k // S``.
        students: ``S``.
        chunk: most students whose trajectories are in memory at once.
        seed: the run's seed.

    Raises:
        ValueError: for students with other buffers than means of their last batch, whose training has no adjoint here,
            or more drawn classes than there are.
    """

    def __init__(
        self,
        config: UnrolledConfig,
        ensemble: Ensemble,
        primitives: Primitives,
        real: Real,
        labels: Tensor,
        *,
        runs: int,
        students: int,
        chunk: int,
        seed: int,
    ) -> None:
        refuse_buffers(ensemble.module, "for unrolled training", means=True)
        if config.drawn_classes > len(labels):
            raise ValueError(
                f"expected drawn_classes of at most the {len(labels)} classes, got {config.drawn_classes}: lower "
                "method.drawn_classes, or leave it out to draw all"
            )
        self._config, self._ensemble, self._primitives, self._real = config, ensemble, primitives, real
        self._labels, self._shape, self._seed = labels.flatten(), tuple(labels.shape), seed
        self._order = batch_order(config, *labels.shape).to(labels.device)
        self._per_run, self._chunk = students, chunk
        self._optimizer = inner_optimizer(config.optimizer, config.inner_decay)
        self._strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
        self._indices = torch.arange(runs * students, device=labels.device)

    def fresh(self, step: int) -> Students:
        """The students that begin at a step."""
        return self._ensemble.draw(step, self._indices)

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """The students as they are."""
        return students

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """None: every step begins with students of its own."""
        return None

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean outer loss in everything that is learned.

        Args:
            learned: ``images [R, C, M, D, H, W]``, and ``rates``, ``momenta`` ``[R, T]`` and ``labels [R, C, M, C]``
                where these are learned.
            students: the students of all runs, ``[R·S]``.
            step: the outer step, which keys the real batches, orders, augmentations and window.
        """

        def cotangents(part: Students, start: int) -> tuple[dict[str, Tensor], Tensor]:
            return self._cotangents(learned, part, start, step)

        return gathered(learned, students, self._chunk, self._per_run, cotangents)

    def _cotangents(
        self, learned: Mapping[str, Tensor], students: Students, start: int, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Derivatives of each student's own outer loss, by name ``[S, ...]``, and that loss ``[S]``."""
        config, synthetic = self._config, self._primitives.synthetic
        with phase(DATA):  # which image in which step
            batches, steps = self._inner(learned, students.indices, start, step)
        begin, end = window(config, step, seed=self._seed)
        born = birth(config, step)
        before, inside = steps.split(end)[0].split(born)[1].split(begin - born)
        storage = torch.bfloat16 if config.storage == "bfloat16" else None
        with phase(TRAINING):
            weights, state = advance(synthetic, students.weights, students.buffers, batches, before)
            trajectory = unroll(
                synthetic, weights, students.buffers, batches, inside, state=state, keep=config.keep, storage=storage
            )
        with phase(DATA):
            images, labels = self._real(step, students.indices)
        points = 1  # outer losses, of equal weight
        if config.intermediate_every:
            points += (end - begin - 1) // config.intermediate_every
        total = torch.zeros_like(trajectory.losses[0])

        def outer(weights: Tensor, buffers: Buffers) -> Slope:
            nonlocal total
            with phase(REAL_GRADIENTS):
                found = self._primitives.real.value_and_gradient(
                    weights, buffers, images.unsqueeze(1), labels.unsqueeze(1), of_buffers=bool(buffers)
                )
            total = total + found.loss[:, 0] / points
            return Slope(
                found.gradient[:, 0] / points,
                {name: slope[:, 0] / points for name, slope in found.of_buffers.items()},
            )

        def intermediate(number: int, weights: Tensor, buffers: Buffers) -> Slope | None:
            passed = number - begin
            return outer(weights, buffers) if passed % config.intermediate_every == 0 else None

        slope = outer(trajectory.weights, trajectory.buffers)
        with phase(SECOND_ORDER):
            slopes = adjoint(
                synthetic,
                trajectory,
                batches,
                slope,
                batches.pull,
                labels=config.learn_labels,
                intermediate=intermediate if config.intermediate_every else None,
            )
        found = batches.found
        runs = self._runs(start, len(students.indices))
        if config.learn_rates:
            found["rates"] = self._whole(slopes.rates, begin) * learned["rates"].sigmoid()[runs]
        if config.learn_momenta:
            assert slopes.momenta is not None
            momenta = learned["momenta"].sigmoid()[runs]
            found["momenta"] = self._whole(slopes.momenta, begin) * momenta * (1 - momenta)
        return found, total

    def _whole(self, slopes: Tensor, begin: int) -> Tensor:
        """Derivatives ``[W, S]`` in settings of the window's steps as those of all steps, ``[S, T]``."""
        whole = slopes.new_zeros(slopes.shape[1], self._config.inner_steps)
        whole[:, begin : begin + slopes.shape[0]] = slopes.T
        return whole

    def _runs(self, start: int, count: int) -> Tensor:
        """The run of each of some students, ``[S]``."""
        return torch.arange(start, start + count, device=self._indices.device) // self._per_run

    def _inner(
        self, learned: Mapping[str, Tensor], indices: Tensor, start: int, step: int
    ) -> tuple[InnerBatches, Steps]:
        """The batches and steps of some students."""
        config, count = self._config, len(indices)
        runs, touched = self._runs(start, count), runs_of(start, count, self._per_run)
        order = self._order
        if config.drawn:
            order = drawn_order(config, *self._shape, seed=self._seed, step=step, students=indices)
        batches = InnerBatches(
            learned,
            self._labels,
            runs,
            order,
            run=touched[0][0] if len(touched) == 1 else None,
            view=shown(self._strategy, seed=self._seed, step=step * config.inner_steps, students=indices),
        )
        found = momenta(config, learned)
        return batches, Steps(
            optimizer=self._optimizer,
            rates=learning_rates(config, learned)[runs].T,
            momenta=None if found is None else found[runs].T,
        )

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a student of ``students``, as it was trained at a step, stopped being finite; see `first_nonfinite`."""
        own = students.some(slice(student, student + 1))
        batches, steps = self._inner(learned, own.indices, student, step)
        _, end = window(self._config, step, seed=self._seed)
        real = self._real(step, own.indices)
        trained = steps.split(end)[0].split(birth(self._config, step))[1]
        return first_nonfinite_step(self._ensemble, self._primitives.synthetic, own, batches, trained, real)
