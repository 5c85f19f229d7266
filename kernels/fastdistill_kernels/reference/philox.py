"""Truth of `fastdistill_kernels.philox`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


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
