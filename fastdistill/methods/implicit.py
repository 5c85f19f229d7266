"""Implicit differentiation (IFT; Lorraine et al., "Optimizing millions of hyperparameters", 2020).

Let ``θ`` minimise the students' training loss ``L_T(θ, x, y)`` on the synthetic images ``x``, weight decay included,
with Hessian ``H``, and let ``L_V`` be the loss on real images. Moving ``x`` moves the minimum, and
``dL_V/dx = ∂L_V/∂x − K p``, ``dL_V/dy = −k p`` with ``H p = ∇θ L_V``: one solution of a linear system per student,
whatever the number of steps that led to ``θ``.

Real students are no such minimum, and their Hessians are indefinite: after 3000 training steps the smallest eigenvalue
is still negative. There the Neumann series does not converge for any ``α``; cut off after a few terms it is a
preconditioner, not an inverse. Conjugate gradients end at a direction of negative curvature; damping makes these
rarer, and the Gauss-Newton product has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdistill.augmentation import dsa
from fastdistill.derivatives.curvature import gauss_newton_product, hessian_product
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.locate import first_nonfinite
from fastdistill.derivatives.solve import (
    Operator,
    Solution,
    alpha_warning,
    conjugate_gradients,
    largest_eigenvalue,
    neumann,
)
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import Batches, advance
from fastdistill.draws import Purpose, normal
from fastdistill.method_configs import ImplicitConfig
from fastdistill.methods.inner_batches import InnerBatches
from fastdistill.methods.inner_training import inner_optimizer, one_hot_labels, refuse_buffers, shown
from fastdistill.methods.outer_gradient import OuterGradient, gathered, runs_of
from fastdistill.methods.primitives import Primitives
from fastdistill.phases import AUGMENTATION, DATA, REAL_GRADIENTS, SECOND_ORDER, TRAINING, phase
from fastdistill.students.ensemble import Ensemble, Students

# (outer step, students [S]) to real images [S, B, D, H, W] and labels [S, B]
Real = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Hypergradient:
    """What implicit differentiation finds for each student.

    Attributes:
        loss: ``L_V [S]``.
        images: ``−K p [S, n, D, H, W]``; NaN for a student whose system was not solved in finite numbers.
        labels: ``−k p [S, n, C]``, or None where it was not asked for.
        solution: ``p`` and how well it solves the system.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    solution: Solution


def hypergradient(
    primitives: Primitives,
    weights: Tensor,
    synthetic: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    solve: Callable[[Tensor], Solution],
    *,
    labels: bool = False,
) -> Hypergradient:
    """The part of ``L_V``'s derivative that goes through the trained weights, without the direct one.

    Args:
        primitives: the derivative, for the real batch and for the synthetic images.
        weights: the trained ``θ [S, P]``.
        synthetic: images that ``θ`` was trained on ``[S, n, D, H, W]`` or, shared, ``[n, D, H, W]``, and their labels.
        real: images ``[S, B, D, H, W]`` and labels ``[S, B]``.
        solve: maps ``∇θ L_V [S, P]`` to ``p``, see `solver`.
        labels: whether the labels' part is wanted; needs soft ones.

    Raises:
        ValueError: for shapes that do not fit together, or ``labels`` of class indices.
    """
    with phase(REAL_GRADIENTS):
        outer = primitives.real.value_and_gradient(weights, {}, real[0].unsqueeze(1), real[1].unsqueeze(1))
    with phase(SECOND_ORDER):
        found = solve(outer.gradient[:, 0])
        products = primitives.synthetic.products(
            weights, {}, *_grouped(*synthetic), found.solution[:, None], wanted=("images",) + ("labels",) * labels
        )
    assert products.images is not None
    sound = found.finite.view(-1, 1, 1, 1, 1)
    return Hypergradient(
        loss=outer.loss[:, 0],
        images=torch.where(sound, -products.images[:, 0], torch.nan),
        labels=None if products.labels is None else -products.labels[:, 0],
        solution=found,
    )


