"""Inner optimisers of unrolled training, each with the exact adjoint of its step.

A step maps weights ``θ [S, P]``, state ``[K, S, P]`` (``K`` tensors: none, the momentum, or both moments of Adam) and
the gradient ``g [S, P]`` to new weights and state; learning rate and momentum are ``[S]``, one per student. The adjoint
maps the cotangents of the new weights and state back to those of everything that went in. What reaches ``θ`` through
``g`` is a Hessian product, which is the caller's: the adjoint names its direction, and asks nowhere for the value of
``g``. Plain SGD needs only ``⟨g, direction⟩``, the loss tangent that the product gives free; momentum uses the stored
state; Adam recovers ``g`` from two consecutive first moments, ``(m' − β₁ m)/(1 − β₁)``, which spares a gradient pass
per step for an error of ``(1 + β₁)/(1 − β₁)`` roundings of ``m``, no more than the gradient's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Setting(NamedTuple):
    """Learning rate ``[S]`` and momentum ``[S]`` of a step, and its number, counted from 0 at the students' birth."""

    rate: Tensor
    momentum: Tensor
    number: int


class Cotangents(NamedTuple):
    """Cotangents of a step's results: new weights ``[S, P]`` and new state ``[K, S, P]``."""

    weights: Tensor
    state: Tensor


@dataclass(frozen=True, kw_only=True)
class StepAdjoint:
    """Cotangents of what went into a step.

    Attributes:
        weights: of ``θ``, without what passes through the gradient, ``[S, P]``.
        state: of the state, ``[K, S, P]``.
        direction: along which second-order products are wanted, ``[S, P]``.
        scale: the gradient's cotangent is ``scale · direction``; ``[S]``, or None for one. Where it is given it is the
            learning rate, whose derivative is ``rate + ⟨g, direction⟩``.
        rate: of the learning rate, ``[S]``.
        momentum: of the momentum, ``[S]``.
    """

    weights: Tensor
    state: Tensor
    direction: Tensor
    scale: Tensor | None
    rate: Tensor
    momentum: Tensor


