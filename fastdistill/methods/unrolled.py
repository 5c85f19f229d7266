"""Unrolled training: Dataset Distillation (Wang et al., "Dataset distillation", 2018).

Students train on the synthetic images for ``T`` steps, each with a learned rate; everything learned moves along the
exact derivative of their loss on real images, found by the adjoint recursion of `derivatives.unroll`. The published
algorithm is its plain SGD with one student a step; momentum and Adam inside are the same recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastdistill.config import UnrolledConfig
from fastdistill.derivatives.inner import SGD, Adam, InnerOptimizer, Momentum
from fastdistill.derivatives.locate import first_nonfinite
from fastdistill.derivatives.unroll import Steps, adjoint, unroll
from fastdistill.methods.outer_gradient import OuterGradient, masked, per_finite_student, runs_of, summed_per_run
from fastdistill.methods.primitives import Primitives
from fastdistill.students.ensemble import Ensemble, Students

# (outer step, students [S]) to real images [S, B, D, H, W] and labels [S, B]
Real = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def batch_order(config: UnrolledConfig, classes: int, ipc: int) -> Tensor:
    """Which of the ``N = C·M`` images each step takes, int64 ``[T, C·M / batches]``; a step has all classes alike."""
    own = torch.arange(classes * ipc).view(classes, config.batches, -1)
    return own.transpose(0, 1).flatten(1).repeat(config.epochs, 1)


def initial_settings(
    config: UnrolledConfig, runs: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What is learned beside the images, before the first step.

    Returns:
        ``rates [R, T]``, whose softplus is the learning rate, and ``momenta [R, T]``, whose sigmoid is the momentum;
        those that are learned.
    """
    shape, learned = (runs, config.inner_steps), {}
    if config.learn_rates:
        learned["rates"] = torch.full(shape, config.inner_learning_rate, dtype=torch.float64).expm1().log()
    if config.learn_momenta:
        learned["momenta"] = torch.full(shape, config.inner_momentum, dtype=torch.float64).logit()
    return {name: value.to(device, dtype) for name, value in learned.items()}


def learning_rates(config: UnrolledConfig, learned: Mapping[str, Tensor]) -> Tensor:
    """Learning rates ``[R, T]`` of what is learned."""
    if config.learn_rates:
        rates: Tensor = softplus(learned["rates"])
        return rates
    images = learned["images"]
    return images.new_full((images.shape[0], config.inner_steps), config.inner_learning_rate)


