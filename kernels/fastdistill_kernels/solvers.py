"""Vector work of the linear solvers, fused, with per-student scalars and masks on the device.

All vectors are ``[S, P]``, padding zero, float32 (float64 takes the reference); ``s`` runs over students.

- ``neumann_update``: ``total' = total + term`` where alive, ``term' = term − α product``, and the sums
  ``⟨term, product⟩``, ``⟨term', term'⟩``. Least traffic: read 3, write 2 × ``S·P``; 7 operations a number.
- ``cg_dots``: with ``q = product + δ d`` the sums ``⟨d, q⟩``, ``⟨q, q⟩``, ``⟨r, q⟩``, ``⟨r, r⟩``. Read 3;
  10 operations.
- ``cg_update``: ``x' = x + l d``, ``r' = r − l q``, ``d' = r' + β d`` with ``l = ⟨r, r⟩/⟨d, q⟩`` and
  ``β = max(⟨r, r⟩ − 2 l ⟨r, q⟩ + l² ⟨q, q⟩, 0) / ⟨r, r⟩``. Read 4, write 3; 8 operations.

One iteration of conjugate gradients is the last two: 10 × ``S·P`` where the textbook's three passes move 11. How that
departs from the textbook, and why rounding does not pile up, is in ``kernels/README.md``. Operations
counted: every addition and multiplication on ``[S, P]``; scalars of a student are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_shape, refuse_derivatives
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import solvers as reference

_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def cost_neumann_update(students: int, size: int, itemsize: int) -> Cost:
    """Of one term of the series; the student's scalars are left out."""
    return Cost(flops=7 * students * size, bytes=5 * students * size * itemsize)


def cost_cg_dots(students: int, size: int, itemsize: int) -> Cost:
    """Of the first pass of an iteration."""
    return Cost(flops=10 * students * size, bytes=3 * students * size * itemsize)


def cost_cg_update(students: int, size: int, itemsize: int) -> Cost:
    """Of the second pass of an iteration."""
    return Cost(flops=8 * students * size, bytes=7 * students * size * itemsize)


