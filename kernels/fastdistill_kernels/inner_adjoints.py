"""Adjoints of the inner optimisers' steps (`fastdistill_kernels.inner_steps`), a whole backward step in one pass.

An adjoint takes the cotangents of the new weights ``θ'`` and of the new state. What reaches ``θ`` through the gradient
is a Hessian product along the adjoint's ``direction``, which is the caller's, so an unrolled backward step is: adjoint,
product, sum. The sum of one step and the adjoint of the step before it are one pass here: hand an adjoint the
``weights`` that the last one gave together with the ``product`` since, and, where an outer loss had a derivative of its
own there, ``extra``. Letters as in `inner_steps`; least traffic in passes over ``[S, P]``:

- `sgd_adjoint` needs no direction but ``λ`` itself, so that the sum is all there is: read 2, write 1, and 1 more read
  for the rate's derivative where decay or the gradient takes part in it.
- `momentum_adjoint`: read 5, write 2. The cotangent of ``m`` is ``μ · direction``, never stored: it goes into the next
  call as that direction with ``μ`` as its scale.
- `adam_adjoint`: read 7, write 4.

Derivatives of per-student scalars are sums over ``P``: partial sums of blocks, then one small launch that adds them up
in a fixed order. Counted are arithmetic, square roots and two operations per element of such a sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fastdistill_kernels.cost import Cost
from fastdistill_kernels.inner_steps import check, cost, numbers, sizes
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import inner_adjoints as reference
from fastdistill_kernels.reference.inner_steps import empty

_DOT_FLOPS = 2


class SGDCotangents(NamedTuple):
    """Of what went into a step.

    Attributes:
        weights: of ``θ``, the product included, ``[S, P]``.
        rate: of ``η``, ``[S]``, from the gradient and weights that were given; None where neither was.
    """

    weights: Tensor
    rate: Tensor | None


class MomentumCotangents(NamedTuple):
    """Of what went into a step; that of ``m`` is ``μ · direction``.

    Attributes:
        weights: of ``θ`` without what passes through the gradient, ``[S, P]``.
        direction: of the gradient, along which the Hessian product is wanted, ``[S, P]``.
        rate: of ``η``, ``[S]``; None without the new velocity.
        momentum: of ``μ``, ``[S]``; None without the velocity.
    """

    weights: Tensor
    direction: Tensor
    rate: Tensor | None
    momentum: Tensor | None


class AdamCotangents(NamedTuple):
    """Of what went into a step.

    Attributes:
        weights: of ``θ`` without what passes through the gradient, ``[S, P]``.
        direction: of the gradient, along which the Hessian product is wanted, ``[S, P]``.
        state: of ``m`` and ``v``, ``[2, S, P]``.
        rate: of ``η``, ``[S]``.
        beta1: of ``β₁``, ``[S]``.
    """

    weights: Tensor
    direction: Tensor
    state: Tensor
    rate: Tensor
    beta1: Tensor


def cost_sgd_adjoint(
    students: int, size: int, itemsize: int, *, weights: bool = False, gradient: bool = False, extra: bool = False
) -> Cost:
    """See `cost_sgd_step`; the flags say which optional tensors are given."""
    given = weights + gradient
    flops = 4 + extra + (_DOT_FLOPS * given)
    return cost(students, size, itemsize, tensors=3 + given + extra, flops=flops)


def cost_momentum_adjoint(
    students: int,
    size: int,
    itemsize: int,
    *,
    state_cotangent: bool = True,
    state_scale: bool = True,
    product: bool = True,
    extra: bool = False,
    velocity: bool = True,
    new_velocity: bool = True,
) -> Cost:
    """See `cost_sgd_step`; the flags say which optional tensors are given."""
    flops = 3 + state_cotangent * (1 + state_scale) + product + extra + _DOT_FLOPS * (velocity + new_velocity)
    tensors = 3 + state_cotangent + product + extra + velocity + new_velocity
    return cost(students, size, itemsize, tensors=tensors, flops=flops)


def cost_adam_adjoint(
    students: int, size: int, itemsize: int, *, state_cotangent: bool = True, product: bool = True, extra: bool = False
) -> Cost:
    """See `cost_sgd_step`; the flags say which optional tensors are given."""
    flops = 28 + 2 * state_cotangent + product + extra
    return cost(students, size, itemsize, tensors=8 + 2 * state_cotangent + product + extra, flops=flops)


def _fake_sgd_adjoint(
    cotangent: Tensor, product: Tensor, rate: Tensor, weights: Tensor | None, gradient: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    return empty(cotangent), empty(rate, weights is not None or gradient is not None)


def _flops_sgd_adjoint(
    cotangent: Any, product: Any, rate: Any, weights: Any, gradient: Any, extra: Any, *_: Any
) -> int:
    given = {"weights": weights is not None, "gradient": gradient is not None, "extra": extra is not None}
    return cost_sgd_adjoint(*sizes(cotangent), **given).flops


_sgd_adjoint = register(
    "sgd_adjoint(Tensor cotangent, Tensor product, Tensor rate, Tensor? weights, Tensor? gradient, Tensor? extra, "
    "float decay) -> (Tensor, Tensor)",
    reference=reference.sgd_adjoint,
    kernels="inner_adjoints",
    fake=_fake_sgd_adjoint,
    flops=_flops_sgd_adjoint,
)


def _fake_momentum_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    state_scale: Tensor | None,
    product: Tensor | None,
    extra: Tensor | None,
    velocity: Tensor | None,
    new_velocity: Tensor | None,
    rate: Tensor,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    derivatives = empty(rate, new_velocity is not None), empty(rate, velocity is not None)
    return empty(cotangent), empty(cotangent), *derivatives


_MOMENTUM_OPTIONAL = ("state_cotangent", "state_scale", "product", "extra", "velocity", "new_velocity")


def _flops_momentum_adjoint(cotangent: Any, *others: Any) -> int:
    given = {name: other is not None for name, other in zip(_MOMENTUM_OPTIONAL, others, strict=False)}
    return cost_momentum_adjoint(*sizes(cotangent), **given).flops


_momentum_adjoint = register(
    "momentum_adjoint(Tensor cotangent, Tensor? state_cotangent, Tensor? state_scale, Tensor? product, Tensor? extra, "
    "Tensor? velocity, Tensor? new_velocity, Tensor rate, float decay) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.momentum_adjoint,
    kernels="inner_adjoints",
    fake=_fake_momentum_adjoint,
    flops=_flops_momentum_adjoint,
)


def _fake_adam_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    product: Tensor | None,
    extra: Tensor | None,
    moments: Tensor,
    new_moments: Tensor,
    rate: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return empty(cotangent), empty(cotangent), empty(moments), empty(rate), empty(rate)


def _flops_adam_adjoint(cotangent: Any, state_cotangent: Any, product: Any, extra: Any, *_: Any) -> int:
    given = {"state_cotangent": state_cotangent is not None, "product": product is not None, "extra": extra is not None}
    return cost_adam_adjoint(*sizes(cotangent), **given).flops


_adam_adjoint = register(
    "adam_adjoint(Tensor cotangent, Tensor? state_cotangent, Tensor? product, Tensor? extra, Tensor moments, "
    "Tensor new_moments, Tensor rate, Tensor beta1, Tensor number, float beta2, float epsilon, float decay) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.adam_adjoint,
    kernels="inner_adjoints",
    fake=_fake_adam_adjoint,
    flops=_flops_adam_adjoint,
)


def sgd_adjoint(
    cotangent: Tensor,
    product: Tensor,
    rate: Tensor,
    *,
    decay: float,
    weights: Tensor | None = None,
    gradient: Tensor | None = None,
    extra: Tensor | None = None,
) -> SGDCotangents:
    """The whole backward step of unrolled SGD behind its Hessian product: ``λ − η (H λ + d λ)``.

    ``∂L/∂η = −⟨g + d θ, λ⟩``. A primitive that gives the loss's tangent ``⟨g, λ⟩`` has the first half already: then
    leave ``gradient`` out and subtract that tangent from the result.

    Args:
        cotangent: ``λ [S, P]``, of ``θ'``.
        product: ``H λ [S, P]``.
        rate: ``η [S]``.
        decay: ``d``.
        weights: ``θ [S, P]``, for ``−d ⟨θ, λ⟩`` in the rate's derivative; None where that is not wanted.
        gradient: ``g [S, P]``, for ``−⟨g, λ⟩`` in the rate's derivative; None where that is not wanted.
        extra: what an outer loss of ``θ`` itself adds to its cotangent, ``[S, P]``.

    Raises:
        ValueError: for another shape, dtype or device.
        TypeError: for a tensor whose derivative would be lost.
    """
    optional = {"weights": weights, "gradient": gradient, "extra": extra}
    check("sgd_adjoint", {"cotangent": cotangent, "product": product, **optional}, {"rate": rate})
    before, slope = _sgd_adjoint(cotangent, product, rate, weights, gradient, extra, decay)
    return SGDCotangents(before, None if weights is None and gradient is None else slope)


def momentum_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    rate: Tensor,
    *,
    decay: float,
    state_scale: Tensor | None = None,
    product: Tensor | None = None,
    extra: Tensor | None = None,
    velocity: Tensor | None = None,
    new_velocity: Tensor | None = None,
) -> MomentumCotangents:
    """Adjoint of `momentum_step`, with the end of the step behind it in the same pass.

    With ``λ = cotangent + product + extra``: ``direction = scale · state_cotangent − η λ``, weights
    ``λ + d direction``, ``∂L/∂η = −⟨m', λ⟩``, ``∂L/∂μ = ⟨m, direction⟩``.

    Args:
        cotangent: of ``θ'``, ``[S, P]``: the weights that the adjoint of the step behind gave, or the outer slope.
        state_cotangent: of ``m'``, ``[S, P]``: the direction of the step behind; None for zero, behind the last step.
        rate: ``η [S]``.
        decay: ``d``.
        state_scale: factor of ``state_cotangent``, ``[S]``: the ``μ`` of the step behind; None for one.
        product: ``H direction [S, P]`` of the step behind; None where ``cotangent`` has it already.
        extra: what an outer loss of ``θ'`` itself adds to its cotangent, ``[S, P]``.
        velocity: ``m [S, P]``; None where the momentum's derivative is not wanted.
        new_velocity: ``m' [S, P]``; None where the rate's derivative is not wanted.

    Raises:
        ValueError: for another shape, dtype or device, or a scale of nothing.
        TypeError: for a tensor whose derivative would be lost.
    """
    if state_cotangent is None and state_scale is not None:
        raise ValueError(
            "momentum_adjoint expected no state_scale without a state_cotangent, got one: leave it out behind the "
            "last step"
        )
    states = {"state_cotangent": state_cotangent, "velocity": velocity, "new_velocity": new_velocity}
    matrices = {"cotangent": cotangent, "product": product, "extra": extra, **states}
    check("momentum_adjoint", matrices, {"rate": rate, "state_scale": state_scale})
    before, direction, in_rate, in_momentum = _momentum_adjoint(
        cotangent, state_cotangent, state_scale, product, extra, velocity, new_velocity, rate, decay
    )
    return MomentumCotangents(
        before, direction, None if new_velocity is None else in_rate, None if velocity is None else in_momentum
    )


def adam_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    moments: Tensor,
    new_moments: Tensor,
    rate: Tensor,
    beta1: Tensor,
    number: Tensor,
    *,
    beta2: float,
    epsilon: float,
    decay: float,
    product: Tensor | None = None,
    extra: Tensor | None = None,
) -> AdamCotangents:
    """Adjoint of `adam_step`, with the end of the step behind it in the same pass.

    The gradient is recovered from the first moments, ``(m' − β₁ m)/(1 − β₁)``. Where ``v'`` is 0 the root's infinite
    slope is taken as 0, because a gradient of 0 multiplies it.

    Args:
        cotangent: of ``θ'``, ``[S, P]``: the weights that the adjoint of the step behind gave, or the outer slope.
        state_cotangent: of ``m'`` and ``v'``, ``[2, S, P]``; None for zero, behind the last step.
        moments: ``m`` and ``v``, ``[2, S, P]``.
        new_moments: ``m'`` and ``v'``, ``[2, S, P]``.
        rate: ``η [S]``.
        beta1: ``β₁ [S]``, below 1.
        number: of the step, as `adam_step`.
        beta2: ``β₂``.
        epsilon: ``ε``.
        decay: ``d``.
        product: ``H direction [S, P]`` of the step behind; None where ``cotangent`` has it already.
        extra: what an outer loss of ``θ'`` itself adds to its cotangent, ``[S, P]``.

    Raises:
        ValueError: for another shape, dtype or device.
        TypeError: for a tensor whose derivative would be lost.
    """
    states = {"moments": moments, "new_moments": new_moments, "state_cotangent": state_cotangent}
    matrices = {"cotangent": cotangent, "product": product, "extra": extra}
    check("adam_adjoint", matrices, {"rate": rate, "beta1": beta1}, states)
    number = numbers("adam_adjoint", number, rate)
    found = _adam_adjoint(
        cotangent, state_cotangent, product, extra, moments, new_moments, rate, beta1, number, beta2, epsilon, decay
    )
    return AdamCotangents(*found)
