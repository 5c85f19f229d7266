"""A step by its phases: time, work, memory, and what bounds each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastdistill.derivatives.flops import Counted
from fastdistill.derivatives.memory import PhaseLedger
from fastdistill.loop.peaks import Peaks
from fastdistill.loop.phase_times import IDLE, REST, recorded
from fastdistill.loop.stepping import Moment, Stepper, moments
from fastdistill.phases import PHASES


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What a phase takes in a step, of all students; means over a run's kinds of steps, but the largest peak.

    Attributes:
        name: one of `PHASES`, or what is left: `REST`, `IDLE`.
        seconds: of a step that is recorded.
        share: of that step.
        flops: floating-point operations, see `flops`.
        traffic: bytes that operators read and write, each by itself.
        launches: operators that compute or copy.
        dispatches: operators, views among them.
        peak_bytes: most bytes held while it runs, beyond what was held before the step.
        bound: whichever floor is largest: compute, memory, overhead; empty for a phase without operators.
        floor: that floor, in seconds.
    """

    name: str
    seconds: float
    share: float
    flops: float = 0.0
    traffic: float = 0.0
    launches: float = 0.0
    dispatches: float = 0.0
    peak_bytes: int = 0
    bound: str = ""
    floor: float = 0.0

    @property
    def of_floor(self) -> float:
        """The floor as a share of the time; above 1 where bytes came from caches, which a copy of many does not."""
        return self.floor / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A step by its phases, in about their order.

    Attributes:
        seconds: of a recorded step.
        phases: their times add up to it.
        moments: the steps that were looked at.
    """

    seconds: float
    phases: tuple[Phase, ...]
    moments: tuple[Moment, ...]

    @property
    def flops(self) -> float:
        """Those of all phases."""
        return sum(phase.flops for phase in self.phases)


def floors(flops: float, traffic: float, launches: float, peaks: Peaks) -> dict[str, float]:
    """Least seconds that operations, bytes and operators take by themselves, by what bounds them."""
    return {
        "compute": flops / peaks.flops,
        "memory": traffic / peaks.bandwidth,
        "overhead": launches * peaks.launch,
    }


def breakdown(stepper: Stepper, peaks: Peaks, *, rounds: int = 1, trace: Path | None = None) -> Breakdown:
    """Takes a few steps once to record them and once to count what they do; both slow the host down.

    Args:
        stepper: warm.
        peaks: of its device.
        rounds: steps of every kind.
        trace: file for the trace of the first.
    """
    steps = moments(stepper.config, rounds)
    recorded(lambda: None, stepper.device)  # the first recording of a process sets the profiler up
    seconds, whole = _times(stepper, steps, trace)
    counts, held = _counts(stepper, steps)
    found = []
    for name in (*PHASES, REST, IDLE):
        count = counts.get(name, {})
        if not count and name not in seconds:
            continue
        took = seconds.get(name, 0.0)
        bounds = floors(count.get("flops", 0), count.get("traffic", 0), count.get("launches", 0), peaks)
        bound = max(bounds, key=lambda name: bounds[name])
        found.append(
            Phase(
                name=name,
                seconds=took,
                share=took / whole,
                peak_bytes=held.get(name, 0),
                bound=bound if bounds[bound] else "",
                floor=bounds[bound],
                **count,
            )
        )
    return Breakdown(seconds=whole, phases=tuple(found), moments=steps)


def _times(stepper: Stepper, steps: tuple[Moment, ...], trace: Path | None) -> tuple[Mapping[str, float], float]:
    """Seconds of a mean step by phase, and of all of it."""
    seconds: defaultdict[str, float] = defaultdict(float)
    whole, left = 0.0, iter(steps)

    def record(step: Callable[[], None]) -> None:
        nonlocal whole
        moment = next(left)
        found = recorded(step, stepper.device, trace if moment is steps[0] else None)
        whole += moment.share * found.seconds
        for name, took in found.phases.items():
            seconds[name] += moment.share * took

    stepper.walk(steps, record)
    return seconds, whole


def _counts(stepper: Stepper, steps: tuple[Moment, ...]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Work of a mean step by phase, as fields of `Phase`, and the most bytes held in any."""
    counts: dict[str, dict[str, float]] = {}
    held: dict[str, int] = {}
    left = iter(steps)

    def count(step: Callable[[], None]) -> None:
        share = next(left).share
        ledger, counted = PhaseLedger(), Counted()
        with ledger, counted:
            step()
        for name, work in counted.phases.items():
            own = counts.setdefault(_known(name), dict.fromkeys(("flops", "traffic", "launches", "dispatches"), 0.0))
            for key in own:
                own[key] += share * getattr(work, key)
        for name, most in ledger.peaks.items():
            held[_known(name)] = max(held.get(_known(name), 0), most)

    stepper.walk(steps, count)
    return counts, held


def _known(name: str) -> str:
    """A phase's name; that of what is left for a label of anybody else's."""
    return name if name in PHASES else REST
