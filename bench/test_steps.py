"""Every case as a pytest-benchmark: counted, timed in rounds that alternate with the textbook's, and measured.

The group is the problem. ``extra_info`` has what pytest-benchmark does not know: the case, its counters
(`bench.counters`), its speed-up over the textbook (the median over rounds of the ratio within a round, per student),
how long the first step of a compiled one took, its roofline floor, and its peak memory where asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from bench.cases import Case, Step, computing
from bench.counters import count, with_graphs
from bench.machine import MACHINE
from bench.peak import peak_beyond
from bench.worker import peak_bytes
from bench.workloads import all_cases
from fastdistill.derivatives.flops import Counted
from fastdistill.loop.peaks import synchronize

_LEAST, _MOST = 3, 50  # rounds
_ROOT = Path(__file__).parent.parent


def test_step(
    case: Case, device: torch.device, benchmark: Any, keep: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    """Measures one case."""
    option, machine = request.config.option, request.config.stash[MACHINE]
    step = case.make(device)
    with computing(case.precision, device):
        counters, first = count(case, step, counted := Counted()), None
        if case.compiled:
            counters, first = with_graphs(counters, step)
        expected = _seconds(step, device)
    textbook = None if case.name == case.yardstick else all_cases()[case.yardstick].make(device)
    naive: list[float] = []

    def beside() -> None:
        if textbook is not None:
            with computing(case.precision, device):
                naive.append(_seconds(textbook, device))
        synchronize(device)

    def timed() -> None:
        with computing(case.precision, device):
            step()
            synchronize(device)

    beside()
    rounds = min(_MOST, max(_LEAST, ceil(option.budget / max(expected + sum(naive), 1e-6))))
    naive.clear()
    benchmark.group = f"{case.group}/{case.problem}"
    benchmark.pedantic(timed, setup=beside, rounds=rounds, iterations=1)
    taken = benchmark.stats.stats.data
    found: dict[str, Any] = {
        "case": case.name,
        "engine": case.engine,
        "precision": case.precision,
        "students": case.students,
        "images": case.images,
        "counters": counters.as_dict(),
        "floor_s": _floor(case, counted, machine["peaks"]),
    }
    if first is not None:
        found["first_s"] = first
    if naive:
        ratios = [case.students * theirs / ours for theirs, ours in zip(naive, taken, strict=True)]
        found |= {"speedup": median(ratios), "speedup_least": min(ratios)}
    if option.memory:
        found["peak_memory"] = _peak(case, step, device)
    benchmark.extra_info.update(found)
    keep.append({**found, "median_s": median(taken), "min_s": min(taken), "rounds": rounds})


def _seconds(step: Step, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - begin


def _floor(case: Case, counted: Counted, peaks: Mapping[str, float]) -> float:
    """Least seconds of a step: of every operator the longer of its arithmetic and its transfer at the machine's peaks.

    Products of float32 run at the float32 peak even where TF32 is allowed for others, so the floor takes the highest
    rate that the precision allows.
    """
    flops = peaks.get(f"matmul_{case.precision}_flops_per_s", peaks["matmul_float32_flops_per_s"])
    return counted.floor_seconds(flops, peaks["copy_bytes_per_s"])


def _peak(case: Case, step: Step, device: torch.device) -> int:
    """Peak memory of a step: the allocator's here on CUDA, that of a fresh process on a CPU."""
    if device.type == "cuda":
        with computing(case.precision, device):
            return peak_beyond(step, device)
    return peak_bytes(case.name, root=_ROOT, device=device.type, threads=torch.get_num_threads())