def inner_optimizer(config: UnrolledConfig) -> InnerOptimizer:
    """The students' optimiser."""
    kinds: dict[str, type[SGD] | type[Momentum] | type[Adam]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
    return kinds[config.optimizer](decay=config.inner_decay)


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

    Raises:
        ValueError: for students with buffers, whose training has no adjoint here.
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
    ) -> None:
        if dict(ensemble.module.named_buffers()):
            raise ValueError(
                "expected students without running statistics for unrolled training, got batch norm: use instance, "
                "group, layer or none for student.norm"
            )
        self._config, self._ensemble, self._primitives, self._real = config, ensemble, primitives, real
        self._labels = labels.flatten()
        self._order = batch_order(config, *labels.shape).to(labels.device)
        self._per_run, self._chunk, self._optimizer = students, chunk, inner_optimizer(config)
        self._indices = torch.arange(runs * students, device=labels.device)

    def fresh(self, step: int) -> Students:
        """The students that begin at a step."""
        return self._ensemble.draw(step, self._indices)

    def prepare(self, students: Students, step: int) -> Students:
        """The students as they are."""
        return students

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """None: every step begins with students of its own."""
        return None

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean outer loss in everything that is learned.

        Args:
            learned: ``images [R, C, M, D, H, W]``, and ``rates``, ``momenta`` ``[R, T]`` where these are learned.
            students: the students of all runs, ``[R·S]``.
            step: the outer step, which keys the real batches.
        """
        totals = {name: torch.zeros_like(value) for name, value in learned.items()}
        losses, finite = [], []
        for start in range(0, len(students.indices), self._chunk):
            part = students.some(slice(start, start + self._chunk))
            found, loss = self._cotangents(learned, part, start, step)
            sums = torch.stack([value.flatten(1).sum(1) for value in found.values()])
            sound = loss.isfinite() & sums.isfinite().all(0)
            for name, value in found.items():
                totals[name] += summed_per_run(masked(value, sound), start, learned["images"].shape[0], self._per_run)
            losses.append(loss)
            finite.append(sound)
        whole = torch.cat(finite)
        means = {name: per_finite_student(total, whole, self._per_run) for name, total in totals.items()}
        return OuterGradient(gradients=means, loss=torch.cat(losses), finite=whole)

    def _cotangents(
        self, learned: Mapping[str, Tensor], students: Students, start: int, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Derivatives of each student's own outer loss, by name ``[S, ...]``, and that loss ``[S]``."""
        batch, steps = self._inner(learned, start, len(students.indices))
        trajectory = unroll(
            self._primitives.synthetic, students.weights, students.buffers, batch, steps, keep=self._config.keep
        )
        images, labels = self._real(step, students.indices)
        outer = self._primitives.real.value_and_gradient(
            trajectory.weights, students.buffers, images.unsqueeze(1), labels.unsqueeze(1)
        )
        # a student's own cotangents, since one that turns out non-finite must not have reached the others' sum
        pulled = images.new_zeros(len(students.indices), *learned["images"].flatten(1, 2).shape[1:])

        def pull(number: int, cotangent: Tensor, _labels: Tensor | None) -> None:
            members = self._order[number]
            pulled[:, members] = pulled[:, members] + cotangent

        slopes = adjoint(self._primitives.synthetic, trajectory, batch, outer.gradient[:, 0], pull)
        found = {"images": pulled.unflatten(1, learned["images"].shape[1:3])}
        if "rates" in learned:
            found["rates"] = slopes.rates.T * learned["rates"].sigmoid()[self._runs(start, len(students.indices))]
        if "momenta" in learned and slopes.momenta is not None:
            momenta = learned["momenta"].sigmoid()[self._runs(start, len(students.indices))]
            found["momenta"] = slopes.momenta.T * momenta * (1 - momenta)
        return found, outer.loss[:, 0]

    def _runs(self, start: int, count: int) -> Tensor:
        """The run of each of some students, ``[S]``."""
        return torch.arange(start, start + count, device=self._indices.device) // self._per_run

    def _inner(
        self, learned: Mapping[str, Tensor], start: int, count: int
    ) -> tuple[Callable[[int], tuple[Tensor, Tensor]], Steps]:
        """The batches and steps of some students."""
        runs, images = self._runs(start, count), learned["images"].flatten(1, 2)
        touched = runs_of(start, count, self._per_run)
        momenta = None
        if self._optimizer.slots:
            momenta = images.new_full((self._config.inner_steps, count), self._config.inner_momentum)
            if "momenta" in learned:
                momenta = learned["momenta"].sigmoid()[runs].T

        def batch(number: int) -> tuple[Tensor, Tensor]:
            members = self._order[number]
            labels = self._labels[members]
            if len(touched) == 1:  # students of one run see the same images, which then have no student axis
                return images[touched[0][0], members], labels
            return images[runs[:, None], members], labels

        rates = learning_rates(self._config, learned)[runs].T
        return batch, Steps(optimizer=self._optimizer, rates=rates, momenta=momenta)

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a student of ``students``, as it was trained at a step, stopped being finite; see `first_nonfinite`."""
        own = students.some(slice(student, student + 1))
        batch, steps = self._inner(learned, student, 1)
        trajectory = unroll(self._primitives.synthetic, own.weights, own.buffers, batch, steps)
        for number, weights in enumerate(trajectory.stored_weights):
            images, labels = batch(number)
            where = first_nonfinite(
                self._ensemble.module, weights[0], {}, {f"the images of inner step {number}": (images, labels)}
            )
            if where:
                return where
        images, labels = self._real(step, own.indices)
        return first_nonfinite(
            self._ensemble.module, trajectory.weights[0], {}, {"real images": (images[0], labels[0])}
        )
