"""Kernels of `fastdistill_kernels.inner_adjoints`: a block of one student's parameters each, then the partial sums."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.inner_steps import (
    PARAMETERS,
    example,
    fresh,
    launch,
    launched,
    partials_of,
    place,
    power,
    unbias,
)
from fastdistill_kernels.gpu.launching import Capability, Launch
from fastdistill_kernels.gpu.partial_sums import prepare_partial_sums, row_sum, tiling


@triton.jit
def _completed(p_cotangent, p_product, p_extra, o, m):
    """The weights' cotangent with what was still to be added."""
    b_after = tl.load(p_cotangent + o, mask=m, other=0.0)
    if p_product is not None:
        b_after += tl.load(p_product + o, mask=m, other=0.0)
    if p_extra is not None:
        b_after += tl.load(p_extra + o, mask=m, other=0.0)
    return b_after


@triton.jit
def sgd_adjoint_kernel(
    p_cotangent, p_product, p_rate, p_weights, p_gradient, p_extra, p_before, p_partial, size, blocks, decay,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``λ − η (H λ + d λ)``, and this block's share of ``−⟨g + d θ, λ⟩`` to ``partial [S, blocks]``."""
    student, o, m = place(size, blocks, BLOCK)
    rate = tl.load(p_rate + student)
    b_after = tl.load(p_cotangent + o, mask=m, other=0.0)
    b_product = tl.load(p_product + o, mask=m, other=0.0)
    b_before = b_after - rate * (b_product + decay * b_after)
    if p_extra is not None:
        b_before += tl.load(p_extra + o, mask=m, other=0.0)
    tl.store(p_before + o, b_before, mask=m)
    if p_partial is not None:
        b_drift = tl.zeros([BLOCK], tl.float32)
        if p_gradient is not None:
            b_drift += tl.load(p_gradient + o, mask=m, other=0.0)
        if p_weights is not None:
            b_drift += decay * tl.load(p_weights + o, mask=m, other=0.0)
        tl.store(p_partial + tl.program_id(0), -tl.sum(b_drift * b_after))


@triton.jit
def momentum_adjoint_kernel(
    p_cotangent, p_state_cotangent, p_state_scale, p_product, p_extra, p_velocity, p_new_velocity, p_rate,
    p_before, p_direction, p_rate_partial, p_momentum_partial, size, blocks, decay, BLOCK: tl.constexpr,
):  # fmt: skip
    """``λ + d direction``, the direction, and this block's share of both scalars' derivatives."""
    student, o, m = place(size, blocks, BLOCK)
    rate = tl.load(p_rate + student)
    b_after = _completed(p_cotangent, p_product, p_extra, o, m)
    b_direction = -rate * b_after
    if p_state_cotangent is not None:
        b_state = tl.load(p_state_cotangent + o, mask=m, other=0.0)
        if p_state_scale is not None:
            b_state = tl.load(p_state_scale + student) * b_state
        b_direction += b_state
    tl.store(p_direction + o, b_direction, mask=m)
    tl.store(p_before + o, b_after + decay * b_direction, mask=m)
    if p_new_velocity is not None:
        b_new_velocity = tl.load(p_new_velocity + o, mask=m, other=0.0)
        tl.store(p_rate_partial + tl.program_id(0), -tl.sum(b_new_velocity * b_after))
    if p_velocity is not None:
        b_velocity = tl.load(p_velocity + o, mask=m, other=0.0)
        tl.store(p_momentum_partial + tl.program_id(0), tl.sum(b_velocity * b_direction))


@triton.jit
def adam_adjoint_kernel(
    p_cotangent, p_first_cotangent, p_second_cotangent, p_product, p_extra, p_first, p_new_first, p_new_second,
    p_rate, p_beta1, p_number, p_before, p_direction, p_first_before, p_second_before, p_rate_partial,
    p_beta1_partial, size, blocks, number_stride, beta2, share2, epsilon, decay, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cotangents of weights, gradient and moments, and this block's share of both scalars' derivatives."""
    student, o, m = place(size, blocks, BLOCK)
    rate, beta1 = tl.load(p_rate + student), tl.load(p_beta1 + student)
    steps = tl.load(p_number + student * number_stride) + 1
    per1, per_root = 1.0 / unbias(1.0 - beta1, steps), 1.0 / tl.sqrt(unbias(share2, steps))
    b_after = _completed(p_cotangent, p_product, p_extra, o, m)
    b_old = tl.load(p_first + o, mask=m, other=0.0)
    b_new = tl.load(p_new_first + o, mask=m, other=0.0)
    # 1 beyond the end, where a root of 0 and an ε of 0 would make the sums 0/0
    spread = tl.sqrt(tl.load(p_new_second + o, mask=m, other=1.0))
    b_gradient = (b_new - beta1 * b_old) / (1.0 - beta1)
    root = spread * per_root + epsilon
    change = b_new * per1 / root
    tl.store(p_rate_partial + tl.program_id(0), -tl.sum(change * b_after))
    pull = -rate * b_after / root  # of m'/(1 − β₁ᵏ)
    # where v' is 0 the root's infinite slope is taken as 0: a gradient of 0 multiplies it
    slope = tl.where(spread > 0, per_root / (2.0 * tl.where(spread > 0, spread, 1.0)), 0.0)
    b_first = pull * per1
    b_second = -pull * change * slope
    if p_first_cotangent is not None:
        b_first += tl.load(p_first_cotangent + o, mask=m, other=0.0)
        b_second += tl.load(p_second_cotangent + o, mask=m, other=0.0)
    tl.store(p_beta1_partial + tl.program_id(0), tl.sum((b_old - b_gradient) * b_first))
    tl.store(p_first_before + o, beta1 * b_first, mask=m)
    tl.store(p_second_before + o, beta2 * b_second, mask=m)
    b_direction = (1.0 - beta1) * b_first + (2.0 * share2) * (b_gradient * b_second)
    tl.store(p_direction + o, b_direction, mask=m)
    tl.store(p_before + o, b_after + decay * b_direction, mask=m)


@triton.jit
def two_sums_kernel(
    p_rate_partial, p_momentum_partial, p_in_rate, p_in_momentum, p_rate, p_beta1, p_number, blocks, number_stride,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One student's two derivatives; ``β₁`` acts through Adam's correction ``1 − β₁ᵏ`` as well."""
    student = tl.program_id(0).to(tl.int64)
    in_rate = row_sum(p_rate_partial, student, blocks, BLOCK, TILES)
    in_momentum = row_sum(p_momentum_partial, student, blocks, BLOCK, TILES)
    if p_number is not None:
        rate, beta1 = tl.load(p_rate + student), tl.load(p_beta1 + student)
        number = tl.load(p_number + student * number_stride)
        in_unbias = ((number + 1) * power(beta1, number)).to(tl.float32)
        in_momentum += rate * in_rate * in_unbias / unbias(1.0 - beta1, number + 1)
    tl.store(p_in_rate + student, in_rate)
    tl.store(p_in_momentum + student, in_momentum)


def _partial(like: Tensor, wanted: bool) -> Tensor | None:
    """``[S, blocks]`` for every program's share of a derivative; None where it is not wanted."""
    return partials_of(1, like)[0] if wanted else None


def _slope(partial: Tensor | None) -> tuple[Tensor | None, list[Launch]]:
    """The derivative ``[S]`` that shares add up to, and the launches that do it."""
    return (None, []) if partial is None else prepare_partial_sums(partial)


def _two_slopes(
    in_rate: Tensor, in_momentum: Tensor, adam: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Launch]]:
    """Two derivatives ``[S]`` from their shares, and the launch that adds both up.

    One launch, though `prepare_partial_sums` would take both as two rows of one tensor: results of an operator may not
    share their memory.
    """
    (students, blocks), (rate, beta1, number) = in_rate.shape, adam or (None, None, None)
    slopes = [torch.empty(students, dtype=torch.float32, device=in_rate.device) for _ in range(2)]
    arguments = {
        "p_rate_partial": in_rate,
        "p_momentum_partial": in_momentum,
        "p_in_rate": slopes[0],
        "p_in_momentum": slopes[1],
        "p_rate": rate,
        "p_beta1": beta1,
        "p_number": number,
        "blocks": blocks,
        "number_stride": 0 if number is None else number.stride(0),
    }
    launch_both = Launch(kernel=two_sums_kernel, grid=students, arguments=arguments, constants=tiling(blocks))
    return slopes[0], slopes[1], [launch_both]


def prepare_sgd_adjoint(
    cotangent: Tensor,
    product: Tensor,
    rate: Tensor,
    weights: Tensor | None,
    gradient: Tensor | None,
    extra: Tensor | None,
    decay: float,
) -> tuple[Tensor, Tensor | None, list[Launch]]:
    """Cotangent of the weights, derivative of the rate, and the launches that fill them."""
    before, partial = fresh(cotangent), _partial(cotangent, weights is not None or gradient is not None)
    slope, sums = _slope(partial)
    tensors = {
        "p_cotangent": cotangent,
        "p_product": product,
        "p_rate": rate,
        "p_weights": weights,
        "p_gradient": gradient,
        "p_extra": extra,
        "p_before": before,
        "p_partial": partial,
    }
    first = launch(sgd_adjoint_kernel, cotangent.shape, tensors, decay=decay)
    return before, slope, [first, *sums]


def prepare_momentum_adjoint(
    cotangent: Tensor,
    state_cotangent: Tensor | None,
    state_scale: Tensor | None,
    product: Tensor | None,
    extra: Tensor | None,
    velocity: Tensor | None,
    new_velocity: Tensor | None,
    rate: Tensor,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, list[Launch]]:
    """Cotangents of weights and gradient, derivatives of rate and momentum, and the launches that fill them."""
    before, direction = fresh(cotangent), fresh(cotangent)
    rate_partial, momentum_partial = (_partial(cotangent, x is not None) for x in (new_velocity, velocity))
    in_rate: Tensor | None
    in_momentum: Tensor | None
    if rate_partial is not None and momentum_partial is not None:
        in_rate, in_momentum, sums = _two_slopes(rate_partial, momentum_partial)
    else:
        (in_rate, first_sums), (in_momentum, second_sums) = _slope(rate_partial), _slope(momentum_partial)
        sums = first_sums + second_sums
    tensors = {
        "p_cotangent": cotangent,
        "p_state_cotangent": state_cotangent,
        "p_state_scale": state_scale,
        "p_product": product,
        "p_extra": extra,
        "p_velocity": velocity,
        "p_new_velocity": new_velocity,
        "p_rate": rate,
        "p_before": before,
        "p_direction": direction,
        "p_rate_partial": rate_partial,
        "p_momentum_partial": momentum_partial,
    }
    first = launch(momentum_adjoint_kernel, cotangent.shape, tensors, decay=decay)
    return before, direction, in_rate, in_momentum, [first, *sums]


def prepare_adam_adjoint(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Launch]]:
    """Cotangents of weights, gradient and state, derivatives of rate and ``β₁``, and the launches that fill them."""
    before, direction, state = fresh(cotangent), fresh(cotangent), fresh(new_moments)
    rate_partial, beta1_partial = (partials_of(1, cotangent)[0] for _ in range(2))
    in_rate, in_beta1, sums = _two_slopes(rate_partial, beta1_partial, (rate, beta1, number))
    first_cotangent, second_cotangent = (None, None) if state_cotangent is None else state_cotangent.unbind()
    tensors = {
        "p_cotangent": cotangent,
        "p_first_cotangent": first_cotangent,
        "p_second_cotangent": second_cotangent,
        "p_product": product,
        "p_extra": extra,
        "p_first": moments[0],
        "p_new_first": new_moments[0],
        "p_new_second": new_moments[1],
        "p_rate": rate,
        "p_beta1": beta1,
        "p_number": number,
        "p_before": before,
        "p_direction": direction,
        "p_first_before": state[0],
        "p_second_before": state[1],
        "p_rate_partial": rate_partial,
        "p_beta1_partial": beta1_partial,
    }
    scalars = {"number_stride": number.stride(0), "beta2": beta2, "share2": 1 - beta2, "epsilon": epsilon}
    first = launch(adam_adjoint_kernel, cotangent.shape, tensors, **scalars, decay=decay)
    return before, direction, state, in_rate, in_beta1, [first, *sums]


