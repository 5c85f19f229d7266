"""Truth of `fastdistill_kernels.inner_steps`: cache-sized pieces, each worked on in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 1 << 16  # elements of an operand that a thread works on: 256 KiB, so the next operation finds them in cache

Place = tuple[slice, slice]


def sgd_step(weights: Tensor, gradient: Tensor, rate: Tensor, decay: float) -> Tensor:
    """See `fastdistill_kernels.inner_steps.sgd_step`."""
    minus = -rate[:, None]
    if not decay:
        return torch.addcmul(weights, minus, gradient).contiguous()
    new_weights = empty(weights)
    for at in pieces(weights):
        pull = torch.add(gradient[at], weights[at], alpha=decay)
        torch.addcmul(weights[at], minus[at[0]], pull, out=new_weights[at])
    return new_weights


def momentum_step(
    weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """See `fastdistill_kernels.inner_steps.momentum_step`."""
    minus, momentum = -rate[:, None], momentum[:, None]
    new_weights, new_velocity = empty(weights), empty(weights)
    for at in pieces(weights):
        new = torch.addcmul(gradient[at], momentum[at[0]], velocity[at], out=new_velocity[at])
        if decay:
            new.add_(weights[at], alpha=decay)
        torch.addcmul(weights[at], minus[at[0]], new, out=new_weights[at])
    return new_weights, new_velocity


def adam_step(
    weights: Tensor,
    moments: Tensor,
    gradient: Tensor,
    rate: Tensor,
    beta1: Tensor,
    number: Tensor,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """See `fastdistill_kernels.inner_steps.adam_step`."""
    unbias1, unbias2, _ = corrections(beta1, beta2, number)
    minus, keep, take = (-rate / unbias1)[:, None], beta1[:, None], (1 - beta1)[:, None]
    unbias2 = unbias2[:, None]
    new_weights, new_moments = empty(weights), moments.new_empty(moments.shape)
    for at in pieces(weights):
        rows = at[0]
        pull = torch.add(gradient[at], weights[at], alpha=decay) if decay else gradient[at]
        first = torch.mul(moments[0][at], keep[rows], out=new_moments[0][at]).addcmul_(pull, take[rows])
        second = torch.mul(moments[1][at], beta2, out=new_moments[1][at]).addcmul_(pull, pull, value=1 - beta2)
        root = torch.div(second, unbias2[rows]).sqrt_().add_(epsilon)
        torch.addcdiv(weights[at], first * minus[rows], root, out=new_weights[at])
    return new_weights, new_moments


def corrections(beta1: Tensor, beta2: float, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``1 − β₁ᵏ``, ``1 − β₂ᵏ`` and ``k β₁ᵏ⁻¹ [S]``, in float64: they lose digits where a beta is close to 1."""
    base, steps = beta1.double(), number.double() + 1
    found = 1 - base**steps, 1 - beta2**steps, steps * base ** (steps - 1)
    unbias1, unbias2, in_unbias1 = (tensor.to(beta1.dtype) for tensor in found)
    return unbias1, unbias2, in_unbias1


def pieces(tensor: Tensor) -> Iterator[Place]:
    """Rows and columns of pieces of a matrix ``[S, P]``: whole students where several fit, else parts of one.

    All at once on a device, where a piece more is a launch more.
    """
    students, size = tensor.shape
    piece = _PIECE * torch.get_num_threads() if tensor.device.type == "cpu" else max(tensor.numel(), 1)
    together = max(piece // max(size, 1), 1)
    for row in range(0, students, together):
        for column in range(0, size, piece):
            yield slice(row, row + together), slice(column, column + piece)


def empty(like: Tensor, wanted: bool = True) -> Tensor:
    """A result that nothing aliases, contiguous whatever the argument is; of no elements where it is not wanted."""
    return like.new_empty(like.shape if wanted else 0)
