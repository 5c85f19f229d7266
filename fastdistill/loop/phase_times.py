"""Where the time of a step goes: its phases' labels in a recording of `torch.profiler`.

On the CPU a phase takes the time that its label was the innermost one. On CUDA the host runs ahead of the device, so a
phase takes the device time of the kernels that were launched while its label was the innermost one, on whatever thread:
backward passes have one of their own. What is left there is time that the device waited.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from fastdistill.phases import PHASES

REST, IDLE = "rest", "device waits"
STEP = "outer step"
_ENTRIES = 100_000  # of the memory snapshot's history


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recorded step.

    Attributes:
        seconds: of the step, slower than one that nobody records.
        phases: seconds by phase, `REST` for what no label is around, and on CUDA `IDLE`; they add up to ``seconds``.
    """

    seconds: float
    phases: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A label's time, in microseconds."""

    name: str
    start: float
    end: float


def recorded(step: Callable[[], None], device: torch.device, trace: Path | None = None) -> Recording:
    """Records a step.

    Args:
        step: waits for the device before it returns.
        device: where it runs.
        trace: file for the Chrome trace of it, which Perfetto opens; compressed where it ends in ``.gz``.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiler, record_function(STEP):
        step()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    events = profiler.events()
    assert events is not None
    spans = [
        Span(name=event.name, start=event.time_range.start, end=event.time_range.end)
        for event in events
        if _on_host(event) and event.name in {*PHASES, STEP}
    ]
    whole = next(span for span in spans if span.name == STEP)
    seconds = (whole.end - whole.start) / 1e6
    owners = innermost(spans)
    found = device_times(owners, events) if on_cuda else host_times(owners)
    waited = {IDLE: max(seconds - sum(found.values()), 0.0)} if on_cuda else {}
    return Recording(seconds=seconds, phases={**found, **waited})


def innermost(spans: Iterable[Span]) -> list[tuple[float, str]]:
    """From when on which label is the innermost: pairs of a time and a name, empty where there is none.

    Args:
        spans: of one thread, so that they are apart or one inside the other.
    """
    # of two that begin together the longer is outside, and one that ends where another begins is over
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    open_: list[Span] = []
    found: list[tuple[float, str]] = []

    def close(until: float) -> None:
        while open_ and open_[-1].end <= until:
            ended = open_.pop()
            found.append((ended.end, open_[-1].name if open_ else ""))

    for span in ordered:
        close(span.start)
        open_.append(span)
        found.append((span.start, span.name))
    close(float("inf"))
    return found


def host_times(owners: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Seconds that each label was the innermost; that of the whole step is called `REST`."""
    found: defaultdict[str, float] = defaultdict(float)
    for (begin, name), (end, _) in pairwise(owners):
        if name:
            found[REST if name == STEP else name] += (end - begin) / 1e6
    return dict(found)


def device_times(owners: Sequence[tuple[float, str]], events: Iterable[FunctionEvent]) -> dict[str, float]:
    """Seconds of the kernels that were launched while each label was the innermost; `REST` as `host_times`."""
    begins = [begin for begin, _ in owners]
    found: defaultdict[str, float] = defaultdict(float)
    for event in events:
        if not _on_host(event):
            continue
        # labels have ranges on the device too, over kernels that count already
        lasted = sum(kernel.duration for kernel in event.kernels if kernel.name not in {*PHASES, STEP})
        place = bisect_right(begins, event.time_range.start) - 1
        if lasted and place >= 0 and (name := owners[place][1]):
            found[REST if name == STEP else name] += lasted / 1e6
    return dict(found)


def _on_host(event: FunctionEvent) -> bool:
    return str(event.device_type.name) == "CPU"


def memory_snapshot(step: Callable[[], None], path: Path) -> None:
    """Writes what CUDA's allocator did during a step, for https://pytorch.org/memory_viz; needs a CUDA device.

    Args:
        step: the step.
        path: the snapshot.
    """
    torch.cuda.memory._record_memory_history(max_entries=_ENTRIES, stacks="python")
    try:
        step()
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
