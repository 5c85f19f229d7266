"""Unrolled training and its exact adjoint: the recursion that all methods that differentiate through training share.

Training keeps the weights and the optimiser state of its steps, never an activation. The adjoint walks back through
them: with ``λ`` the derivative of the outer loss in a step's result, one forward-over-reverse pass at ``θ_t`` gives
``H v``, ``K v`` and ``k v`` along the ``v`` that the optimiser names (``inner``; ``−λ`` for SGD), hence
``λ_t = λ_{t+1} − η_t H λ_{t+1}``, ``∂L/∂x_t = −η_t K λ_{t+1}`` and ``∂L/∂η_t = −⟨g_t, λ_{t+1}⟩`` (Wang et al., "Dataset
distillation", 2018). Its memory is one such pass and the stored trajectory, whatever the number of steps.

Students may have buffers that every step sets anew from its batch alone, ``m_{t+1} = h(θ_t, x_t)``, as mean-only batch
norm without momentum does (Such et al., "Generative teaching networks", ICML 2020). They train in train mode, where the
loss is a function of ``θ_t`` and ``x_t`` alone and its products pass through the batch's means; an outer loss is one of
eval mode, ``L(θ_t, m_t)``, and its derivative ``μ`` in ``m_t`` is pulled back by one reverse pass through ``h``, which
adds ``h_θᵀ μ`` to ``λ_{t−1}`` and ``h_xᵀ μ`` to the cotangent of ``x_{t−1}``.

Shapes: ``θ``, ``λ`` ``[S, P]``; optimiser state ``[K, S, P]``; learning rates and momenta ``[T, S]``; a batch is images
``[S, n, D, H, W]`` or, shared by all students, ``[n, D, H, W]`` with labels of the same leading axes, class indices
(int64) or soft rows ``[..., n, C]``. Everything is detached on entry, nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastdistill.derivatives.functional import Buffers, Functional, Products
from fastdistill.derivatives.inner import Cotangents, StepAdjoint
from fastdistill.derivatives.trajectory import Steps, Trajectory
from fastdistill.phases import TRAINING, phase

Batches = Callable[[int], tuple[Tensor, Tensor]]
Pull = Callable[[int, Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Slope:
    """The derivative of an outer loss of some students.

    Attributes:
        weights: in their weights ``[S, P]``, zero in the padding.
        buffers: in their buffers, name to ``[S, ...]``; one for each of these.
    """

    weights: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


Intermediate = Callable[[int, Tensor, Buffers], Slope | None]


class _Step(NamedTuple):
    """What a step gives: weights ``[S, P]``, state ``[K, S, P]``, the loss before it ``[S]`` and the new buffers."""

    weights: Tensor
    state: Tensor
    loss: Tensor
    buffers: Buffers


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """Derivatives of the outer loss of each student; what belongs to shared quantities is the sum over students.

    Attributes:
        weights: in ``θ_0``, ``[S, P]``, or None where it was not asked for.
        rates: in the learning rates, ``[T, S]``.
        momenta: in the momenta, ``[T, S]``, or None where there are none.
    """

    weights: Tensor | None
    rates: Tensor
    momenta: Tensor | None


def advance(
    primitive: Functional,
    weights: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Batches,
    steps: Steps,
    *,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Trains without storing anything, as before a truncated window; arguments as `unroll`.

    Returns:
        Weights ``[S, P]`` and optimiser state ``[K, S, P]``, to continue from.
    """
    weights, state = _begin(weights, buffers, steps, state)
    for step in range(len(steps)):
        weights, state, _, _ = _train(primitive, weights, state, buffers, batch, steps, step)
    return weights, state


