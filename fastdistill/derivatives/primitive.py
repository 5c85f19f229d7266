"""The primitive's implementation for a batching: what computes, and what only counts."""

from __future__ import annotations

from torch import nn

from fastdistill.derivatives.dual.primitive import Dual
from fastdistill.derivatives.dual.sketch import DualSketch
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.sketch import Sketch


def make_primitive(module: nn.Module, batching: Batching) -> Functional:
    """The derivative of an architecture as its batching says: by dual layers, or by ``torch.func``.

    Raises:
        Unsupported: for a dual batching of a student with a part that there is no layer for.
    """
    return Dual(module, batching) if batching.path is Path.DUAL else Functional(module, batching)


def make_sketch(module: nn.Module, batching: Batching, ledger: Ledger) -> Sketch:
    """The same, counting into a ledger instead of computing; see `Sketch`."""
    kind = DualSketch if batching.path is Path.DUAL else Sketch
    return kind(module, batching, ledger)
