"""Triton kernels of `fastdistill_kernels.solvers`: one program a block of one student's parameters."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, Launch, programs
from fastdistill_kernels.gpu.partial_sums import prepare_partial_sums

# Eight numbers a thread and vector: two loads of sixteen bytes each, with 3 to 4 vectors enough in flight for a GPU's
# memory, and partial sums are a thousandth of the traffic. Not yet measured on a device.
_BLOCK = 2048
_WARPS = 8


@triton.jit
def _neumann(
    term, total, product, alpha, alive, new_total, new_term, partials, students, size, blocks, BLOCK: tl.constexpr
):
    pid = tl.program_id(0).to(tl.int64)
    student, block = pid // blocks, pid % blocks
    o_own = block * BLOCK + tl.arange(0, BLOCK)
    m_own = o_own < size
    o_all = student * size + o_own
    b_alpha = tl.load(alpha + student)
    b_alive = tl.load(alive + student)
    b_term = tl.load(term + o_all, mask=m_own, other=0.0)
    b_total = tl.load(total + o_all, mask=m_own, other=0.0)
    b_product = tl.load(product + o_all, mask=m_own, other=0.0)
    b_next = b_term - b_alpha * b_product
    # a choice, not a product with the mask: what is left out may be infinite
    tl.store(new_total + o_all, tl.where(b_alive, b_total + b_term, b_total), mask=m_own)
    tl.store(new_term + o_all, b_next, mask=m_own)
    # alpha may be infinite, and times the zeros beyond the end it would spoil the sum
    b_next = tl.where(m_own, b_next, 0.0)
    tl.store(partials + pid, tl.sum(b_term * b_product))
    tl.store(partials + students * blocks + pid, tl.sum(b_next * b_next))


@triton.jit
def _dots(direction, product, residual, damping, partials, students, size, blocks, BLOCK: tl.constexpr):
    pid = tl.program_id(0).to(tl.int64)
    student, block = pid // blocks, pid % blocks
    o_own = block * BLOCK + tl.arange(0, BLOCK)
    m_own = o_own < size
    o_all = student * size + o_own
    b_damping = tl.load(damping + student)
    b_direction = tl.load(direction + o_all, mask=m_own, other=0.0)
    b_product = tl.load(product + o_all, mask=m_own, other=0.0)
    b_residual = tl.load(residual + o_all, mask=m_own, other=0.0)
    b_applied = tl.where(m_own, b_product + b_damping * b_direction, 0.0)
    o_next = students * blocks
    tl.store(partials + pid, tl.sum(b_direction * b_applied))
    tl.store(partials + o_next + pid, tl.sum(b_applied * b_applied))
    tl.store(partials + 2 * o_next + pid, tl.sum(b_residual * b_applied))
    tl.store(partials + 3 * o_next + pid, tl.sum(b_residual * b_residual))


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")  # false for NaN too


@triton.jit
def _update(
    iterate,
    residual,
    direction,
    product,
    sums,
    damping,
    target,
    active,
    new_iterate,
    new_residual,
    new_direction,
    went,
    students,
    size,
    blocks,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    student, block = pid // blocks, pid % blocks
    b_curvature = tl.load(sums + student)
    b_square_applied = tl.load(sums + students + student)
    b_overlap = tl.load(sums + 2 * students + student)
    b_square = tl.load(sums + 3 * students + student)
    b_damping = tl.load(damping + student)
    # rounded as IEEE asks: the plain division of CUDA is zero for divisors near the largest number
    b_length = tl.div_rn(b_square, b_curvature)
    b_smaller = b_square + b_length * (b_length * b_square_applied - 2.0 * b_overlap)
    b_ratio = tl.div_rn(tl.maximum(b_smaller, 0.0), b_square)
    b_going = tl.load(active + student) & (b_square > tl.load(target + student))
    b_going = b_going & _finite(b_curvature) & (b_curvature > 0.0) & _finite(b_smaller)
    tl.store(went + student, b_going, mask=block == 0)

    o_own = block * BLOCK + tl.arange(0, BLOCK)
    m_own = o_own < size
    o_all = student * size + o_own
    b_iterate = tl.load(iterate + o_all, mask=m_own)
    b_residual = tl.load(residual + o_all, mask=m_own)
    b_direction = tl.load(direction + o_all, mask=m_own)
    b_product = tl.load(product + o_all, mask=m_own)
    b_applied = b_product + b_damping * b_direction
    b_rest = b_residual - b_length * b_applied
    tl.store(new_iterate + o_all, tl.where(b_going, b_iterate + b_length * b_direction, b_iterate), mask=m_own)
    tl.store(new_residual + o_all, tl.where(b_going, b_rest, b_residual), mask=m_own)
    tl.store(new_direction + o_all, tl.where(b_going, b_rest + b_ratio * b_direction, b_direction), mask=m_own)


def _blocks(size: int) -> int:
    return max(1, -(-size // _BLOCK))  # one even for P = 0, whose sums are zero


def _launch(kernel, arguments: dict[str, Tensor], like: Tensor) -> Launch:
    """Adds the extents, which all three kernels end with; vectors become contiguous."""
    students, size = like.shape
    given: dict[str, Any] = {name: tensor.contiguous() for name, tensor in arguments.items()}
    return Launch(
        kernel=kernel,
        grid=programs(students, _blocks(size)),
        arguments=given | {"students": students, "size": size, "blocks": _blocks(size)},
        constants={"BLOCK": _BLOCK},
        warps=_WARPS,
    )


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _partials(count: int, like: Tensor) -> Tensor:
    return torch.empty(count, like.shape[0], _blocks(like.shape[1]), dtype=torch.float32, device=like.device)


def prepare_neumann_update(
    term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Launch]]:
    """Outputs of `neumann_update` and the launches that fill them."""
    new_total, new_term, partials = _empty(total), _empty(term), _partials(2, term)
    arguments = {"term": term, "total": total, "product": product, "alpha": alpha, "alive": alive}
    arguments |= {"new_total": new_total, "new_term": new_term, "partials": partials}
    sums, second = prepare_partial_sums(partials)
    return new_total, new_term, sums, [_launch(_neumann, arguments, term), *second]


def prepare_cg_dots(
    direction: Tensor, product: Tensor, residual: Tensor, damping: Tensor
) -> tuple[Tensor, list[Launch]]:
    """Output of `cg_dots` and the launches that fill it."""
    partials = _partials(4, direction)
    arguments = {"direction": direction, "product": product, "residual": residual, "damping": damping}
    sums, second = prepare_partial_sums(partials)
    return sums, [_launch(_dots, arguments | {"partials": partials}, direction), *second]


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
    new_iterate, new_residual, new_direction, went = (_empty(x) for x in (iterate, residual, direction, active))
    arguments = {"iterate": iterate, "residual": residual, "direction": direction, "product": product, "sums": sums}
    arguments |= {"damping": damping, "target": target, "active": active, "new_iterate": new_iterate}
    arguments |= {"new_residual": new_residual, "new_direction": new_direction, "went": went}
    return new_iterate, new_residual, new_direction, went, [_launch(_update, arguments, iterate)]


def neumann_update(
    term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference's."""
    *outputs, launches = prepare_neumann_update(term, total, product, alpha, alive)
    for launch in launches:
        launch.run()
    return outputs[0], outputs[1], outputs[2]


