"""Truth of `fastdistill_kernels.match`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the product of the norms, as in gradient matching's published distance


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
    alive = norm_a > 0
    pull = dot * norm_b / (scale * scale * torch.where(alive, norm_a, torch.ones_like(norm_a)))
    cotangent = torch.where(alive, pull * a - b / scale, torch.zeros_like(a))
    return (1 - dot / scale).sum((-2, -1)), cotangent


def match(a: Tensor, b: Tensor, segments: Sequence[tuple[int, int, int]], distance: str) -> tuple[Tensor, Tensor]:
    """Distance of flat gradients over the segments of a row table, and its cotangent.

    Args:
        a: synthetic gradients ``[..., P]``.
        b: real gradients ``[..., P]``.
        segments: ``(offset, rows, columns)`` of every tensor that takes part.
        distance: ``ours``, ``mse``, ``l1`` or ``cos``.

    Returns:
        The distance ``[...]`` and ``∂distance/∂a`` ``[..., P]``, zero outside the segments.
    """
    cotangent = torch.zeros_like(a)
    if distance == "cos":
        kept = torch.cat([torch.arange(o, o + r * c, device=a.device) for o, r, c in segments])
        value, pulled = cosine_rows(a[..., None, kept], b[..., None, kept])
        cotangent[..., kept] = pulled.squeeze(-2)
        return value, cotangent
    value = a.new_zeros(a.shape[:-1])
    for offset, rows, columns in segments:
        span = slice(offset, offset + rows * columns)
        part_a, part_b = a[..., span], b[..., span]
        if distance == "ours":
            part, pulled = cosine_rows(part_a.unflatten(-1, (rows, columns)), part_b.unflatten(-1, (rows, columns)))
            cotangent[..., span] = pulled.flatten(-2)
        elif distance == "mse":
            difference = part_a - part_b
            part = (difference * difference).sum(-1)
            cotangent[..., span] = 2 * difference
        else:
            difference = part_a - part_b
            part = difference.abs().sum(-1)
            cotangent[..., span] = difference.sign()
        value = value + part
    return value, cotangent
