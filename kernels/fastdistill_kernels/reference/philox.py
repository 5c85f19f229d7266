"""Truth of `fastdistill_kernels.philox`: cache-sized pieces of counters, each worked on in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORDS = 4  # of a counter
_PIECE = 1 << 14  # counters that a thread works on: three buffers of two words each are 768 KiB, a core's cache

Convert = Callable[[Tensor, Tensor, Tensor], None]  # left and right words [2, s, b] to numbers [2, s, b, 2]


def philox(students: Tensor, key0: int, key1: int, stream: int, step: int, count: int) -> Tensor:
    """Words of counters ``(block, student, step, stream)``, int64 ``[S, count]``, four of each block."""
    return _filled(students, (key0, key1), stream, step, count, torch.int64, _as_words)


def uniform(students: Tensor, key0: int, key1: int, stream: int, step: int, count: int) -> Tensor:
    """Float32 in ``[0, 1)`` with 24 random bits each, ``[S, count]``."""
    return _filled(students, (key0, key1), stream, step, count, torch.float32, _as_uniform)


def normal(students: Tensor, key0: int, key1: int, stream: int, step: int, count: int) -> Tensor:
    """Standard normals, float32 ``[S, count]``: a pair of words makes a pair by Box and Muller's transform.

    Computed in float64 and rounded once, so that devices with differing float32 logarithms agree.
    """
    return _filled(students, (key0, key1), stream, step, count, torch.float32, _as_normal)


def generate(key: tuple[int, int], counter: Sequence[Tensor | int]) -> tuple[Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words for every 128-bit counter.

    Words live in int64 tensors; the wrap-around of a signed 64-bit product keeps the bits of the unsigned one.

    Args:
        key: two 32-bit words.
        counter: four words in ``[0, 2^32)``, int64 tensors that broadcast against each other, or numbers.

    Returns:
        First and third word, and second and fourth, int64 ``[2, ...]``: left and right of two pairs.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*(torch.as_tensor(word) for word in counter))
    left, right = torch.stack((c0, c2)), torch.stack((c1, c3))
    product, (first, third) = torch.empty_like(left), left
    keys = [[(word + turn * step) & _WORD for word, step in zip(key, _WEYL, strict=True)] for turn in range(_ROUNDS)]
    for one in torch.tensor(keys, device=left.device).view(_ROUNDS, 2, *[1] * c0.ndim):
        # crosswise, as the next round wants them
        torch.mul(third, _MULTIPLIERS[1], out=product[0])
        torch.mul(first, _MULTIPLIERS[0], out=product[1])
        torch.bitwise_right_shift(product, 32, out=left)
        left.bitwise_xor_(right).bitwise_xor_(one).bitwise_and_(_WORD)
        right, product = product, right  # only the lower halves count, and only at the end are they alone
    return left, right.bitwise_and_(_WORD)


def _filled(
    students: Tensor, key: tuple[int, int], stream: int, step: int, count: int, dtype: torch.dtype, convert: Convert
) -> Tensor:
    """Numbers of every student, piece by piece."""
    numbers = torch.empty(len(students), count, dtype=dtype, device=students.device)
    for rows, begin, end in _pieces(students, -(-count // _WORDS)):
        blocks = torch.arange(begin, end, device=students.device)
        left, right = generate(key, (blocks, students[rows, None], step, stream))
        target = numbers[rows, _WORDS * begin : _WORDS * end]
        cut = target.shape[1] < _WORDS * (end - begin)
        whole = target.new_empty(len(target), _WORDS * (end - begin)) if cut else target
        convert(left, right, whole.unflatten(1, (-1, 2, 2)).movedim(2, 0))
        if cut:
            target.copy_(whole[:, : target.shape[1]])
    return numbers


def _pieces(students: Tensor, blocks: int) -> Iterator[tuple[slice, int, int]]:
    """Students and blocks of pieces: whole students where several fit, else parts of one; all at once on a device."""
    count = len(students)
    piece = _PIECE * torch.get_num_threads() if students.device.type == "cpu" else max(count * blocks, 1)
    together = max(piece // max(blocks, 1), 1)
    for row in range(0, count, together):
        for begin in range(0, blocks, piece):
            yield slice(row, row + together), begin, min(begin + piece, blocks)


def _as_words(left: Tensor, right: Tensor, numbers: Tensor) -> None:
    numbers[..., 0], numbers[..., 1] = left, right


def _as_uniform(left: Tensor, right: Tensor, numbers: Tensor) -> None:
    for place, words in enumerate((left, right)):
        numbers[..., place] = words.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)


def _as_normal(left: Tensor, right: Tensor, numbers: Tensor) -> None:
    radius = left.to(torch.float64).add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = right.to(torch.float64).mul_(2 * math.pi * 2.0**-32)
    numbers[..., 0] = torch.cos(angle).mul_(radius)
    numbers[..., 1] = angle.sin_().mul_(radius)
