"""Throughput against the number of students: as many as the memory is predicted to hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fastdistill.config import RunConfig
from fastdistill.data.store import ImageStore
from fastdistill.loop.environment import available_memory, peak_memory_mb, release_freed_memory
from fastdistill.loop.images_seen import images_seen
from fastdistill.loop.memory import Forecast, forecast
from fastdistill.loop.plan import make_plan
from fastdistill.loop.retry import is_out_of_memory
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stepping import Stepper
from fastdistill.methods.trajectory import Experts

_ALIKE = 1.02  # rates that differ by less are the same


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a number of students reaches.

    Attributes:
        students: ``S``, of each run.
        chunk: most of them in memory at once.
        seconds: of a step.
        students_per_s: students of all runs that give a gradient in a second.
        images_per_s: real and synthetic images that they are shown in a second, see `images_seen`.
        predicted_bytes: peak of the steps, predicted before them; of the process on the CPU, of its tensors on CUDA.
        measured_bytes: peak that was measured after them.
    """

    students: int
    chunk: int
    seconds: float
    students_per_s: float
    images_per_s: float
    predicted_bytes: int
    measured_bytes: int


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Numbers of students, ascending.

    Attributes:
        rows: one for each.
        ended: why there are no more, as a sentence's end.
    """

    rows: tuple[Throughput, ...]
    ended: str

    @property
    def best(self) -> Throughput | None:
        """The fewest students that reach the most per second, as far as clocks can tell; None without rows."""
        most = max((row.students_per_s for row in self.rows), default=0.0)
        return next((row for row in self.rows if row.students_per_s * _ALIKE >= most), None)


def sweep(
    config: RunConfig,
    train: ImageStore,
    sizes: Sizes,
    *,
    most: int,
    warmup: int,
    resident: int,
    reached: int,
    experts: Experts | None = None,
    said: Callable[[Throughput], None] = lambda row: None,
) -> Sweep:
    """Measures 1, 2, 4, … students, in this order, since a process's peak only rises.

    Args:
        config: the run.
        train: the training images, on the device.
        sizes: of all real images.
        most: students.
        warmup: rounds of steps before those that are timed.
        resident: bytes of the process when it had read the images, as for `forecast`.
        reached: most that it ever held until then.
        experts: of trajectory matching, as for `make_method`.
        said: told of every row.
    """
    device, rows = train.device, list[Throughput]()
    own = resident if device.type == "cpu" else torch.cuda.memory_allocated(device)
    room = available_memory(device) + own
    students = 1
    while students <= most:
        tried = replace(config, students=students)
        plan = make_plan(tried, sizes.shape, len(sizes.classes), sizes=sizes)
        predicted = forecast(_unselected(tried), plan, sizes, resident=resident, reached=reached, judge=False)
        needed = steps_bytes(predicted)
        if needed > room or (plan.chunk < students * config.runs and not config.chunk):
            return Sweep(rows=tuple(rows), ended=f"{students} students are predicted not to fit the memory at once")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            stepper = Stepper.of(tried, plan, train, experts)
            stepper.warm_up(warmup)
            seconds = stepper.seconds()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return Sweep(rows=tuple(rows), ended=f"{students} students ran out of memory")
        measured = round(peak_memory_mb(device) * 1e6)
        del stepper
        gc.collect()
        release_freed_memory()  # gaps that this step leaves are not the next one's
        count = students * config.runs
        rows.append(
            Throughput(
                students=students,
                chunk=plan.chunk,
                seconds=seconds,
                students_per_s=count / seconds,
                images_per_s=count * images_seen(config, sizes) / seconds,
                predicted_bytes=needed,
                measured_bytes=measured,
            )
        )
        said(rows[-1])
        if saturated([row.students_per_s for row in rows]):
            return Sweep(rows=tuple(rows), ended="doubling the students twice made no more of them a second")
        students *= 2
    return Sweep(rows=tuple(rows), ended=f"--max_students is {most}")


def saturated(rates: Sequence[float]) -> bool:
    """Whether the last two of some ascending numbers of students reached no more than one before them."""
    return len(rates) > 2 and max(rates[-2:]) <= _ALIKE * max(rates[:-2])


def steps_bytes(predicted: Forecast) -> int:
    """Peak of a forecast's steps: what else a run does, such as a checkpoint, is left out."""
    held = predicted.process + predicted.data + predicted.state
    return max(held + max(predicted.step, predicted.training), predicted.reached)


def _unselected(config: RunConfig) -> RunConfig:
    """The run without selections, which need not be predicted."""
    return replace(config, evaluation=replace(config.evaluation, validation_every=0))
