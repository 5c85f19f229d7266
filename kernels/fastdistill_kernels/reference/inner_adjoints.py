"""Truth of `fastdistill_kernels.inner_adjoints`; a derivative that is not wanted is empty."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.reference.inner_steps import Place, corrections, empty, pieces


def sgd_adjoint(
    cotangent: Tensor,
    product: Tensor,
    rate: Tensor,
    weights: Tensor | None,
    gradient: Tensor | None,
    extra: Tensor | None,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """See `fastdistill_kernels.inner_adjoints.sgd_adjoint`."""
    minus, before = -rate[:, None], empty(cotangent)
    slope = _slope(rate, weights is not None or gradient is not None)
    for at in pieces(cotangent):
        after = cotangent[at]
        pull = torch.add(product[at], after, alpha=decay) if decay else product[at]
        new = torch.addcmul(after, minus[at[0]], pull, out=before[at])
        if extra is not None:
            new.add_(extra[at])
        if gradient is not None:
            slope[at[0]] -= _dot(gradient[at], after)
        if weights is not None:
            slope[at[0]] -= decay * _dot(weights[at], after)
    return before, slope


def momentum_adjoint(
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
    """See `fastdistill_kernels.inner_adjoints.momentum_adjoint`."""
    minus, scale = -rate[:, None], None if state_scale is None else state_scale[:, None]
    before, direction = empty(cotangent), empty(cotangent)
    in_rate, in_momentum = _slope(rate, new_velocity is not None), _slope(rate, velocity is not None)
    for at in pieces(cotangent):
        rows, after = at[0], _completed(cotangent, product, extra, before, at)
        pulled = torch.mul(after, minus[rows], out=direction[at])
        if state_cotangent is not None:
            if scale is None:
                pulled.add_(state_cotangent[at])
            else:
                pulled.addcmul_(state_cotangent[at], scale[rows])
        if new_velocity is not None:
            in_rate[rows] -= _dot(new_velocity[at], after)
        if velocity is not None:
            in_momentum[rows] += _dot(velocity[at], pulled)
        if decay:
            after.add_(pulled, alpha=decay)  # only now: it is the result's place
    return before, direction, in_rate, in_momentum


def adam_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    product: Tensor | None,
    extra: Tensor | None,
    moments: Tensor,
    new_moments: Tensor,
    rate: Tensor,
    beta1: Tensor,
    number: Tensor,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `fastdistill_kernels.inner_adjoints.adam_adjoint`."""
    unbias1, unbias2, in_unbias1 = corrections(beta1, beta2, number)
    keep, take, minus = beta1[:, None], (1 - beta1)[:, None], -rate[:, None]
    per1, per2 = (1 / unbias1)[:, None], unbias2.rsqrt()[:, None]
    half = -per2 / 2
    before, direction, state = empty(cotangent), empty(cotangent), new_moments.new_empty(new_moments.shape)
    in_rate, in_beta1 = _slope(rate, True), _slope(rate, True)
    for at in pieces(cotangent):
        rows, after = at[0], _completed(cotangent, product, extra, before, at)
        old, new = moments[0][at], new_moments[0][at]
        gradient = torch.addcmul(new, old, keep[rows], value=-1).div_(take[rows])
        spread = new_moments[1][at].sqrt()
        root = torch.mul(spread, per2[rows]).add_(epsilon)
        change = torch.mul(new, per1[rows]).div_(root)
        in_rate[rows] -= _dot(change, after)
        pull = torch.mul(after, minus[rows]).div_(root)  # of m'/(1 − β₁ᵏ)
        # where v' is 0 the root's infinite slope is taken as 0: a gradient of 0 multiplies it
        slope = spread.reciprocal().masked_fill_(spread == 0, 0).mul_(half[rows])
        second = change.mul_(pull).mul_(slope)
        first = pull.mul_(per1[rows])
        if state_cotangent is not None:
            first.add_(state_cotangent[0][at])
            second.add_(state_cotangent[1][at])
        in_beta1[rows] += _dot(old - gradient, first)
        torch.mul(first, keep[rows], out=state[0][at])
        torch.mul(second, beta2, out=state[1][at])
        through = torch.mul(first, take[rows], out=direction[at])
        through.addcmul_(gradient, second, value=2 * (1 - beta2))
        if decay:
            after.add_(through, alpha=decay)
    return before, direction, state, in_rate, in_beta1 + rate * in_rate * in_unbias1 / unbias1


def _completed(cotangent: Tensor, product: Tensor | None, extra: Tensor | None, before: Tensor, at: Place) -> Tensor:
    """A piece of the weights' cotangent with what was still to be added, in the place of the result."""
    after = before[at]
    if product is None:
        after.copy_(cotangent[at])
    else:
        torch.add(cotangent[at], product[at], out=after)
    return after if extra is None else after.add_(extra[at])


def _slope(rate: Tensor, wanted: bool) -> Tensor:
    return rate.new_zeros(rate.shape if wanted else 0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1)