class InnerOptimizer(Protocol):
    """What unrolled training asks of an optimiser."""

    @property
    def slots(self) -> int:
        """``K``, state tensors per student."""

    @property
    def decay(self) -> float:
        """Weight decay, added to the gradient as ``decay · θ``."""

    def step(self, weights: Tensor, state: Tensor, gradient: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """New weights and state."""

    def adjoint(
        self, cotangents: Cotangents, weights: Tensor, state: Tensor, new_state: Tensor, setting: Setting
    ) -> StepAdjoint:
        """Cotangents of a step's inputs from those of its results; ``weights`` and ``state`` are those before it."""


@dataclass(frozen=True, kw_only=True)
class SGD:
    """``θ' = θ − η (g + decay θ)``; the momentum is ignored.

    Attributes:
        decay: weight decay.
    """

    decay: float = 0.0
    slots = 0

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def step(self, weights: Tensor, state: Tensor, gradient: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """See `InnerOptimizer`."""
        return weights - setting.rate[:, None] * _decayed(gradient, weights, self.decay), state

    def adjoint(
        self, cotangents: Cotangents, weights: Tensor, state: Tensor, new_state: Tensor, setting: Setting
    ) -> StepAdjoint:
        """See `InnerOptimizer`."""
        # along −λ rather than −η λ, so that the loss tangent is the rate's derivative even where a rate is 0
        direction = -cotangents.weights
        before, slope = cotangents.weights, torch.zeros_like(setting.rate)
        if self.decay:
            before = before + (self.decay * setting.rate)[:, None] * direction
            slope = self.decay * _dot(weights, direction)
        return StepAdjoint(
            weights=before,
            state=cotangents.state,
            direction=direction,
            scale=setting.rate,
            rate=slope,
            momentum=torch.zeros_like(setting.momentum),
        )


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """``m' = μ m + g + decay θ``, ``θ' = θ − η m'``, as ``torch.optim.SGD`` without dampening.

    Attributes:
        decay: weight decay.
    """

    decay: float = 0.0
    slots = 1

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    def step(self, weights: Tensor, state: Tensor, gradient: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """See `InnerOptimizer`."""
        velocity = setting.momentum[:, None] * state[0] + _decayed(gradient, weights, self.decay)
        return weights - setting.rate[:, None] * velocity, velocity[None]

    def adjoint(
        self, cotangents: Cotangents, weights: Tensor, state: Tensor, new_state: Tensor, setting: Setting
    ) -> StepAdjoint:
        """See `InnerOptimizer`."""
        velocity = cotangents.state[0] - setting.rate[:, None] * cotangents.weights
        return StepAdjoint(
            weights=_decayed(cotangents.weights, velocity, self.decay),
            state=(setting.momentum[:, None] * velocity)[None],
            direction=velocity,
            scale=None,
            rate=-_dot(new_state[0], cotangents.weights),
            momentum=_dot(state[0], velocity),
        )


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015) as ``torch.optim.Adam``; the momentum is ``β₁`` and must be below 1.

    With ``k`` the step's number plus 1 and ``g`` the gradient plus ``decay · θ``: ``m' = β₁ m + (1 − β₁) g``,
    ``v' = β₂ v + (1 − β₂) g²``, ``θ' = θ − η m'/(1 − β₁ᵏ) / (√(v'/(1 − β₂ᵏ)) + ε)``. Where ``v'`` is 0 (a weight that
    has had no gradient yet, or padding) the root's infinite slope is taken as 0, because ``g = 0``
    multiplies it.

    Attributes:
        decay: weight decay, coupled: it passes through both moments.
        beta2: decay of the second moment.
        epsilon: added to the root.
    """

    decay: float = 0.0
    beta2: float = 0.999
    epsilon: float = 1e-8
    slots = 2

    def __post_init__(self) -> None:
        _check_decay(self.decay)
        if not 0 <= self.beta2 < 1 or not self.epsilon > 0:
            raise ValueError(
                f"expected 0 <= beta2 < 1 and a positive epsilon, got {self.beta2} and {self.epsilon}: correct Adam's "
                "settings"
            )

    def step(self, weights: Tensor, state: Tensor, gradient: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
        """See `InnerOptimizer`."""
        beta1 = setting.momentum[:, None]
        gradient = _decayed(gradient, weights, self.decay)
        moments = torch.stack(
            [
                beta1 * state[0] + (1 - beta1) * gradient,
                self.beta2 * state[1] + (1 - self.beta2) * gradient.square(),
            ]
        )
        change, _ = self._change(moments, beta1, setting.number + 1)
        return weights - setting.rate[:, None] * change, moments

    def adjoint(
        self, cotangents: Cotangents, weights: Tensor, state: Tensor, new_state: Tensor, setting: Setting
    ) -> StepAdjoint:
        """See `InnerOptimizer`."""
        beta1, steps = setting.momentum[:, None], setting.number + 1
        unbias1, unbias2 = 1 - beta1**steps, 1 - self.beta2**steps
        gradient = (new_state[0] - beta1 * state[0]) / (1 - beta1)
        change, root = self._change(new_state, beta1, steps)
        cotangent = -setting.rate[:, None] * cotangents.weights / root  # of m'/(1 − β₁ᵏ)
        # of the root in v'; the product under one root could underflow where v' does not
        spread = new_state[1].sqrt()
        slope = torch.where(spread > 0, 0.5 / (spread * unbias2**0.5), 0)
        first = cotangents.state[0] + cotangent / unbias1
        second = cotangents.state[1] - cotangent * change * slope
        through = (1 - beta1) * first + 2 * (1 - self.beta2) * gradient * second
        in_rate = -_dot(change, cotangents.weights)
        in_bias = setting.rate * in_rate * steps * setting.momentum ** (steps - 1) / unbias1[:, 0]
        return StepAdjoint(
            weights=_decayed(cotangents.weights, through, self.decay),
            state=torch.stack([beta1 * first, self.beta2 * second]),
            direction=through,
            scale=None,
            rate=in_rate,
            momentum=_dot(state[0] - gradient, first) + in_bias,
        )

    def _change(self, moments: Tensor, beta1: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The weights' change at rate −1, and the root plus epsilon that divides it."""
        root = (moments[1] / (1 - self.beta2**steps)).sqrt() + self.epsilon
        return moments[0] / (1 - beta1**steps) / root, root


def _decayed(gradient: Tensor, weights: Tensor, decay: float) -> Tensor:
    return gradient + decay * weights if decay else gradient


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1)


def _check_decay(decay: float) -> None:
    if not 0 <= decay < float("inf"):
        raise ValueError(f"expected a weight decay of at least 0, got {decay}: correct it")