def curvature(
    config: ImplicitConfig, primitive: Functional, weights: Tensor, images: Tensor, labels: Tensor
) -> Operator:
    """The operator of a recipe's linear system, ``[S, P] → [S, P]``: curvature, weight decay and damping.

    Args:
        config: the recipe.
        primitive: the derivative, for the synthetic images.
        weights: the trained ``θ [S, P]``.
        images: ``[S, n, D, H, W]`` or, shared, ``[n, D, H, W]``.
        labels: of these.
    """
    product = hessian_product if config.curvature == "hessian" else gauss_newton_product
    # both are multiples of the identity, and the weight decay is part of the training loss
    return product(primitive, weights, {}, *_grouped(images, labels), decay=config.inner_decay + config.damping)


def solver(config: ImplicitConfig, apply: Operator, start: Tensor | None = None) -> Callable[[Tensor], Solution]:
    """A recipe's solver of ``apply(p) = b``, for `hypergradient`.

    Args:
        config: the recipe.
        apply: from `curvature`.
        start: where conjugate gradients begin ``[S, P]``, by default zero.
    """
    if config.solver == "neumann":
        return lambda b: neumann(apply, b, config.terms, config.alpha, scaled=config.scaled)
    return lambda b: conjugate_gradients(apply, b, config.terms, tolerance=config.tolerance, start=start)


