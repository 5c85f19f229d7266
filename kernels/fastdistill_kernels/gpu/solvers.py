"""Triton kernels of `fastdistill_kernels.solvers`: a program takes one block of one student's parameters."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.inner_steps import PARAMETERS, example, fresh, launch, launched, partials_of, place
from fastdistill_kernels.gpu.launching import Capability, Launch
from fastdistill_kernels.gpu.partial_sums import prepare_partial_sums


@triton.jit
def neumann_kernel(
    p_term, p_total, p_product, p_alpha, p_alive, p_new_total, p_new_term, p_partials, students, size, blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of a term, and its part of two sums, to ``partials [2, S, blocks]``."""
    student, o, m = place(size, blocks, BLOCK)
    alpha, alive = tl.load(p_alpha + student), tl.load(p_alive + student)
    b_term = tl.load(p_term + o, mask=m, other=0.0)
    b_total = tl.load(p_total + o, mask=m, other=0.0)
    b_product = tl.load(p_product + o, mask=m, other=0.0)
    b_next = b_term - alpha * b_product
    # a choice, not a product with the mask: what is left out may be infinite
    tl.store(p_new_total + o, tl.where(alive, b_total + b_term, b_total), mask=m)
    tl.store(p_new_term + o, b_next, mask=m)
    p_own = p_partials + tl.program_id(0)
    tl.store(p_own, tl.sum(b_term * b_product))
    tl.store(p_own + students * blocks, tl.sum(b_next * b_next))


@triton.jit
def dots_kernel(
    p_direction, p_product, p_residual, p_damping, p_partials, students, size, blocks, BLOCK: tl.constexpr
):  # fmt: skip
    """One block's part of four sums, to ``partials [4, S, blocks]``."""
    student, o, m = place(size, blocks, BLOCK)
    damping = tl.load(p_damping + student)
    b_direction = tl.load(p_direction + o, mask=m, other=0.0)
    b_product = tl.load(p_product + o, mask=m, other=0.0)
    b_residual = tl.load(p_residual + o, mask=m, other=0.0)
    b_applied = b_product + damping * b_direction
    p_own, step = p_partials + tl.program_id(0), students * blocks
    tl.store(p_own, tl.sum(b_direction * b_applied))
    tl.store(p_own + step, tl.sum(b_applied * b_applied))
    tl.store(p_own + 2 * step, tl.sum(b_residual * b_applied))
    tl.store(p_own + 3 * step, tl.sum(b_residual * b_residual))


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")  # false for NaN too


@triton.jit
def _step(p_sums, target, active, student, students):
    """Step length, ratio of the residuals' squares, and whether the student takes the step."""
    curvature = tl.load(p_sums + student)
    applied = tl.load(p_sums + students + student)
    overlap = tl.load(p_sums + 2 * students + student)
    square = tl.load(p_sums + 3 * students + student)
    # rounded as IEEE asks: CUDA's plain division is zero for divisors near the largest number
    length = tl.div_rn(square, curvature)
    smaller = square + length * (length * applied - 2.0 * overlap)
    going = active & (square > target) & _finite(curvature) & (curvature > 0.0) & _finite(smaller)
    return length, tl.div_rn(tl.maximum(smaller, 0.0), square), going