def sgd_adjoint(*arguments: Any) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.inner_adjoints.sgd_adjoint` computes."""
    return launched(prepare_sgd_adjoint, arguments)


def momentum_adjoint(*arguments: Any) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.inner_adjoints.momentum_adjoint` computes."""
    return launched(prepare_momentum_adjoint, arguments)


def adam_adjoint(*arguments: Any) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.inner_adjoints.adam_adjoint` computes."""
    return launched(prepare_adam_adjoint, arguments)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for sixteen ConvNet-3-128 on images of 32×32, behind another step and behind the last one."""
    matrix, vector, moments = example(16, PARAMETERS), example(16), example(2, 16, PARAMETERS)
    number = torch.empty(16, dtype=torch.int64, device="meta")
    adam = (moments, moments, vector, vector, number, 0.999, 1e-8, 0.0)
    return {
        "inner_adjoints/sgd/float32": prepare_sgd_adjoint(matrix, matrix, vector, None, None, None, 0.0)[-1],
        "inner_adjoints/sgd_decay/float32": prepare_sgd_adjoint(matrix, matrix, vector, matrix, None, None, 0.1)[-1],
        "inner_adjoints/momentum/float32": prepare_momentum_adjoint(
            matrix, matrix, vector, matrix, None, matrix, matrix, vector, 0.0
        )[-1],
        "inner_adjoints/momentum_extra/float32": prepare_momentum_adjoint(
            matrix, None, None, matrix, matrix, matrix, matrix, vector, 0.0
        )[-1],
        "inner_adjoints/adam/float32": prepare_adam_adjoint(matrix, moments, matrix, None, *adam)[-1],
        "inner_adjoints/adam_extra/float32": prepare_adam_adjoint(matrix, moments, matrix, matrix, *adam)[-1],
    }
