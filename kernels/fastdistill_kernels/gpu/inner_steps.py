"""Kernels of `fastdistill_kernels.inner_steps`: a program takes a block of one student's parameters.

Their adjoints' kernels and the solvers' are cut and launched in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, Launch

# elements of every operand that a program takes: two 16-byte loads of each operand for each of 128 threads, which keeps
# well above the 23 KiB that an H200's multiprocessor must have under way to fill its memory's bandwidth
BLOCK = 1024
WARPS = 4


@triton.jit
def place(size, blocks, BLOCK: tl.constexpr):
    """Student of this program, and offsets in ``[S, P]`` and mask of its block."""
    program = tl.program_id(0)
    student = (program // blocks).to(tl.int64)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return student, student * size + column, column < size


@triton.jit
def power(base, exponent):
    """``base ** exponent`` in float64 for a whole exponent of at least 0, by squaring."""
    base = base.to(tl.float64)
    result = tl.full([], 1.0, tl.float64)
    while exponent > 0:
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@triton.jit
def unbias(share, steps):
    """``1 − (1 − share)ᵏ`` in float32; through float64, since it loses digits where ``share`` is small."""
    one = tl.full([], 1.0, tl.float64)
    return (one - power(one - share, steps)).to(tl.float32)


@triton.jit
def sgd_step_kernel(p_weights, p_gradient, p_rate, p_new_weights, size, blocks, decay, BLOCK: tl.constexpr):
    """``θ − η (g + d θ)``."""
    student, o, m = place(size, blocks, BLOCK)
    rate = tl.load(p_rate + student)
    b_weights = tl.load(p_weights + o, mask=m, other=0.0)
    b_gradient = tl.load(p_gradient + o, mask=m, other=0.0)
    tl.store(p_new_weights + o, b_weights - rate * (b_gradient + decay * b_weights), mask=m)


@triton.jit
def momentum_step_kernel(
    p_weights, p_velocity, p_gradient, p_rate, p_momentum, p_new_weights, p_new_velocity, size, blocks, decay,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``m' = μ m + g + d θ`` and ``θ − η m'``."""
    student, o, m = place(size, blocks, BLOCK)
    rate, momentum = tl.load(p_rate + student), tl.load(p_momentum + student)
    b_weights = tl.load(p_weights + o, mask=m, other=0.0)
    b_velocity = tl.load(p_velocity + o, mask=m, other=0.0)
    b_gradient = tl.load(p_gradient + o, mask=m, other=0.0)
    b_velocity = momentum * b_velocity + (b_gradient + decay * b_weights)
    tl.store(p_new_velocity + o, b_velocity, mask=m)
    tl.store(p_new_weights + o, b_weights - rate * b_velocity, mask=m)


@triton.jit
def adam_step_kernel(
    p_weights, p_first, p_second, p_gradient, p_rate, p_beta1, p_number, p_new_weights, p_new_first, p_new_second,
    size, blocks, number_stride, beta2, share2, epsilon, decay, BLOCK: tl.constexpr,
):  # fmt: skip
    """``m'``, ``v'`` and ``θ − η m'/(1 − β₁ᵏ) / (√(v'/(1 − β₂ᵏ)) + ε)``; ``share2`` is ``1 − β₂``."""
    student, o, m = place(size, blocks, BLOCK)
    rate, beta1 = tl.load(p_rate + student), tl.load(p_beta1 + student)
    steps = tl.load(p_number + student * number_stride) + 1
    scale = rate / unbias(1.0 - beta1, steps)
    per_root = 1.0 / tl.sqrt(unbias(share2, steps))
    b_weights = tl.load(p_weights + o, mask=m, other=0.0)
    b_first = tl.load(p_first + o, mask=m, other=0.0)
    b_second = tl.load(p_second + o, mask=m, other=0.0)
    b_gradient = tl.load(p_gradient + o, mask=m, other=0.0) + decay * b_weights
    b_first = beta1 * b_first + (1.0 - beta1) * b_gradient
    b_second = beta2 * b_second + share2 * (b_gradient * b_gradient)
    tl.store(p_new_first + o, b_first, mask=m)
    tl.store(p_new_second + o, b_second, mask=m)
    root = tl.sqrt(b_second) * per_root + epsilon
    tl.store(p_new_weights + o, b_weights - scale * b_first / root, mask=m)


