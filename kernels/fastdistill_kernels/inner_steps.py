"""Steps of the inner optimisers, for all students in one pass over ``[S, P]``.

With weights ``θ``, gradient ``g``, weight decay ``d``, ``ĝ = g + d θ`` and ``η``, ``μ``, ``β₁`` one per student:

- SGD: ``θ' = θ − η ĝ``. Read 2, write 1.
- momentum: ``m' = μ m + ĝ``, ``θ' = θ − η m'``. Read 3, write 2.
- Adam, ``k`` the step's number plus 1: ``m' = β₁ m + (1 − β₁) ĝ``, ``v' = β₂ v + (1 − β₂) ĝ²``,
  ``θ' = θ − η m'/(1 − β₁ᵏ) / (√(v'/(1 − β₂ᵏ)) + ε)``. Read 4, write 3.

Counted are arithmetic and square roots; per-student scalars are nothing beside ``P``, neither as operations nor as
bytes. Their adjoints are `fastdistill_kernels.inner_adjoints`; derivations: ``kernels/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_shape, refuse_derivatives
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import inner_steps as reference
from fastdistill_kernels.reference.inner_steps import empty

_SGD_FLOPS, _MOMENTUM_FLOPS, _ADAM_FLOPS = 4, 6, 16  # per element


def cost_sgd_step(students: int, size: int, itemsize: int) -> Cost:
    """Of ``students = S`` and ``size = P`` parameters, as in all costs here."""
    return cost(students, size, itemsize, tensors=3, flops=_SGD_FLOPS)


def cost_momentum_step(students: int, size: int, itemsize: int) -> Cost:
    """See `cost_sgd_step`."""
    return cost(students, size, itemsize, tensors=5, flops=_MOMENTUM_FLOPS)


def cost_adam_step(students: int, size: int, itemsize: int) -> Cost:
    """See `cost_sgd_step`."""
    return cost(students, size, itemsize, tensors=7, flops=_ADAM_FLOPS)


def cost(students: int, size: int, itemsize: int, *, tensors: int, flops: int) -> Cost:
    """Of passes over ``[S, P]``: how many ``tensors`` are read or written, and ``flops`` per element."""
    return Cost(flops=flops * students * size, bytes=tensors * students * size * itemsize)


def sizes(shape: Sequence[int]) -> tuple[int, int, int]:
    """First arguments of a cost whose bytes are not asked for, from the shape of weights."""
    return shape[-2], shape[-1], 1


_sgd_step = register(
    "sgd_step(Tensor weights, Tensor gradient, Tensor rate, float decay) -> Tensor",
    reference=reference.sgd_step,
    kernels="inner_steps",
    fake=lambda weights, *_: empty(weights),
    flops=lambda weights, *_: cost_sgd_step(*sizes(weights)).flops,
)
_momentum_step = register(
    "momentum_step(Tensor weights, Tensor velocity, Tensor gradient, Tensor rate, Tensor momentum, float decay) "
    "-> (Tensor, Tensor)",
    reference=reference.momentum_step,
    kernels="inner_steps",
    fake=lambda weights, *_: (empty(weights), empty(weights)),
    flops=lambda weights, *_: cost_momentum_step(*sizes(weights)).flops,
)
_adam_step = register(
    "adam_step(Tensor weights, Tensor moments, Tensor gradient, Tensor rate, Tensor beta1, Tensor number, float beta2, "
    "float epsilon, float decay) -> (Tensor, Tensor)",
    reference=reference.adam_step,
    kernels="inner_steps",
    fake=lambda weights, moments, *_: (empty(weights), empty(moments)),
    flops=lambda weights, *_: cost_adam_step(*sizes(weights)).flops,
)


def sgd_step(weights: Tensor, gradient: Tensor, rate: Tensor, *, decay: float) -> Tensor:
    """``θ' = θ − η (g + d θ)``.

    Args:
        weights: ``θ [S, P]``, float32 or float64, as all tensors here; contiguous, or it is copied, as all of them.
        gradient: ``g [S, P]``.
        rate: ``η [S]``.
        decay: ``d``.

    Returns:
        ``θ' [S, P]``.

    Raises:
        ValueError: for another shape, dtype or device.
        TypeError: for a tensor whose derivative would be lost.
    """
    check("sgd_step", {"weights": weights, "gradient": gradient}, {"rate": rate})
    result: Tensor = _sgd_step(weights, gradient, rate, decay)
    return result


def momentum_step(
    weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor, *, decay: float
) -> tuple[Tensor, Tensor]:
    """``m' = μ m + g + d θ``, ``θ' = θ − η m'``; arguments as `sgd_step`, and ``m [S, P]`` and ``μ [S]``.

    Returns:
        ``θ'`` and ``m'``, ``[S, P]``.

    Raises:
        ValueError: for another shape, dtype or device.
        TypeError: for a tensor whose derivative would be lost.
    """
    matrices = {"weights": weights, "velocity": velocity, "gradient": gradient}
    check("momentum_step", matrices, {"rate": rate, "momentum": momentum})
    new_weights, new_velocity = _momentum_step(weights, velocity, gradient, rate, momentum, decay)
    return new_weights, new_velocity


def adam_step(
    weights: Tensor,
    moments: Tensor,
    gradient: Tensor,
    rate: Tensor,
    beta1: Tensor,
    number: Tensor,
    *,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """One step of Adam, as the module states it.

    Args:
        weights: ``θ [S, P]``.
        moments: ``m`` and ``v``, ``[2, S, P]``.
        gradient: ``g [S, P]``.
        rate: ``η [S]``.
        beta1: ``β₁ [S]``, below 1.
        number: of the step, counted from 0: int64, ``[S]`` or one for all ``[]``, on the device, since it changes with
            every step and compiled code may not depend on its value.
        beta2: ``β₂``.
        epsilon: ``ε``.
        decay: ``d``.

    Returns:
        ``θ' [S, P]``, and ``m'`` and ``v'``, ``[2, S, P]``.

    Raises:
        ValueError: for another shape, dtype or device.
        TypeError: for a tensor whose derivative would be lost.
    """
    scalars = {"rate": rate, "beta1": beta1}
    check("adam_step", {"weights": weights, "gradient": gradient}, scalars, {"moments": moments})
    number = numbers("adam_step", number, rate)
    new_weights, new_moments = _adam_step(weights, moments, gradient, rate, beta1, number, beta2, epsilon, decay)
    return new_weights, new_moments


def check(
    operator: str,
    matrices: Mapping[str, Tensor | None],
    scalars: Mapping[str, Tensor | None],
    states: Mapping[str, Tensor | None] | None = None,
) -> None:
    """Refuses what the operators cannot take; the first matrix says how many students and parameters there are."""
    states = states or {}
    refuse_derivatives(operator, *matrices.values(), *scalars.values(), *states.values())
    name, first = next(iter(matrices.items()))
    assert first is not None
    if first.ndim != 2:
        raise ValueError(
            f"{operator} expected {name} [S, P], got {list(first.shape)}: give it a student axis and a flat one"
        )
    if first.dtype == torch.bfloat16:
        raise ValueError(
            f"{operator} expected {name} in float32 or float64, got {first.dtype}, in which small steps round to "
            "nothing: keep weights and state in float32"
        )
    expect_alike(operator, **matrices, **scalars, **states)
    students, size = first.shape
    for given, letters, shape in (
        (matrices, "[S, P]", (students, size)),
        (scalars, "[S]", (students,)),
        (states, "[2, S, P]", (2, students, size)),
    ):
        for name, tensor in given.items():
            if tensor is not None:
                expect_shape(operator, name, tensor, letters, shape)


def numbers(operator: str, number: Tensor, rate: Tensor) -> Tensor:
    """A step's number for every student, ``[S]``."""
    if number.dtype != torch.int64 or number.device != rate.device or (number.ndim and number.shape != rate.shape):
        raise ValueError(
            f"{operator} expected number in int64 on {rate.device}, [] or {list(rate.shape)}, got {number.dtype} on "
            f"{number.device}, {list(number.shape)}: make it with torch.full"
        )
    return number.expand(rate.shape)
