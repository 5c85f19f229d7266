"""Throughput against the number of students: as many as the memory is predicted to hold."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastdistill.config import RunConfig
from fastdistill.data.store import ImageStore
from fastdistill.loop.environment import available_memory, peak_memory_mb, release_freed_memory, resident_memory
from fastdistill.loop.images_seen import images_seen
from fastdistill.loop.memory import Forecast, forecast
from fastdistill.loop.plan import make_plan
from fastdistill.loop.retry import is_out_of_memory
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stepping import Stepper
from fastdistill.methods.trajectory import Experts

_GAIN = 0.02  # rates that differ by a smaller share are the same


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a number of students reaches.

    Attributes:
        students: ``S``, of each run.
        chunk: most of them in memory at once.
        seconds: of a step.
        students_per_s: students of all runs that give a gradient in a second.
        images_per_s: real and synthetic images that they are shown in a second, see `images_seen`.
        predicted_bytes: most that these students and their steps were predicted to hold beyond `Sweep.base_bytes`.
        measured_bytes: most that was held beyond those while they began, warmed up and were timed.
        peak_bytes: most that was held then in all: by the process on the CPU, by its tensors on CUDA.
    """

    students: int
    chunk: int
    seconds: float
    students_per_s: float
    images_per_s: float
    predicted_bytes: int
    measured_bytes: int
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Numbers of students, ascending.

    Attributes:
        rows: one for each.
        ended: which of memory, gain and limit ended it, as the end of "the sweep ended …".
        base_bytes: held before the first of them began, after steps of one student: by the process on the CPU, by its
            tensors on CUDA.
    """

    rows: tuple[Throughput, ...]
    ended: str
    base_bytes: int = 0

    @property
    def best(self) -> Throughput | None:
        """The fewest students that reach the most per second, as far as clocks can tell; None without rows."""
        most = max((row.students_per_s for row in self.rows), default=0.0)
        return next((row for row in self.rows if row.students_per_s * (1 + _GAIN) >= most), None)


def sweep(
    config: RunConfig,
    train: ImageStore,
    sizes: Sizes,
    *,
    most: int,
    warmup: int,
    experts: Experts | None = None,
    said: Callable[[Throughput], None] = lambda row: None,
) -> Sweep:
    """Measures 1, 2, 4, … students until memory, gain or limit ends it.

    On a CPU it makes the process forget the most memory that it ever held, where the system can.

    Args:
        config: the run.
        train: the training images, on the device.
        sizes: of all real images.
        most: students; 0 for as many as memory holds, whatever they gain.
        warmup: rounds of steps before those that are timed.
        experts: of trajectory matching, as for `make_method`.
        said: told of every row.
    """
    device, rows = train.device, list[Throughput]()
    alone = replace(config, students=1)
    # what the libraries load for the first steps, and keep, is no step's
    Stepper.of(alone, make_plan(alone, sizes.shape, len(sizes.classes), sizes=sizes), train, experts).warm_up(1)
    gc.collect()
    release_freed_memory()
    room, base = available_memory(device), _held(device)

    def ending(why: str) -> Sweep:
        return Sweep(rows=tuple(rows), ended=why, base_bytes=base)

    students = 1
    while not most or students <= most:
        tried = replace(config, students=students)
        plan = make_plan(tried, sizes.shape, len(sizes.classes), sizes=sizes)
        needed = steps_bytes(forecast(_unselected(tried), plan, sizes, judge=False))
        if needed > room or (plan.chunk < students * config.runs and not config.chunk):
            return ending(f"at the memory limit: {students} students are predicted not to fit at once")
        _forget_peak(device)
        try:
            stepper = Stepper.of(tried, plan, train, experts)
            stepper.warm_up(warmup)
            seconds = stepper.seconds()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return ending(f"at the memory limit: {students} students ran out of it")
        peak = round(peak_memory_mb(device) * 1e6)
        del stepper
        gc.collect()
        release_freed_memory()  # what these students leave is not the next ones'
        count = students * config.runs
        rows.append(
            Throughput(
                students=students,
                chunk=plan.chunk,
                seconds=seconds,
                students_per_s=count / seconds,
                images_per_s=count * images_seen(config, sizes) / seconds,
                predicted_bytes=needed,
                measured_bytes=max(peak - base, 0),
                peak_bytes=peak,
            )
        )
        said(rows[-1])
        if most and saturated([row.students_per_s for row in rows]):
            return ending(
                f"without a gain: doubling the students twice gave less than {100 * _GAIN:.0f} % more of them a second "
                "(--max_students 0 goes on to the memory limit)"
            )
        students *= 2
    return ending(f"at --max_students {most}")


def saturated(rates: Sequence[float]) -> bool:
    """Whether the last two of some ascending numbers of students reached no more than one before them."""
    return len(rates) > 2 and max(rates[-2:]) <= (1 + _GAIN) * max(rates[:-2])


def steps_bytes(predicted: Forecast) -> int:
    """What students and their steps hold of a forecast, beyond the process and the data that are there before them."""
    return predicted.state + max(predicted.step, predicted.training)


def _held(device: torch.device) -> int:
    """Bytes that are held now: by tensors on CUDA, by the process on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_memory()


def _forget_peak(device: torch.device) -> None:
    """Makes the peak that is measured next that of what comes now; on a CPU only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _unselected(config: RunConfig) -> RunConfig:
    """The run without selections, which need not be predicted."""
    return replace(config, evaluation=replace(config.evaluation, validation_every=0))
