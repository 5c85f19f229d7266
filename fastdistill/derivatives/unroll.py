"""Unrolled training and its exact adjoint: the recursion that all methods that differentiate through training share.

Training keeps the weights and the optimiser state of its steps, never an activation. The adjoint walks back through
them: with ``λ`` the derivative of the outer loss in a step's result, one forward-over-reverse pass at ``θ_t`` gives
``H v``, ``K v`` and ``k v`` along the ``v`` that the optimiser names (``inner``; ``−λ`` for SGD), hence
``λ_t = λ_{t+1} − η_t H λ_{t+1}``, ``∂L/∂x_t = −η_t K λ_{t+1}`` and ``∂L/∂η_t = −⟨g_t, λ_{t+1}⟩`` (Wang et al., "Dataset
distillation", 2018). Its memory is one such pass and the stored trajectory, whatever the number of steps.

Shapes: ``θ``, ``λ`` ``[S, P]``; optimiser state ``[K, S, P]``; learning rates and momenta ``[T, S]``; a batch is images
``[S, n, D, H, W]`` or, shared by all students, ``[n, D, H, W]`` with labels of the same leading axes, class indices
(int64) or soft rows ``[..., n, C]``. Everything is detached on entry, nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.derivatives.functional import Functional, Products
from fastdistill.derivatives.inner import Cotangents, StepAdjoint
from fastdistill.derivatives.trajectory import Steps, Trajectory

Batches = Callable[[int], tuple[Tensor, Tensor]]
Pull = Callable[[int, Tensor, Tensor | None], None]
Intermediate = Callable[[int, Tensor], Tensor | None]


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
        weights, state, _ = _train(primitive, weights, state, batch, steps, step)
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
        buffers: must be empty.
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
        ValueError: for students with buffers, rates of another number of students, a state of another shape, no steps
            or an impossible ``keep``.
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
    for step in range(len(steps)):
        if step % keep == 0:
            stored_weights[step // keep] = weights - begun if narrow else weights
            stored_states[step // keep] = state
        weights, state, losses[step] = _train(primitive, weights, state, batch, steps, step)
    return Trajectory(
        steps=steps,
        keep=keep,
        weights=weights,
        state=state,
        losses=losses,
        stored_weights=stored_weights,
        stored_states=stored_states,
        origin=begun.clone() if narrow else None,
    )


def adjoint(
    primitive: Functional,
    trajectory: Trajectory,
    batch: Batches,
    start: Tensor,
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
        start: ``∂L/∂θ_T [S, P]``, zero in the padding.
        pull: takes, from the last step to the first, the step's number and the cotangents of its images
            ``[S, n, D, H, W]`` and labels ``[S, n, C]`` (None unless ``labels``). They have a student axis even where
            the batch is shared; its cotangent is their sum.
        labels: whether the labels' cotangents are wanted; needs soft labels.
        initial: whether ``∂L/∂θ_0`` is wanted; without it the first step needs no ``H v``.
        intermediate: maps a step's number ``t`` and ``θ_t [S, P]`` to the derivative ``[S, P]`` of a further outer loss
            of these weights, or to None; called for every step but the first, which it is only if ``initial``.

    Raises:
        ValueError: for a start of another shape, or ``labels`` of class indices.
    """
    steps = trajectory.steps
    _check_start(start, trajectory)
    cotangents = Cotangents(start.detach(), torch.zeros_like(trajectory.state))
    rates, momenta = torch.empty_like(trajectory.losses), torch.empty_like(trajectory.losses)
    for step, weights, state, new_state in _backwards(primitive, trajectory, batch):
        setting = steps.setting(step)
        back = steps.optimizer.adjoint(cotangents, weights, state, new_state, setting)
        further = initial or step > 0
        products = _pulled(primitive, weights, batch, back, setting.number, pull, labels=labels, further=further)
        rates[step] = back.rate if back.scale is None else back.rate + products.loss_tangent[:, 0]
        momenta[step] = back.momentum
        if products.weights is not None:
            before = back.weights + _scaled(products.weights[:, 0], back.scale)
            more = None if intermediate is None else intermediate(setting.number, weights)
            cotangents = Cotangents(before if more is None else before + more.detach(), back.state)
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
        ValueError: for an optimiser with a state, a start of another shape, or ``labels`` of class indices.
    """
    steps = trajectory.steps
    _check_start(start, trajectory)
    if steps.optimizer.slots:
        raise ValueError(
            f"expected SGD for the first-order gradient, got {type(steps.optimizer).__name__}: use the exact adjoint"
        )
    cotangents = Cotangents(start.detach(), trajectory.state)
    rates = torch.empty_like(trajectory.losses)
    for step, weights, state, new_state in _backwards(primitive, trajectory, batch):
        setting = steps.setting(step)
        back = steps.optimizer.adjoint(cotangents, weights, state, new_state, setting)
        products = _pulled(primitive, weights, batch, back, setting.number, pull, labels=labels, further=False)
        rates[step] = back.rate + products.loss_tangent[:, 0]
    return rates


def _begin(weights: Tensor, buffers: Mapping[str, Tensor], steps: Steps, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checked weights and state to start from, detached."""
    if buffers:
        raise ValueError(
            f"expected students without buffers, got {', '.join(list(buffers)[:3])}: choose another norm than 'batch' "
            "to differentiate through training"
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


def _check_start(start: Tensor, trajectory: Trajectory) -> None:
    if start.shape != trajectory.weights.shape:
        raise ValueError(
            f"expected a derivative {tuple(trajectory.weights.shape)} in the trained weights, got "
            f"{tuple(start.shape)}: pass one row per student"
        )


def _grouped(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch with the primitive's group axis, of one, right behind the student axis if there is one."""
    images, labels = (tensor.detach() for tensor in batch)
    axis = labels.ndim - (2 if labels.is_floating_point() else 1)
    return images.unsqueeze(images.ndim - 4), labels.unsqueeze(axis)


def _train(
    primitive: Functional, weights: Tensor, state: Tensor, batch: Batches, steps: Steps, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """New weights, new state and the loss ``[S]`` of one step."""
    setting = steps.setting(step)
    # eval mode, as in the products that differentiate this step
    found = primitive.value_and_gradient(weights, {}, *_grouped(batch(setting.number)))
    weights, state = steps.optimizer.step(weights, state, found.gradient[:, 0], setting)
    return weights, state, found.loss[:, 0]


def _backwards(
    primitive: Functional, trajectory: Trajectory, batch: Batches
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """The steps from the last to the first, with weights and state before each and the state after it."""
    steps, keep = trajectory.steps, trajectory.keep
    for row in reversed(range(trajectory.stored_weights.shape[0])):
        begin, end = row * keep, min((row + 1) * keep, len(steps))
        weights, state = trajectory.weights_at(row), trajectory.state_at(row)
        passed = [(weights, state)]
        for step in range(begin, end - 1):
            weights, state, _ = _train(primitive, weights, state, batch, steps, step)
            passed.append((weights, state))
        new_state = trajectory.state_at(row + 1)
        for step in reversed(range(begin, end)):
            weights, state = passed.pop()
            yield step, weights, state, new_state
            new_state = state


def _pulled(
    primitive: Functional,
    weights: Tensor,
    batch: Batches,
    back: StepAdjoint,
    number: int,
    pull: Pull,
    *,
    labels: bool,
    further: bool,
) -> Products:
    """Products along a step's direction, of which those of images and labels are handed to ``pull``."""
    images, targets = _grouped(batch(number))
    if labels and not targets.is_floating_point():
        raise ValueError("expected soft labels [..., n, C] to differentiate, got class indices: pass one-hot rows")
    wanted = ("weights",) * further + ("images",) + ("labels",) * labels
    products = primitive.products(weights, {}, images, targets, back.direction[:, None], wanted=wanted)
    assert products.images is not None
    of_labels = None if products.labels is None else _scaled(products.labels[:, 0], back.scale)
    pull(number, _scaled(products.images[:, 0], back.scale), of_labels)
    return products


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else scale.view(-1, *[1] * (tensor.ndim - 1)) * tensor
