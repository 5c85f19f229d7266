"""Matching distance of two flat gradients and its cotangent, for all layers, students and groups at once.

``match(a, b, table, distance) -> (D, ∂D/∂a)`` on ``a, b [..., P]``. Least traffic: read 2, write 1 × ``S·G·P``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.autograd import forward_ad

from fastdistill_kernels.reference import match as reference

DISTANCES = ("ours", "mse", "l1", "cos")


@dataclass(frozen=True)
class RowTable:
    """Where the rows of every matched tensor lie in a flat parameter vector.

    Attributes:
        segments: ``(offset, rows, columns)`` of each tensor that takes part.
        size: ``P``, the length of the flat vector with its padding.
    """

    segments: tuple[tuple[int, int, int], ...]
    size: int

    def __post_init__(self) -> None:
        for offset, rows, columns in self.segments:
            if offset < 0 or offset + rows * columns > self.size:
                raise ValueError(
                    f"a row table's segments must lie within {self.size} parameters, but one spans {offset} to "
                    f"{offset + rows * columns}: build the table from the layout of the same student"
                )

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
        if distance not in DISTANCES:
            raise ValueError(f"expected a distance among {', '.join(DISTANCES)}, got {distance!r}: choose one of these")
        chosen = list(shapes) if tensors is None else list(tensors)
        unknown = [name for name in chosen if name not in shapes]
        if unknown:
            raise ValueError(f"expected tensors among {', '.join(shapes)}, got {unknown[0]!r}: correct the selection")
        segments = []
        for name in chosen:
            shape = shapes[name]
            if len(shape) < 2 and distance == "ours":
                continue
            rows = shape[0]
            columns = 1
            for extent in shape[1:]:
                columns *= extent
            segments.append((offsets[name], rows, columns))
        if not segments:
            raise ValueError(
                f"expected at least one tensor with rows to match, got {chosen}: distance 'ours' skips "
                "one-dimensional tensors, so select a weight matrix or another distance"
            )
        return cls(tuple(segments), size)


def match(a: Tensor, b: Tensor, table: RowTable, distance: str) -> tuple[Tensor, Tensor]:
    """Distance of synthetic and real gradients, and its derivative in the synthetic ones.

    Args:
        a: synthetic gradients ``[..., P]`` (usually ``[S, G, P]``).
        b: real gradients, same shape, dtype and device.
        table: the student's row table, built for the same distance.
        distance: one of ``DISTANCES`` (Zhao et al. 2021; ``ours`` is its eq. 10).

    Returns:
        Distance ``[...]`` and cotangent ``[..., P]``; rows of ``a`` with norm zero get the cotangent 0.

    Raises:
        ValueError: for mismatched shapes or dtypes, or an unknown distance.
        TypeError: for a dual tensor, whose tangent would be lost.
    """
    if distance not in DISTANCES:
        raise ValueError(f"expected a distance among {', '.join(DISTANCES)}, got {distance!r}: choose one of these")
    if a.shape != b.shape or a.dtype != b.dtype or a.shape[-1:] != (table.size,):
        raise ValueError(
            f"expected two gradients [..., {table.size}] of one dtype, got {tuple(a.shape)} {a.dtype} and "
            f"{tuple(b.shape)} {b.dtype}: use gradients and table of the same student"
        )
    for tensor in (a, b):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise TypeError("match got a dual tensor, whose tangent it would drop: use the returned cotangent instead")
    return reference.match(a, b, table.segments, distance)
