"""Matching distance of two flat gradients and its cotangent, for all layers, students and groups at once.

``match(a, b, table, distance) -> (D, ∂D/∂a)`` on ``a, b [..., P]``. Every distance but ``cos`` reads both gradients
once and writes the cotangent: 3·S·G·P elements, one launch and a small sum of its programs' distances; only a row
longer than ``LONGEST_ROW`` is read twice. ``cos`` needs the norms of the whole gradient first: two launches (three
where there are very many programs), 5·S·G·P elements. Arithmetic per element of the table: 10 for the cosines, 4 for
the others, far below what a byte of memory costs.

Of nothing (no row, or no parameter) the distance is 0, and that of ``cos`` 1: what the formula gives two gradients of
which one is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_one_of, refuse_derivatives
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import match as reference

DISTANCES = ("ours", "mse", "l1", "l1_mean", "cos")
LONGEST_ROW = 8192  # that a program keeps on chip: two of them are 64 registers of each of 256 threads
_RUN, _SHORTEST = 2048, 16  # most elements of a run, and the least that a program is made for
_COSINE_FLOPS, _DIFFERENCE_FLOPS = 10, 4  # per element: three products summed, the cotangent; a difference, its size


@dataclass(frozen=True)
class RowTable:
    """Where the rows of every matched tensor lie in a flat parameter vector.

    Attributes:
        segments: ``(offset, rows, columns)`` of each tensor that takes part, in the order of their offsets.
        size: ``P``, the length of the flat vector with its padding.
    """

    segments: tuple[tuple[int, int, int], ...]
    size: int

    def __post_init__(self) -> None:
        end = 0
        for offset, rows, columns in self.segments:
            if offset < end or offset + rows * columns > self.size:
                raise ValueError(
                    f"a row table's segments must lie one after another within {self.size} parameters, but one spans "
                    f"{offset} to {offset + rows * columns} after {end}: build it from the layout of the same student"
                )
            end = offset + rows * columns

    @classmethod
    def build(
        cls,
        shapes: Mapping[str, tuple[int, ...]],
        offsets: Mapping[str, int],
        size: int,
        distance: str,
        tensors: Iterable[str] | None = None,
    ) -> RowTable:
        """Makes the table of a student once; a tensor of shape ``(O, ...)`` is ``O`` rows.

        One-dimensional tensors (biases, norm affines) count as zero in ``ours`` and take part in the others.

        Args:
            shapes: parameter name to shape.
            offsets: parameter name to offset in the flat vector.
            size: ``P`` with padding.
            distance: one of ``DISTANCES``.
            tensors: names that take part; all by default.

        Raises:
            ValueError: for an unknown distance or tensor, or when nothing is left to match.
        """
        expect_one_of("a row table", "a distance", distance, DISTANCES)
        chosen = list(shapes) if tensors is None else list(tensors)
        unknown = [name for name in chosen if name not in shapes]
        if unknown:
            raise ValueError(f"expected tensors among {', '.join(shapes)}, got {unknown[0]!r}: correct the selection")
        kept = [name for name in chosen if len(shapes[name]) > 1 or distance != "ours"]
        if not kept:
            raise ValueError(
                f"expected at least one tensor with rows to match, got {chosen}: distance 'ours' skips "
                "one-dimensional tensors, so select a weight matrix or another distance"
            )
        segments = sorted((offsets[name], shapes[name][0], prod(shapes[name][1:])) for name in kept)
        return cls(tuple(segments), size)

    def programs(self, distance: str) -> tuple[tuple[int, int, int, int], ...]:
        """What each program of a launch does: ``(offset, length, columns, alive)``, every element in exactly one.

        A row of ``ours`` is one program however long it is. Whatever else there is comes in runs; one that is not
        alive has its cotangent set to zero.
        """
        found: list[tuple[int, int, int, int]] = []
        end, step = 0, min(longest_program([columns for _, _, columns in self.segments], distance), _RUN)
        for offset, rows, columns in (*self.segments, (self.size, 0, 0)):
            found += _runs(end, offset - end, 1, 0, step)
            if distance == "ours":
                found += [(offset + row * columns, columns, columns, 1) for row in range(rows)]
            else:
                found += _runs(offset, rows * columns, columns, 1, step)
            end = offset + rows * columns
        return tuple(found)

    def programs_on(self, distance: str, device: torch.device) -> Tensor:
        """`programs` as int64 ``[programs, 4]`` on a device, sent there once.

        It is never freed, since a captured graph holds its address, and made outside of what is compiled, whose memory
        is used again. A graph that is captured by hand must come after a first call, as for any kernel.
        """
        # index: Dynamo takes numbers that have changed for symbols, of which it could make nothing while it traces
        segments = tuple(tuple(map(index, segment)) for segment in self.segments)
        return _constant_programs(segments, index(self.size), distance, device)


def _made_programs(segments: Any, size: int, distance: str, device: torch.device) -> Tensor:
    programs = RowTable(segments, size).programs(distance)
    with torch._C._DisableFuncTorch(), torch.inference_mode(False):  # whatever is around, a plain tensor
        return torch.tensor(programs, dtype=torch.int64, device=device).view(-1, 4)


_kept_programs = cache(_made_programs)


def _programs(segments: Any, size: int, distance: str, device: torch.device) -> Tensor:
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return _made_programs(segments, size, distance, device)  # without values: of use to nobody else
    return _kept_programs(segments, size, distance, device)


_constant_programs: Callable[..., Tensor] = torch.compiler.assume_constant_result(_programs)


def longest_program(columns: Sequence[int], distance: str) -> int:
    """Most elements of one program: the longest row's of ``ours``, a run's of the others."""
    return max([*columns, _SHORTEST]) if distance == "ours" else _RUN


def _runs(offset: int, length: int, columns: int, alive: int, step: int) -> list[tuple[int, int, int, int]]:
    return [(offset + at, min(step, length - at), columns, alive) for at in range(0, length, step)]


def cost_match(pairs: int, size: int, itemsize: int, distance: str) -> Cost:
    """Of ``pairs = S·G`` gradients of ``size = P`` parameters."""
    passes = 5 if distance == "cos" else 3
    flops = _COSINE_FLOPS if distance in ("ours", "cos") else _DIFFERENCE_FLOPS
    return Cost(flops=flops * pairs * size, bytes=passes * pairs * size * itemsize)


def _fake(
    a: Tensor, b: Tensor, programs: Any, offsets: Any, rows: Any, columns: Any, distance: str
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    return a.new_empty(a.shape[:-1], dtype=dtype), a.new_empty(a.shape)


def _flops(
    a: Sequence[int], b: Sequence[int], programs: Any, offsets: Any, rows: Any, columns: Any, distance: str
) -> int:
    return cost_match(prod(a[:-1]), a[-1], 1, distance).flops


_operator = register(
    "match(Tensor a, Tensor b, Tensor? programs, int[] offsets, int[] rows, int[] columns, str distance) "
    "-> (Tensor, Tensor)",
    reference=reference.match,
    kernels="match",
    fake=_fake,
    flops=_flops,
)


def match(a: Tensor, b: Tensor, table: RowTable, distance: str) -> tuple[Tensor, Tensor]:
    """Distance of synthetic and real gradients, and its derivative in the synthetic ones.

    Args:
        a: synthetic gradients ``[..., P]`` (usually ``[S, G, P]``), contiguous or not.
        b: real gradients, same shape, dtype and device.
        table: the student's row table, built for the same distance.
        distance: one of ``DISTANCES`` (Zhao et al. 2021; ``ours`` is its eq. 10; ``l1`` and ``l1_mean``, the sum over
            rows of their mean absolute difference, as in IDC, Kim et al. 2022).

    Returns:
        Distance ``[...]``, float32 for bfloat16 gradients, and cotangent ``[..., P]``; rows of ``a`` with norm zero
        get the cotangent 0.

    Raises:
        ValueError: for mismatched shapes, dtypes or devices, or an unknown distance.
        TypeError: for a tensor whose derivative would be lost.
    """
    refuse_derivatives("match", a, b)
    expect_one_of("match", "a distance", distance, DISTANCES)
    expect_alike("match", a=a, b=b)
    if a.shape != b.shape or a.shape[-1:] != (table.size,):
        raise ValueError(
            f"expected two gradients [..., {table.size}], got {tuple(a.shape)} and {tuple(b.shape)}: use gradients and "
            "table of the same student"
        )
    offsets, rows, columns = ([segment[axis] for segment in table.segments] for axis in range(3))
    # only kernels read the programs: elsewhere none are made, nor counted
    programs = table.programs_on(distance, a.device) if a.is_cuda and a.dtype != torch.float64 else None
    value, cotangent = _operator(a, b, programs, offsets, rows, columns, distance)
    return value, cotangent
