"""Truth of `fastdistill_kernels.match`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the product of the norms, as in gradient matching's published distance
# values of a piece of pairs: its five or so blocks stay in a core's cache, where blocks of all pairs of a ConvNet-3-128
# would be past 32 MB and mapped anew every time
_PIECE = 1 << 18


def cosine_rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cosine distance of rows and its derivative in ``a``.

    ``Σ_rows 1 − ⟨a,b⟩ / (‖a‖‖b‖ + 1e-6)`` (Zhao et al. 2021, eq. 10). A dead row (``‖a‖ = 0``) gets the cotangent 0,
    where the formula's one-sided limit would be ``b / 1e-6``: a deliberate departure, since that limit carries no
    information about the images and would drown every other row.

    Args:
        a: ``[..., rows, columns]``.
        b: ``[..., rows, columns]``.

    Returns:
        The distance ``[...]`` and the cotangent ``[..., rows, columns]``.
    """
    dot = (a * b).sum(-1, keepdim=True)
    norm_a = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    norm_b = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    scale = norm_a * norm_b + EPSILON
    dead = norm_a == 0  # a row that is no number is not dead: it must show
    pull = dot * norm_b / (scale * scale * torch.where(dead, torch.ones_like(norm_a), norm_a))
    cotangent = torch.where(dead, torch.zeros_like(a), pull * a - b / scale)
    return (1 - dot / scale).sum((-2, -1)), cotangent


def match(
    a: Tensor,
    b: Tensor,
    programs: Tensor | None,
    offsets: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    distance: str,
) -> tuple[Tensor, Tensor]:
    """Distance of flat gradients over the segments of a row table, and its cotangent.

    Args:
        a: synthetic gradients ``[..., P]``.
        b: real gradients ``[..., P]``.
        programs: those of a kernel; not read.
        offsets: where each segment begins.
        rows: how many rows it has.
        columns: how long these are.
        distance: ``ours``, ``mse``, ``l1``, ``l1_mean`` or ``cos``.

    Returns:
        The distance ``[...]``, float32 for bfloat16 gradients, and ``∂distance/∂a`` ``[..., P]``, zero outside the
        segments.
    """
    size = a.shape[-1]
    pairs_a, pairs_b = (tensor.reshape(prod(a.shape[:-1]), size) for tensor in (a, b))
    segments = list(zip(offsets, rows, columns, strict=True))
    value = torch.empty(len(pairs_a), dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)
    value, cotangent = value.to(a.device), torch.zeros_like(pairs_a)
    step = max(1, _PIECE // max(size, 1))
    for start in range(0, len(pairs_a), step):
        piece = slice(start, start + step)
        wide_a, wide_b = pairs_a[piece].to(value.dtype), pairs_b[piece].to(value.dtype)
        value[piece] = _piece(wide_a, wide_b, cotangent[piece], segments, distance)
    return value.view(a.shape[:-1]), cotangent.view(a.shape)


def _piece(a: Tensor, b: Tensor, cotangent: Tensor, segments: list[tuple[int, int, int]], distance: str) -> Tensor:
    """The distance of some pairs; their cotangent goes where it belongs."""
    if distance == "cos":
        spans = [torch.arange(o, o + r * c, device=a.device) for o, r, c in ((0, 0, 0), *segments)]  # one at least
        kept = torch.cat(spans)
        value, pulled = cosine_rows(a[:, None, kept], b[:, None, kept])
        cotangent[:, kept] = pulled.squeeze(1).to(cotangent.dtype)
        return value
    value = a.new_zeros(len(a))
    for offset, rows, columns in segments:
        span = slice(offset, offset + rows * columns)
        part_a, part_b = (tensor[:, span].unflatten(-1, (rows, columns)) for tensor in (a, b))
        if distance == "ours":
            part, pulled = cosine_rows(part_a, part_b)
        else:
            part, pulled = _elementwise(part_a - part_b, distance)
        cotangent[:, span] = pulled.flatten(1)
        value = value + part
    return value


def _elementwise(difference: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """Distance ``[pairs]`` and derivative of differences ``[pairs, rows, columns]``."""
    if distance == "mse":
        return (difference * difference).sum((-2, -1)), 2 * difference
    share = 1 / max(difference.shape[-1], 1) if distance == "l1_mean" else 1.0
    sign = torch.where(difference.isnan(), difference, difference.sign())  # torch's sign of no number is 0
    return difference.abs().sum((-2, -1)) * share, sign * share
