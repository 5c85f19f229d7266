"""What a step asks of the machine, counted exactly: the same on every machine, for one version of torch."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch
from torch._dynamo.utils import counters as compiler

from bench.cases import Case, Step
from fastdistill.derivatives.flops import Counted
from fastdistill.derivatives.memory import Ledger


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Of one step.

    Attributes:
        flops: floating-point operations of convolutions and matrix products.
        dispatches: operators called; of a compiled step, those of the program before it is compiled.
        launches: those of them that are no views; of a compiled step as above.
        traffic: bytes that these read and write, each by itself; of a compiled step as above.
        peak_bytes: most bytes that its tensors hold at once, beyond what it is given; of a compiled step as above.
        graphs: that the compiler made; 0 where nothing is compiled.
        breaks: places where it gave up.
        recompiles: graphs that it made after the first step.
    """

    flops: int
    dispatches: int
    launches: int
    traffic: int
    peak_bytes: int
    graphs: int = 0
    breaks: int = 0
    recompiles: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain values by name."""
        return asdict(self)


def count(case: Case, step: Step, counted: Counted | None = None) -> Counters:
    """Counts a step that has not run yet, by running it once, as it is before it is compiled.

    Draws from torch's global generator are the same every time, and Python's collector does not choose when a graph
    with a cycle goes.

    Args:
        case: which.
        step: of the case.
        counted: counts it; for whoever wants more of it than the counters.
    """
    with ExitStack() as around:
        around.enter_context(torch.random.fork_rng())
        torch.manual_seed(0)
        gc.collect()
        if gc.isenabled():
            gc.disable()
            around.callback(gc.enable)
        if case.compiled:
            around.enter_context(torch.compiler.set_stance("force_eager"))
        ledger, counted = around.enter_context(Ledger()), around.enter_context(counted or Counted())
        step()
        work, footprint = counted.work, ledger.footprint
    return Counters(
        flops=work.flops,
        dispatches=work.dispatches,
        launches=work.launches,
        traffic=work.traffic,
        peak_bytes=footprint.peak,
    )


def with_graphs(found: Counters, step: Step) -> tuple[Counters, float]:
    """The same with what the compiler did in three steps, and the seconds of the first one, compilation in it."""

    def graphs() -> int:
        return int(compiler["stats"]["unique_graphs"])

    before, broken = graphs(), sum(compiler["graph_break"].values())
    begin = time.perf_counter()
    step()
    seconds, first = time.perf_counter() - begin, graphs()
    for _ in range(2):
        step()
    breaks = sum(compiler["graph_break"].values()) - broken
    return replace(found, graphs=first - before, breaks=breaks, recompiles=graphs() - first), seconds