def unroll(
    primitive: Functional,
    weights: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Batches,
    steps: Steps,
    *,
    state: Tensor | None = None,
    keep: int = 1,
    storage: torch.dtype | None = None,
) -> Trajectory:
    """Trains ``S`` students at once and stores what `adjoint` needs.

    Args:
        primitive: the derivative of the architecture.
        weights: ``θ_0 [S, P]``.
        buffers: name to ``[S, ...]``; none, or such as every step sets anew from its batch alone.
        batch: maps a step's number to its images and labels (see the module); a pure function, called again by the
            adjoint.
        steps: the steps to run, at least one.
        state: the optimiser's state ``[K, S, P]`` to continue from, or None for zeros.
        keep: store every ``keep``-th step only; the adjoint then runs the steps between a second time and holds
            ``keep`` of them, so about ``√T`` stores least.
        storage: a narrower dtype for the way ``θ_t − θ_0`` of the weights, rounded to a relative 2⁻⁹ by bfloat16.
            Ten small steps: derivatives off by 1e-5 to 6e-4, a sixth or less of what rounding ``θ_t`` itself does; up
            to 1e-2 where training goes farther than ``θ_0`` is long. The state stays as it is, and the training itself
            is not touched. Only with ``keep = 1``.

    Raises:
        ValueError: for buffers that count steps, rates of another number of students, a state of another shape, no
            steps or an impossible ``keep``.
    """
    begun, state = _begin(weights, buffers, steps, state)
    narrow = storage is not None and storage != weights.dtype
    if len(steps) < 1 or keep < 1 or (narrow and keep > 1):
        raise ValueError(
            f"expected at least one step, keep of at least 1, and of exactly 1 with a storage dtype of its own, got "
            f"{len(steps)} steps, keep {keep} and {storage}: choose one way to save memory"
        )
    weights, rows = begun, -(-len(steps) // keep)
    stored_weights = weights.new_empty(rows, *weights.shape, dtype=storage if narrow else weights.dtype)
    stored_states = state.new_empty(rows, *state.shape)
    losses = weights.new_empty(steps.rates.shape)
    stored_buffers = {name: tensor.new_empty(1 + len(steps), *tensor.shape) for name, tensor in buffers.items()}
    for name, tensor in buffers.items():
        stored_buffers[name][0] = tensor
    for step in range(len(steps)):
        if step % keep == 0:
            stored_weights[step // keep] = weights - begun if narrow else weights
            stored_states[step // keep] = state
        weights, state, losses[step], new = _train(primitive, weights, state, buffers, batch, steps, step)
        for name, tensor in new.items():
            stored_buffers[name][step + 1] = tensor
    return Trajectory(
        steps=steps,
        keep=keep,
        weights=weights,
        state=state,
        losses=losses,
        stored_weights=stored_weights,
        stored_states=stored_states,
        origin=begun.clone() if narrow else None,
        stored_buffers=stored_buffers,
    )


def adjoint(
    primitive: Functional,
    trajectory: Trajectory,
    batch: Batches,
    start: Tensor | Slope,
    pull: Pull,
    *,
    labels: bool = False,
    initial: bool = False,
    intermediate: Intermediate | None = None,
) -> Adjoint:
    """Differentiates an outer loss of the trained weights through all steps of a trajectory, exactly.

    Args:
        primitive: the derivative of the architecture.
        trajectory: from `unroll`.
        batch: as given to `unroll`.
        start: ``∂L/∂θ_T [S, P]``, zero in the padding; a `Slope` for students with buffers.
        pull: takes, from the last step to the first, the step's number and the cotangents of its images
            ``[S, n, D, H, W]`` and labels ``[S, n, C]`` (None unless ``labels``). They have a student axis even where
            the batch is shared; its cotangent is their sum.
        labels: whether the labels' cotangents are wanted; needs soft labels.
        initial: whether ``∂L/∂θ_0`` is wanted; without it the first step needs no ``H v``.
        intermediate: maps a step's number ``t``, ``θ_t [S, P]`` and the buffers before the step to the derivative of a
            further outer loss of these, or to None; called for every step but the first, which it is only if
            ``initial``. The buffers before the first step are constants.

    Raises:
        ValueError: for a start of another shape or without a derivative in every buffer, or ``labels`` of class
            indices.
    """
    steps = trajectory.steps
    start = start if isinstance(start, Slope) else Slope(start)
    _check_slope(start, trajectory)
    slope: Slope | None = start
    cotangents = Cotangents(start.weights.detach(), torch.zeros_like(trajectory.state))
    rates, momenta = torch.empty_like(trajectory.losses), torch.empty_like(trajectory.losses)
    for step, weights, state, new_state in _backwards(primitive, trajectory, batch):
        setting = steps.setting(step)
        back = steps.optimizer.adjoint(cotangents, weights, state, new_state, setting)
        further = initial or step > 0
        buffers = trajectory.buffers_at(step)
        products, through = _pulled(
            primitive, weights, buffers, batch, back, slope, setting.number, pull, labels=labels, further=further
        )
        rates[step] = back.rate if back.scale is None else back.rate + products.loss_tangent[:, 0]
        momenta[step] = back.momentum
        if products.weights is not None:
            before = back.weights + _scaled(products.weights[:, 0], back.scale)
            if through is not None:
                before = before + through
            slope = None if intermediate is None else intermediate(setting.number, weights, buffers)
            if slope is not None:
                _check_slope(slope, trajectory)
                before = before + slope.weights.detach()
            cotangents = Cotangents(before, back.state)
    return Adjoint(
        weights=cotangents.weights if initial else None,
        rates=rates,
        momenta=None if steps.momenta is None else momenta,
    )


def first_order(
    primitive: Functional,
    trajectory: Trajectory,
    batch: Batches,
    start: Tensor,
    pull: Pull,
    *,
    labels: bool = False,
) -> Tensor:
    """The gradient of TESLA (Cui et al., ICML 2023): every ``θ_t`` a constant, all cross-step terms dropped.

    With ``θ_T = θ_0 − Σ η_t g_t`` and only ``g_t``'s own images varying, ``∂L/∂x_t = −η_t K_t λ_T`` for the same
    ``λ_T`` at every step, and ``∂L/∂η_t = −⟨g_t, λ_T⟩``, whose sum over steps is the closed form with ``Σ g_t``
    detached. No ``H v`` is computed. Arguments as `adjoint`.

    Returns:
        The derivative in the learning rates ``[T, S]``.

    Raises:
        ValueError: for an optimiser with a state, students with buffers, a start of another shape, or ``labels`` of
            class indices.
    """
    steps = trajectory.steps
    _check_slope(Slope(start), trajectory)
    if steps.optimizer.slots:
        raise ValueError(
            f"expected SGD for the first-order gradient, got {type(steps.optimizer).__name__}: use the exact adjoint"
        )
    cotangents = Cotangents(start.detach(), trajectory.state)
    rates = torch.empty_like(trajectory.losses)
    for step, weights, state, new_state in _backwards(primitive, trajectory, batch):
        setting = steps.setting(step)
        back = steps.optimizer.adjoint(cotangents, weights, state, new_state, setting)
        products, _ = _pulled(
            primitive, weights, {}, batch, back, None, setting.number, pull, labels=labels, further=False
        )
        rates[step] = back.rate + products.loss_tangent[:, 0]
    return rates


def _begin(weights: Tensor, buffers: Mapping[str, Tensor], steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checked weights and state to start from, detached."""
    # those of batch norm remember earlier steps; they come with a count of these
    if counts := [name for name, tensor in buffers.items() if not tensor.is_floating_point()]:
        raise ValueError(
            f"expected students without running statistics, got {counts[0]}: choose another norm than 'batch' to "
            "differentiate through training"
        )
    if steps.rates.shape[1] != weights.shape[0]:
        raise ValueError(
            f"expected learning rates of {weights.shape[0]} students, got {tuple(steps.rates.shape)}: expand them to "
            "[T, S]"
        )
    shape = (steps.optimizer.slots, *weights.shape)
    if state is None:
        return weights.detach(), weights.new_zeros(shape)
    if state.shape != shape:
        raise ValueError(f"expected an optimiser state {shape}, got {tuple(state.shape)}: pass what advance returned")
    return weights.detach(), state.detach()


def _check_slope(slope: Slope, trajectory: Trajectory) -> None:
    if slope.weights.shape != trajectory.weights.shape:
        raise ValueError(
            f"expected a derivative {tuple(trajectory.weights.shape)} in the trained weights, got "
            f"{tuple(slope.weights.shape)}: pass one row per student"
        )
    if slope.buffers.keys() != trajectory.stored_buffers.keys():
        raise ValueError(
            f"expected derivatives in the buffers {', '.join(trajectory.stored_buffers) or 'of none'}, got "
            f"{', '.join(slope.buffers) or 'none'}: pass the outer loss's derivative in each"
        )


def _grouped(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch with the primitive's group axis, of one, right behind the student axis if there is one."""
    images, labels = (tensor.detach() for tensor in batch)
    axis = labels.ndim - (2 if labels.is_floating_point() else 1)
    return images.unsqueeze(images.ndim - 4), labels.unsqueeze(axis)


def _train(
    primitive: Functional,
    weights: Tensor,
    state: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Batches,
    steps: Steps,
    step: int,
) -> _Step:
    """One step; buffers of any values, since it sets them anew."""
    setting = steps.setting(step)
    # in the mode of the products that differentiate this step
    found = primitive.value_and_gradient(weights, buffers, *_grouped(batch(setting.number)), training=bool(buffers))
    weights, state = steps.optimizer.step(weights, state, found.gradient[:, 0], setting)
    return _Step(weights, state, found.loss[:, 0], found.buffers)


def _backwards(
    primitive: Functional, trajectory: Trajectory, batch: Batches
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """The steps from the last to the first, with weights and state before each and the state after it."""
    steps, keep, buffers = trajectory.steps, trajectory.keep, trajectory.buffers
    for row in reversed(range(trajectory.stored_weights.shape[0])):
        begin, end = row * keep, min((row + 1) * keep, len(steps))
        weights, state = trajectory.weights_at(row), trajectory.state_at(row)
        passed = [(weights, state)]
        with phase(TRAINING):  # a second time
            for step in range(begin, end - 1):
                weights, state, _, _ = _train(primitive, weights, state, buffers, batch, steps, step)
                passed.append((weights, state))
        new_state = trajectory.state_at(row + 1)
        for step in reversed(range(begin, end)):
            weights, state = passed.pop()
            yield step, weights, state, new_state
            new_state = state


def _pulled(
    primitive: Functional,
    weights: Tensor,
    buffers: Buffers,
    batch: Batches,
    back: StepAdjoint,
    slope: Slope | None,
    number: int,
    pull: Pull,
    *,
    labels: bool,
    further: bool,
) -> tuple[Products, Tensor | None]:
    """What a step's images, weights and labels get.

    Args:
        primitive: as for `adjoint`, as are ``batch``, ``pull`` and ``labels``.
        weights: before the step.
        buffers: before the step, of any values.
        batch: see above.
        back: adjoint of the optimiser's step.
        slope: of an outer loss of the weights and buffers behind the step.
        number: of the step.
        pull: see above.
        labels: see above.
        further: whether products of the weights are wanted.

    Returns:
        Products along the step's direction, of which those of images and labels are handed to ``pull``; and what the
        weights get through the buffers that an outer loss had, ``[S, P]``.
    """
    images, targets = _grouped(batch(number))
    if labels and not targets.is_floating_point():
        raise ValueError("expected soft labels [..., n, C] to differentiate, got class indices: pass one-hot rows")
    wanted = ("weights",) * further + ("images",) + ("labels",) * labels
    products = primitive.products(
        weights, buffers, images, targets, back.direction[:, None], wanted=wanted, training=bool(buffers)
    )
    assert products.images is not None
    of_labels = None if products.labels is None else _scaled(products.labels[:, 0], back.scale)
    of_images, through = _scaled(products.images[:, 0], back.scale), None
    if slope is not None and slope.buffers:
        own = {name: tensor.detach() for name, tensor in slope.buffers.items()}
        through, more = primitive.pull_buffers(weights, buffers, images, own)
        of_images = of_images + more
    pull(number, of_images, of_labels)
    return products, through


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else scale.view(-1, *[1] * (tensor.ndim - 1)) * tensor
