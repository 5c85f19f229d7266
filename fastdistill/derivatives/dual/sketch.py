"""A `Dual` that counts instead of computing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from fastdistill.derivatives.dual.primitive import Dual, Piece
from fastdistill.derivatives.dual.program import Program
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching
from fastdistill.derivatives.sketch import Sketch


class DualSketch(Dual, Sketch):
    """Takes meta tensors and enters into a ledger what the calls of a `Dual` would hold.

    What that leaves to `Functional`, this leaves to `Sketch`. Pieces of one size leave nothing behind but what is there
    before the first, so one of each size is run.

    Args:
        module: as for `Dual`.
        batching: as for `Dual`.
        ledger: to be entered by whoever calls.
    """

    def __init__(self, module: nn.Module, batching: Batching, ledger: Ledger) -> None:
        Sketch.__init__(self, module, batching, ledger)
        self._program = program = Program(module, precision=batching.precision)
        self._gradient, self._product, self._logits = program.gradient, program.product, program.logits

    def _pieces(self, students: int, groups: int, count: int) -> Iterator[Piece]:
        pieces = list(super()._pieces(students, groups, count))
        sizes = Counter(piece.size for piece in pieces)
        seen: set[tuple[int, int, int, bool]] = set()
        for piece in pieces:
            if piece.size not in seen:
                seen.add(piece.size)
                before = self._ledger.flops
                yield piece
                self._ledger.flops += (self._ledger.flops - before) * (sizes[piece.size] - 1)
