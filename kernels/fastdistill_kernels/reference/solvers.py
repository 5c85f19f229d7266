"""Truth of `fastdistill_kernels.solvers`: the formulas on pieces of the vectors that fit in a core's cache.

Partial sums are those of fixed blocks of parameters, so a student's bits depend neither on the other students nor on
how vectors are cut.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 4096  # numbers of one partial sum
# Numbers of a piece for each thread: 256 KiB of float32 a vector, so that what a piece's later operations read is still
# in its core's caches. Shorter pieces were slower by the number of calls, whole vectors by their traffic.
_PIECE = 1 << 16


def neumann_update(
    term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``total'``, ``term'`` ``[S, P]`` and the sums ``⟨term, product⟩``, ``⟨term', term'⟩`` ``[2, S]``."""
    new_total, new_term, partials = _empty(total), _empty(term), _partials(2, term)
    for rows, span, blocks in _pieces(term):
        before, applied, after = term[rows, span], product[rows, span], new_term[rows, span]
        torch.add(total[rows, span], before, out=new_total[rows, span])
        torch.addcmul(before, alpha[rows, None], applied, value=-1, out=after)
        _block_sums(before, applied, partials[0, rows, blocks])
        _block_sums(after, after, partials[1, rows, blocks])
    _keep(total, new_total, alive)
    return new_total, new_term, partials.sum(-1)


def cg_dots(direction: Tensor, product: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """``⟨d, q⟩``, ``⟨q, q⟩``, ``⟨r, q⟩``, ``⟨r, r⟩`` ``[4, S]`` with ``q = product + δ d``."""
    partials = _partials(4, direction)
    for rows, span, blocks in _pieces(direction):
        d, r = direction[rows, span], residual[rows, span]
        q = torch.addcmul(product[rows, span], damping[rows, None], d)
        for index, (left, right) in enumerate(((d, q), (q, q), (r, q), (r, r))):
            _block_sums(left, right, partials[index, rows, blocks])
    return partials.sum(-1)


def cg_scalars(sums: Tensor, target: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step length, ratio ``β`` of the residuals' squares, and who takes the step, ``[S]`` each.

    Where nobody takes it, length and ratio may be anything.
    """
    curvature, applied, overlap, square = sums.unbind()
    length = square / curvature
    smaller = square + length * (length * applied - 2 * overlap)  # no square of a length: it overflows first
    going = active & (square > target) & curvature.isfinite() & (curvature > 0) & smaller.isfinite()
    return length, smaller.clamp_min(0) / square, going


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
    """``x + l d``, ``r' = r − l q``, ``r' + β d`` ``[S, P]`` where a student takes the step, and who does ``[S]``."""
    length, ratio, going = cg_scalars(sums, target, active)
    new = _empty(iterate), _empty(residual), _empty(direction)
    for rows, span, _ in _pieces(iterate):
        x, r, d = iterate[rows, span], residual[rows, span], direction[rows, span]
        along, rest = length[rows, None], new[1][rows, span]
        q = torch.addcmul(product[rows, span], damping[rows, None], d)
        torch.addcmul(x, along, d, out=new[0][rows, span])
        torch.addcmul(r, along, q, value=-1, out=rest)
        torch.addcmul(rest, ratio[rows, None], d, out=new[2][rows, span])
    for old, updated in zip((iterate, residual, direction), new, strict=True):
        _keep(old, updated, going)
    return *new, going


def _keep(old: Tensor, updated: Tensor, going: Tensor) -> None:
    """Gives the students that do not go their old vectors back, bit for bit."""
    if updated.device.type == "cpu":
        updated[~going] = old[~going]  # few; a choice for every number takes longer than the step itself
    else:
        torch.where(going[:, None], updated, old, out=updated)


def _pieces(vectors: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Students, parameters and partial sums of every piece: whole blocks, or the shorter one at the end."""
    students, size = vectors.shape
    room = _PIECE * torch.get_num_threads() if vectors.device.type == "cpu" else students * size
    rows = max(1, min(students, room // _BLOCK))
    length = max(1, room // max(1, rows * _BLOCK)) * _BLOCK
    whole = size - size % _BLOCK
    spans = [(start, min(start + length, whole)) for start in range(0, whole, length)]
    for start, stop in [*spans, (whole, size)] if whole < size else spans:
        blocks = slice(start // _BLOCK, -(-stop // _BLOCK))
        for first in range(0, students, rows):
            yield slice(first, first + rows), slice(start, stop), blocks


def _block_sums(left: Tensor, right: Tensor, into: Tensor) -> None:
    products = left * right
    torch.sum(products.unflatten(-1, (-1, min(_BLOCK, products.shape[-1]))), -1, out=into)


def _partials(count: int, vectors: Tensor) -> Tensor:
    return vectors.new_empty(count, vectors.shape[0], -(-vectors.shape[1] // _BLOCK))


def _empty(vectors: Tensor) -> Tensor:
    return torch.empty_like(vectors, memory_format=torch.contiguous_format)
