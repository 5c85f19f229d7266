"""The plain-torch truth of every operator: slow, differentiable where it makes sense, and the CPU path.

Tests, benchmarks and machines without a GPU all use these functions; a Triton kernel is right when it equals them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the product of the norms, as in gradient matching's published distance
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


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


def philox(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words for every 128-bit counter.

    Words live in int64 tensors; the wrap-around of a signed 64-bit product keeps the bits of the unsigned one.

    Args:
        key: two 32-bit words.
        counter: four int64 tensors of words in ``[0, 2^32)`` that broadcast against each other.

    Returns:
        int64 ``[..., 4]``, words in ``[0, 2^32)``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def uniform(words: Tensor) -> Tensor:
    """Turns 32-bit words into float32 in ``[0, 1)`` with 24 random bits each.

    Args:
        words: int64 of any shape.

    Returns:
        float32 of the same shape.
    """
    return (words >> 8).to(torch.float32) * 2.0**-24


def normal(words: Tensor) -> Tensor:
    """Turns pairs of 32-bit words into standard normals by Box and Muller's transform.

    Computed in float64 and rounded once, so that devices with differing float32 logarithms agree.

    Args:
        words: int64 ``[..., 2n]``.

    Returns:
        float32 ``[..., 2n]``.
    """
    pairs = words.unflatten(-1, (-1, 2)).to(torch.float64)
    radius = torch.sqrt(-2 * torch.log((pairs[..., 0] + 1) * 2.0**-32))
    angle = pairs[..., 1] * (2 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2).to(torch.float32)
