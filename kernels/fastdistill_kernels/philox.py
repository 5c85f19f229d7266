"""Counter-based random numbers: every value is a function of a key and a counter, whatever the device.

Words and uniform numbers are the same bit for bit. Normal ones may differ in float32's last bit, rarely: devices round
logarithms, sines and cosines in float64 differently.

A student's numbers are addressed, not drawn in sequence, so they do not depend on which students share a launch. Word
``4 b + i`` of a student is word ``i`` of Philox4x32-10 (Salmon et al. 2011) at the counter ``(b, student, step,
stream)`` with the seed as key. `uniform` keeps 24 bits of each word; `normal` makes a pair of numbers of a pair of
words by Box and Muller's transform, ``√(−2 ln((w₀ + 1)/2³²)) · (cos, sin)(2π w₁/2³²)``, in float64, rounded once.

All students in one launch, every number written once and nothing read but their indices: 8 bytes a word, 4 a number.
Counted are floating-point operations, a root, logarithm, sine or cosine as one: none for a word, 1 for a uniform
number, 5 for a normal one; it is the integers that take the time, and float64 where there are normals.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.cost import Cost
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import philox as reference

_FLOPS = {"philox": 0, "uniform": 1, "normal": 5}
_BYTES = {"philox": 8, "uniform": 4, "normal": 4}
_WORD = 0xFFFFFFFF


def cost_philox(students: int, count: int, kind: str) -> Cost:
    """Of ``count`` numbers of each student; ``kind`` is the operator's name."""
    numbers = students * count
    return Cost(flops=_FLOPS[kind] * numbers, bytes=_BYTES[kind] * numbers + 8 * students)


def _registered(kind: str) -> Any:
    dtype = torch.int64 if kind == "philox" else torch.float32

    def fake(students: Tensor, key0: int, key1: int, stream: int, step: int, count: int) -> Tensor:
        return students.new_empty((len(students), count), dtype=dtype)

    def flops(students: Any, key0: int, key1: int, stream: int, step: int, count: int) -> int:
        return cost_philox(students[0], count, kind).flops

    # symbolic integers, because a step that changes must not compile anything again; torch's are signed, so the seed
    # comes in two words
    return register(
        f"{kind}(Tensor students, SymInt key0, SymInt key1, SymInt stream, SymInt step, SymInt count) -> Tensor",
        reference=getattr(reference, kind),
        kernels="philox",
        fake=fake,
        flops=flops,
    )


_philox, _uniform, _normal = _registered("philox"), _registered("uniform"), _registered("normal")


def philox(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Random words of several students.

    The counter is ``(block, student, step, stream)``, the key is the seed.

    Args:
        seed: in ``[0, 2^64)``.
        stream: what the words are for, in ``[0, 2^32)``.
        step: in ``[0, 2^32)``.
        students: global student indices in ``[0, 2^32)``, int64 ``[S]``; the words are made on its device.
        count: words per student, in ``[0, 2^34)``.

    Returns:
        int64 ``[S, count]``, values in ``[0, 2^32)``.

    Raises:
        ValueError: for an argument outside its range.
    """
    words: Tensor = _philox(*_checked(seed, stream, step, students, count))
    return words


def uniform(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Uniform numbers in ``[0, 1)``, float32 ``[S, count]``; arguments as `philox`."""
    numbers: Tensor = _uniform(*_checked(seed, stream, step, students, count))
    return numbers


def normal(seed: int, stream: int, step: int, students: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 ``[S, count]``, the same within their last bit; arguments as `philox`."""
    numbers: Tensor = _normal(*_checked(seed, stream, step, students, count))
    return numbers


def _checked(seed: int, stream: int, step: int, students: Tensor, count: int) -> tuple[Tensor, int, int, int, int, int]:
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32), ("count", count, 34)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"expected {name} in [0, 2^{bits}), got {value}: choose a non-negative value in range")
    if students.ndim != 1 or students.dtype != torch.int64:
        raise ValueError(
            f"expected int64 student indices [S], got {students.dtype} {tuple(students.shape)}: pass a vector"
        )
    return students, seed & _WORD, seed >> 32, stream, step, count