def initial_labels(
    config: ImplicitConfig, runs: int, classes: int, ipc: int, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What is learned beside the images, before the first step: ``labels [R, C, M, C]`` where they are, one-hot."""
    return {"labels": one_hot_labels(runs, classes, ipc).to(device, dtype)} if config.learn_labels else {}


def estimates_eigenvalue(config: ImplicitConfig, step: int) -> bool:
    """Whether a hyperstep estimates the largest eigenvalue."""
    return step == 0 or (config.eigenvalue_every > 0 and step % config.eigenvalue_every == 0)


class Implicit:
    """The method for one student architecture.

    Students train on the synthetic images before every hyperstep, all ``N`` images in each step, and live for
    ``hypersteps`` of them: they keep weights and optimiser and go on training on the moved images. An augmentation is
    drawn once a hyperstep, so that the Hessian is that of the loss that the students were trained on.

    The Hessians of real students are indefinite, so the series is a truncated preconditioner, not an inverse; see the
    module. What became of the system is logged as means over the finite students: ``implicit/residual``,
    ``implicit/steps``, ``implicit/negative_curvature`` (the share of students that met any), with the worst of
    them, ``implicit/residual_max``; and, where eigenvalues of largest magnitude are estimated, each with its sign,
    ``implicit/eigenvalue_max`` and ``implicit/eigenvalue_min`` of all students.

    Args:
        config: the recipe.
        ensemble: draws students.
        primitives: the derivative, for the real batch and for the synthetic images.
        real: real images for a step.
        labels: synthetic labels ``[C, M]``.
        runs: ``R``; student ``k`` belongs to run ``k // S``.
        students: ``S``.
        chunk: most students at once.
        seed: the run's seed.

    Raises:
        ValueError: for students with buffers, whose training loss is no function of weights and images alone.
    """

    def __init__(
        self,
        config: ImplicitConfig,
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
        refuse_buffers(ensemble.module, "for implicit differentiation")
        self._config, self._ensemble, self._primitives, self._real = config, ensemble, primitives, real
        self._labels, self._seed, self._chunk, self._per_run = labels.flatten(), seed, chunk, students
        self._order = torch.arange(labels.numel(), device=labels.device)[None]
        self._optimizer = inner_optimizer(config.optimizer, config.inner_decay)
        self._strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
        self._indices = torch.arange(runs * students, device=labels.device)

    def fresh(self, step: int) -> Students:
        """The students that begin at a step."""
        return self._ensemble.draw(step, self._indices)

    def prepare(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students:
        """The students trained on; a pure function of its arguments."""
        weights, states = [], []
        for start in range(0, len(students.indices), self._chunk):
            part = students.some(slice(start, start + self._chunk))
            with self._showing():
                batch = self._batches(learned, part.indices, start, step)(0)
            with phase(TRAINING):
                trained, state = advance(
                    self._primitives.synthetic,
                    part.weights,
                    part.buffers,
                    _always(batch),
                    self._steps(learned, len(part.indices), step),
                    state=_state(part),
                )
            weights.append(trained)
            states.append(state.transpose(0, 1))
        carried = {name: value for name, value in students.carried.items() if name != "optimizer"}
        if self._lasting(step) and self._optimizer.slots:
            carried["optimizer"] = torch.cat(states)
        return replace(students, weights=torch.cat(weights), carried=carried)

    def gradient(self, learned: Mapping[str, Tensor], students: Students, step: int) -> OuterGradient:
        """Gradient of every run's mean outer loss in everything that is learned, direct term included.

        Args:
            learned: ``images [R, C, M, D, H, W]``, and ``labels [R, C, M, C]`` where these are learned.
            students: the students of all runs, ``[R·S]``, as `prepare` leaves them.
            step: the outer step, which keys the real batches and augmentations.
        """
        systems: list[Solution] = []
        eigenvalues: list[Tensor] = []

        def cotangents(part: Students, start: int) -> tuple[dict[str, Tensor], Tensor]:
            with self._showing():
                batches = self._batches(learned, part.indices, start, step)
                seen = batches(0)
            apply = curvature(self._config, self._primitives.synthetic, part.weights, *seen)
            if estimates_eigenvalue(self._config, step):
                with phase(SECOND_ORDER):
                    eigenvalues.append(self._eigenvalue(apply, part, step))
            found = hypergradient(
                self._primitives,
                part.weights,
                seen,
                self._sampled(step, part.indices),
                solver(self._config, apply, part.carried.get("solution")),
                labels=self._config.learn_labels,
            )
            systems.append(found.solution)
            with self._showing():  # the way back from what students were shown to the images
                batches.pull(0, found.images, found.labels)
            return self._with_penalty(learned, batches.found, found.loss, start)

        found = gathered(learned, students, self._chunk, self._per_run, cotangents)
        carried = dict(students.carried) if self._lasting(step) else {}
        if self._config.warm_start and self._lasting(step):
            carried["solution"] = torch.cat([system.solution for system in systems])
        return replace(found, values=_figures(systems, eigenvalues, found.finite), carried=carried)

    def advance(self, learned: Mapping[str, Tensor], students: Students, step: int) -> Students | None:
        """The students as they are, which `prepare` trains on; None where new ones begin at the next step."""
        return students if self._lasting(step) else None

    def warning(self, values: Mapping[str, float]) -> str | None:
        """What is wrong with the series' ``α``, as far as logged values tell; see `alpha_warning`."""
        if self._config.solver != "neumann" or "implicit/eigenvalue_max" not in values:
            return None
        return alpha_warning(self._config.alpha, [values["implicit/eigenvalue_max"], values["implicit/eigenvalue_min"]])

    def locate(self, learned: Mapping[str, Tensor], students: Students, step: int, student: int) -> str:
        """Where a student, as it began a step, stopped being finite in it; see `first_nonfinite`."""
        own, module = students.some(slice(student, student + 1)), self._ensemble.module
        images, labels = self._batches(learned, own.indices, student, step)(0)
        synthetic = (images[0] if images.ndim == 5 else images, labels[0] if labels.ndim == 3 else labels)
        batch, rest = _always((images, labels)), self._steps(learned, 1, step)
        weights, state = own.weights, _state(own)
        for number in range(self._config.inner_steps):
            where = first_nonfinite(module, weights[0], {}, {f"the images of inner step {number}": synthetic})
            if where:
                return where
            one, rest = rest.split(1)
            weights, state = advance(self._primitives.synthetic, weights, {}, batch, one, state=state)
        real = self._real(step, own.indices)
        seen = {"the synthetic images": synthetic, "real images": (real[0][0], real[1][0])}
        return first_nonfinite(module, weights[0], {}, seen)

    def _lasting(self, step: int) -> bool:
        """Whether students live on after a step."""
        return (step + 1) % self._config.hypersteps != 0

    def _steps(self, learned: Mapping[str, Tensor], students: int, step: int) -> Steps:
        """The training before a step, numbered from the students' birth."""
        config, images = self._config, learned["images"]
        shape = (config.inner_steps, students)
        return Steps(
            optimizer=self._optimizer,
            rates=images.new_full(shape, config.inner_learning_rate),
            momenta=images.new_full(shape, config.inner_momentum) if self._optimizer.slots else None,
            first=step % config.hypersteps * config.inner_steps,
        )

    def _batches(self, learned: Mapping[str, Tensor], indices: Tensor, start: int, step: int) -> InnerBatches:
        """All images as some students are shown them at a step, as the one batch of number 0."""
        touched = runs_of(start, len(indices), self._per_run)
        return InnerBatches(
            learned,
            self._labels,
            self._runs(start, len(indices)),
            self._order,
            run=touched[0][0] if len(touched) == 1 else None,
            view=shown(self._strategy, seed=self._seed, step=step, students=indices),
        )

    def _showing(self) -> AbstractContextManager[object]:
        """The label of what students are shown; none where that is the images as they are."""
        return phase(AUGMENTATION) if self._strategy.operations else nullcontext()

    def _runs(self, start: int, count: int) -> Tensor:
        """The run of each of some students, ``[S]``."""
        return torch.arange(start, start + count, device=self._indices.device) // self._per_run

    def _sampled(self, step: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The real images of some students at a step."""
        with phase(DATA):
            return self._real(step, indices)

    def _with_penalty(
        self, learned: Mapping[str, Tensor], cotangents: dict[str, Tensor], loss: Tensor, start: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Adds the images' own part of the outer loss, ``penalty/2`` times their mean square, and its derivative."""
        penalty = self._config.image_penalty
        if not penalty:
            return cotangents, loss
        images, runs = learned["images"], self._runs(start, len(loss))
        direct = penalty * images / images[0].numel()
        squares = penalty / 2 * images.square().flatten(1).mean(1)
        return {**cotangents, "images": cotangents["images"] + direct[runs]}, loss + squares[runs]

    def _eigenvalue(self, apply: Operator, part: Students, step: int) -> Tensor:
        """Each student's eigenvalue of largest magnitude, ``[S]``: that magnitude with the Rayleigh quotient's sign."""
        layout = self._primitives.synthetic.layout
        begin = normal(self._seed, Purpose.EIGENVECTOR, step, part.indices, layout.size).to(part.weights.dtype)
        begin = layout.flatten(layout.views(begin))  # nothing in the padding
        found = largest_eigenvalue(apply, begin, self._config.eigenvalue_steps)
        return torch.copysign(found.magnitude, found.value)


def _grouped(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch with the primitive's group axis, of one, behind the student axis if there is one."""
    return images.unsqueeze(-5), labels.unsqueeze(-3 if labels.is_floating_point() else -2)


def _always(batch: tuple[Tensor, Tensor]) -> Batches:
    """The same images in every step, as they were drawn and augmented once."""
    return lambda number: batch


def _state(students: Students) -> Tensor | None:
    """The state ``[K, S, P]`` of their optimiser; None for students that begin."""
    carried = students.carried.get("optimizer")
    return None if carried is None else carried.transpose(0, 1)


def _figures(systems: list[Solution], eigenvalues: list[Tensor], finite: Tensor) -> dict[str, Tensor]:
    """What is logged of the systems of all students, scalars on the device."""
    count = finite.sum().clamp(min=1)

    def mean(values: list[Tensor]) -> Tensor:
        return torch.where(finite, torch.cat(values).to(systems[0].residual.dtype), 0).sum() / count

    residual = torch.cat([system.residual for system in systems])
    figures = {
        "implicit/residual": mean([residual]),
        "implicit/residual_max": torch.where(finite, residual, 0).max(),
        "implicit/negative_curvature": mean([system.negative_curvature for system in systems]),
        "implicit/steps": mean([system.steps for system in systems]),
    }
    if eigenvalues:
        sound = torch.where(finite, torch.cat(eigenvalues), 0)
        figures |= {"implicit/eigenvalue_max": sound.max(), "implicit/eigenvalue_min": sound.min()}
    return figures