def _neumann_fake(term: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return term.new_empty(term.shape), term.new_empty(term.shape), term.new_empty(2, term.shape[0])


def _dots_fake(direction: Tensor, *_: Tensor) -> Tensor:
    return direction.new_empty(4, direction.shape[0])


def _update_fake(iterate: Tensor, *others: Tensor) -> _Four:
    vectors = [iterate.new_empty(iterate.shape) for _ in range(3)]
    return vectors[0], vectors[1], vectors[2], others[-1].new_empty(others[-1].shape)


_neumann_update = register(
    "neumann_update(Tensor term, Tensor total, Tensor product, Tensor alpha, Tensor alive) -> (Tensor, Tensor, Tensor)",
    reference=reference.neumann_update,
    kernels="solvers",
    fake=_neumann_fake,
    flops=lambda term, *_: cost_neumann_update(term[0], term[1], 4).flops,
)
_cg_dots = register(
    "cg_dots(Tensor direction, Tensor product, Tensor residual, Tensor damping) -> Tensor",
    reference=reference.cg_dots,
    kernels="solvers",
    fake=_dots_fake,
    flops=lambda direction, *_: cost_cg_dots(direction[0], direction[1], 4).flops,
)
_cg_update = register(
    "cg_update(Tensor iterate, Tensor residual, Tensor direction, Tensor product, Tensor sums, Tensor damping, "
    "Tensor target, Tensor active) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.cg_update,
    kernels="solvers",
    fake=_update_fake,
    flops=lambda iterate, *_: cost_cg_update(iterate[0], iterate[1], 4).flops,
)


def neumann_update(term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, alive: Tensor) -> _Four:
    """One term of the Neumann series ``Σ (I − αH)^j b`` for all students.

    The sum lags one term behind, so that a term's length is known before the term is added. A loop starts with
    ``term = b``, ``total = 0`` and everyone alive, and keeps alive whose ``⟨term', term'⟩`` was always finite; after
    K + 1 calls the sum holds the terms 0 to K, and the last length is that of the residual.

    Args:
        term: ``(I − αH)^j b`` ``[S, P]``.
        total: sum of the terms before ``[S, P]``.
        product: ``H term`` ``[S, P]``.
        alpha: ``α`` of each student ``[S]``.
        alive: whose sum takes the term, bool ``[S]``.

    Returns:
        ``total'`` ``[S, P]`` (the old one, bit for bit, where not alive), ``term'`` ``[S, P]``, the curvature
        ``⟨term, product⟩`` ``[S]`` and ``⟨term', term'⟩`` ``[S]``.

    Raises:
        TypeError: for a tensor with a derivative.
        ValueError: for wrong shapes, dtypes or devices.
    """
    name = "neumann_update"
    refuse_derivatives(name, term, total, product, alpha, alive)
    _expect_vectors(name, term=term, total=total, product=product)
    _expect_scalars(name, term, alpha=alpha)
    _expect_mask(name, "alive", alive, term)
    new_total, new_term, sums = _neumann_update(term, total, product, alpha, alive)
    return new_total, new_term, sums[0], sums[1]


def cg_dots(direction: Tensor, product: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """First pass of an iteration of conjugate gradients on ``(H + δI) x = b``: the sums that it needs.

    Args:
        direction: ``d`` ``[S, P]``.
        product: ``H d`` ``[S, P]``.
        residual: ``r`` ``[S, P]``.
        damping: ``δ`` of each student ``[S]``.

    Returns:
        ``⟨d, q⟩``, ``⟨q, q⟩``, ``⟨r, q⟩`` and ``⟨r, r⟩`` with ``q = H d + δ d``, ``[4, S]`` in the vectors' dtype.

    Raises:
        TypeError: for a tensor with a derivative.
        ValueError: for wrong shapes, dtypes or devices.
    """
    name = "cg_dots"
    refuse_derivatives(name, direction, product, residual, damping)
    _expect_vectors(name, direction=direction, product=product, residual=residual)
    _expect_scalars(name, direction, damping=damping)
    sums: Tensor = _cg_dots(direction, product, residual, damping)
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
) -> _Four:
    """Second pass of an iteration of conjugate gradients: the step, and who takes it.

    A student takes it where it is active, ``⟨r, r⟩`` is above the target (it has not converged), ``⟨d, q⟩`` is finite
    and positive, and the new residual's norm is finite. All three vectors of the others keep their bits, so a student
    that stops stays where it was, whatever its later products are, as long as it is handed in as inactive.

    Args:
        iterate: ``x`` ``[S, P]``.
        residual: ``r = b − (H + δI) x`` ``[S, P]``.
        direction: ``d`` ``[S, P]``, the residual at the start.
        product: ``H d`` ``[S, P]``.
        sums: of `cg_dots` for the same vectors ``[4, S]``.
        damping: ``δ`` of each student ``[S]``.
        target: ``⟨r, r⟩`` at which a student has converged ``[S]``.
        active: who was still going, bool ``[S]``.

    Returns:
        ``x'``, ``r'``, ``d'`` ``[S, P]`` and who took the step, bool ``[S]``: the next call's `active`.

    Raises:
        TypeError: for a tensor with a derivative.
        ValueError: for wrong shapes, dtypes or devices.
    """
    name = "cg_update"
    refuse_derivatives(name, iterate, residual, direction, product, sums, damping, target, active)
    _expect_vectors(name, iterate=iterate, residual=residual, direction=direction, product=product)
    expect_alike(name, iterate=iterate, sums=sums)
    expect_shape(name, "sums", sums, "[4, S]", (4, iterate.shape[0]))
    _expect_scalars(name, iterate, damping=damping, target=target)
    _expect_mask(name, "active", active, iterate)
    stepped: _Four = _cg_update(iterate, residual, direction, product, sums, damping, target, active)
    return stepped


def _expect_vectors(operator: str, **vectors: Tensor) -> None:
    expect_alike(operator, **vectors)
    first_name, first = next(iter(vectors.items()))
    if first.ndim != 2 or first.dtype == torch.bfloat16:
        raise ValueError(
            f"{operator} expected {first_name} [S, P] in float32 or float64, got {list(first.shape)} in {first.dtype}: "
            "give each student one row, and convert bfloat16, whose rounding no recursion of a solver survives"
        )
    for name, vector in vectors.items():
        expect_shape(operator, name, vector, "[S, P]", tuple(first.shape))


def _expect_scalars(operator: str, vectors: Tensor, **scalars: Tensor) -> None:
    expect_alike(operator, vectors=vectors, **scalars)
    for name, scalar in scalars.items():
        expect_shape(operator, name, scalar, "[S]", (vectors.shape[0],))


def _expect_mask(operator: str, name: str, mask: Tensor, vectors: Tensor) -> None:
    if mask.dtype != torch.bool or mask.device != vectors.device:
        raise ValueError(
            f"{operator} expected {name} in torch.bool on {vectors.device}, got {mask.dtype} on {mask.device}: "
            "convert it first"
        )
    expect_shape(operator, name, mask, "[S]", (vectors.shape[0],))