def cg_dots(direction: Tensor, product: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """As the reference's."""
    sums, launches = prepare_cg_dots(direction, product, residual, damping)
    for launch in launches:
        launch.run()
    return sums


def cg_update(
    iterate: Tensor,
    residual: Tensor,
    direction: Tensor,
    product: Tensor,
    sums: Tensor,
    damping: Tensor,
    target: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the reference's."""
    *outputs, launches = prepare_cg_update(iterate, residual, direction, product, sums, damping, target, active)
    for launch in launches:
        launch.run()
    return outputs[0], outputs[1], outputs[2], outputs[3]


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """What is compiled ahead of time: the vectors of 16 ConvNet-3-128 on images of 32×32, padding included."""
    vector = torch.empty(16, 320_032, device="meta")
    scalar, mask, sums = (
        torch.empty(16, device="meta"),
        torch.empty(16, dtype=torch.bool, device="meta"),
        vector[:4, :16],
    )
    return {
        "solvers/neumann_update/float32": prepare_neumann_update(vector, vector, vector, scalar, mask)[-1],
        "solvers/cg_dots/float32": prepare_cg_dots(vector, vector, vector, scalar)[-1],
        "solvers/cg_update/float32": prepare_cg_update(vector, vector, vector, vector, sums, scalar, scalar, mask)[-1],
    }
