"""Counter-based random numbers: every value is a function of a key and a counter, the same on every device.

A student's numbers are addressed, not drawn in sequence, so they do not depend on which students share a launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.reference import philox as reference

_WORDS = 4  # Philox4x32 makes four words a counter


def philox(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Random words of several students.

    The counter is ``(block, student, step, stream)``, the key is the seed.

    Args:
        seed: in ``[0, 2^64)``.
        stream: what the words are for, in ``[0, 2^32)``.
        step: in ``[0, 2^32)``.
        students: global student indices, int64 ``[S]``; the words are made on its device.
        count: words per student.

    Returns:
        int64 ``[S, count]``, values in ``[0, 2^32)``.

    Raises:
        ValueError: for an argument outside its range.
    """
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32), ("count", count, 34)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"expected {name} in [0, 2^{bits}), got {value}: choose a non-negative value in range")
    if students.ndim != 1 or students.dtype != torch.int64:
        raise ValueError(
            f"expected int64 student indices [S], got {students.dtype} {tuple(students.shape)}: pass a vector"
        )
    blocks = torch.arange(-(-count // _WORDS), dtype=torch.int64, device=students.device)
    constant = torch.ones((), dtype=torch.int64, device=students.device)
    words = reference.philox(
        (seed & 0xFFFFFFFF, seed >> 32), (blocks, students[:, None], constant * step, constant * stream)
    )
    return words.flatten(1)[:, :count]


def uniform(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Uniform numbers in ``[0, 1)``, float32 ``[S, count]``; arguments as `philox`."""
    return reference.uniform(philox(seed, stream, step, students, count))


def normal(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 ``[S, count]``; arguments as `philox`."""
    return reference.normal(philox(seed, stream, step, students, count + count % 2))[:, :count]