def fresh(like: Tensor) -> Tensor:
    """What a launch fills."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def blocks_of(size: int) -> int:
    """Programs of one student: one even for ``P = 0``, whose sums are zero."""
    return max(1, -(-size // BLOCK))


def partials_of(count: int, like: Tensor) -> Tensor:
    """``[count, S, blocks]`` for what every program over ``[S, P]`` leaves of some sums over ``P``."""
    return torch.empty(count, like.shape[0], blocks_of(like.shape[1]), dtype=torch.float32, device=like.device)


def launch(kernel: Any, shape: torch.Size, arguments: dict[str, Any], **scalars: float) -> Launch:
    """One program for every block of every student of ``[S, P]``."""
    students, size = shape
    blocks = blocks_of(size)
    return Launch(
        kernel=kernel,
        grid=students * blocks,
        arguments={**arguments, "size": size, "blocks": blocks, **scalars},
        constants={"BLOCK": BLOCK},
        warps=WARPS,
    )


def prepare_sgd_step(weights: Tensor, gradient: Tensor, rate: Tensor, decay: float) -> tuple[Tensor, list[Launch]]:
    """New weights, and the launch that fills them."""
    new_weights = fresh(weights)
    tensors = {"p_weights": weights, "p_gradient": gradient, "p_rate": rate, "p_new_weights": new_weights}
    return new_weights, [launch(sgd_step_kernel, weights.shape, tensors, decay=decay)]


def prepare_momentum_step(
    weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor, decay: float
) -> tuple[Tensor, Tensor, list[Launch]]:
    """New weights and velocity, and the launch that fills them."""
    new_weights, new_velocity = fresh(weights), fresh(weights)
    tensors = {
        "p_weights": weights,
        "p_velocity": velocity,
        "p_gradient": gradient,
        "p_rate": rate,
        "p_momentum": momentum,
        "p_new_weights": new_weights,
        "p_new_velocity": new_velocity,
    }
    return new_weights, new_velocity, [launch(momentum_step_kernel, weights.shape, tensors, decay=decay)]


def prepare_adam_step(
    weights: Tensor,
    moments: Tensor,
    gradient: Tensor,
    rate: Tensor,
    beta1: Tensor,
    number: Tensor,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[Tensor, Tensor, list[Launch]]:
    """New weights and moments, and the launch that fills them."""
    new_weights, new_moments = fresh(weights), fresh(moments)
    tensors = {
        "p_weights": weights,
        "p_first": moments[0],
        "p_second": moments[1],
        "p_gradient": gradient,
        "p_rate": rate,
        "p_beta1": beta1,
        "p_number": number,
        "p_new_weights": new_weights,
        "p_new_first": new_moments[0],
        "p_new_second": new_moments[1],
    }
    scalars = {"number_stride": number.stride(0), "beta2": beta2, "share2": 1 - beta2, "epsilon": epsilon}
    run = launch(adam_step_kernel, weights.shape, tensors, **scalars, decay=decay)
    return new_weights, new_moments, [run]


def launched(prepare: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Prepares launches with contiguous arguments and runs them; results that are not wanted have no elements.

    Steps' numbers, the only integers, stay as they are: kernels are told their stride, 0 where all students share one.
    """
    contiguous = [
        argument.contiguous() if isinstance(argument, Tensor) and argument.dtype != torch.int64 else argument
        for argument in arguments
    ]
    *results, launches = prepare(*contiguous)
    for one in launches:
        one.run()
    return tuple(results[0].new_empty(0) if result is None else result for result in results)


def sgd_step(*arguments: Any) -> Tensor:
    """Launches what `fastdistill_kernels.reference.inner_steps.sgd_step` computes."""
    return launched(prepare_sgd_step, arguments)[0]


def momentum_step(*arguments: Any) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.inner_steps.momentum_step` computes."""
    return launched(prepare_momentum_step, arguments)


def adam_step(*arguments: Any) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.inner_steps.adam_step` computes."""
    return launched(prepare_adam_step, arguments)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for sixteen ConvNet-3-128 on images of 32×32."""
    matrix, vector = example(16, PARAMETERS), example(16)
    moments, number = example(2, 16, PARAMETERS), torch.empty(16, dtype=torch.int64, device="meta")
    adam = (matrix, moments, matrix, vector, vector, number.expand(16), 0.999, 1e-8, 0.0)
    return {
        "inner_steps/sgd/float32": prepare_sgd_step(matrix, matrix, vector, 0.0)[-1],
        "inner_steps/momentum/float32": prepare_momentum_step(matrix, matrix, matrix, vector, vector, 0.0)[-1],
        "inner_steps/adam/float32": prepare_adam_step(*adam)[-1],
    }


PARAMETERS = 320032  # of a ConvNet-3-128 with ten classes on images of 32×32, padded


def example(*shape: int) -> Tensor:
    """What a launch is prepared with to be compiled ahead of time."""
    return torch.empty(shape, dtype=torch.float32, device="meta")