@triton.jit
def update_kernel(
    p_iterate, p_residual, p_direction, p_product, p_sums, p_damping, p_target, p_active,
    p_new_iterate, p_new_residual, p_new_direction, p_went, students, size, blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of a step; every program finds the student's scalars for itself, the first one writes who went."""
    student, o, m = place(size, blocks, BLOCK)
    damping, target, active = (
        tl.load(p_damping + student), tl.load(p_target + student), tl.load(p_active + student),
    )  # fmt: skip
    length, ratio, going = _step(p_sums, target, active, student, students)
    tl.store(p_went + student, going, mask=tl.program_id(0) % blocks == 0)
    b_iterate = tl.load(p_iterate + o, mask=m)
    b_residual = tl.load(p_residual + o, mask=m)
    b_direction = tl.load(p_direction + o, mask=m)
    b_product = tl.load(p_product + o, mask=m)
    b_rest = b_residual - length * (b_product + damping * b_direction)
    tl.store(p_new_iterate + o, tl.where(going, b_iterate + length * b_direction, b_iterate), mask=m)
    tl.store(p_new_residual + o, tl.where(going, b_rest, b_residual), mask=m)
    tl.store(p_new_direction + o, tl.where(going, b_rest + ratio * b_direction, b_direction), mask=m)


def prepare_neumann_update(
    term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Launch]]:
    """Outputs of `neumann_update` and the launches that fill them."""
    new_total, new_term, partials = fresh(total), fresh(term), partials_of(2, term)
    sums, second = prepare_partial_sums(partials)
    tensors = {
        "p_term": term,
        "p_total": total,
        "p_product": product,
        "p_alpha": alpha,
        "p_alive": alive,
        "p_new_total": new_total,
        "p_new_term": new_term,
        "p_partials": partials,
    }
    first = launch(neumann_kernel, term.shape, tensors, students=len(term))
    return new_total, new_term, sums, [first, *second]


def prepare_cg_dots(
    direction: Tensor, product: Tensor, residual: Tensor, damping: Tensor
) -> tuple[Tensor, list[Launch]]:
    """Output of `cg_dots` and the launches that fill it."""
    partials = partials_of(4, direction)
    sums, second = prepare_partial_sums(partials)
    tensors = {
        "p_direction": direction,
        "p_product": product,
        "p_residual": residual,
        "p_damping": damping,
        "p_partials": partials,
    }
    first = launch(dots_kernel, direction.shape, tensors, students=len(direction))
    return sums, [first, *second]


def prepare_cg_update(
    iterate: Tensor,
    residual: Tensor,
    direction: Tensor,
    product: Tensor,
    sums: Tensor,
    damping: Tensor,
    target: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Launch]]:
    """Outputs of `cg_update` and the launch that fills them."""
    new_iterate, new_residual, new_direction, went = (fresh(x) for x in (iterate, residual, direction, active))
    tensors = {
        "p_iterate": iterate,
        "p_residual": residual,
        "p_direction": direction,
        "p_product": product,
        "p_sums": sums,
        "p_damping": damping,
        "p_target": target,
        "p_active": active,
        "p_new_iterate": new_iterate,
        "p_new_residual": new_residual,
        "p_new_direction": new_direction,
        "p_went": went,
    }
    run = launch(update_kernel, iterate.shape, tensors, students=len(iterate))
    return new_iterate, new_residual, new_direction, went, [run]


def neumann_update(*arguments: Tensor) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.solvers.neumann_update` computes."""
    return launched(prepare_neumann_update, arguments)


def cg_dots(*arguments: Tensor) -> Tensor:
    """Launches what `fastdistill_kernels.reference.solvers.cg_dots` computes."""
    return launched(prepare_cg_dots, arguments)[0]


def cg_update(*arguments: Tensor) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.solvers.cg_update` computes."""
    return launched(prepare_cg_update, arguments)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for sixteen ConvNet-3-128 on images of 32×32, and for extents of one, which the compiler takes out."""
    found = {}
    for name, students, size in (("", 16, PARAMETERS), ("/ones", 1, 1)):
        vector, scalar, mask = example(students, size), example(students), example(students).bool()
        step = [*[vector] * 4, example(4, students), scalar, scalar, mask]
        neumann = prepare_neumann_update(vector, vector, vector, scalar, mask)
        found[f"solvers/neumann_update{name}/float32"] = neumann[-1]
        found[f"solvers/cg_dots{name}/float32"] = prepare_cg_dots(vector, vector, vector, scalar)[-1]
        found[f"solvers/cg_update{name}/float32"] = prepare_cg_update(*step)[-1]
    return found
