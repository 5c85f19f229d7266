"""What a run will need of memory and compute, found before it starts by counting its programs on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fastdistill.config import RunConfig
from fastdistill.derivatives.memory import Footprint
from fastdistill.loop.counting import saving_bytes, state_bytes, step, training
from fastdistill.loop.environment import peak_memory_mb, release_freed_memory, resident_memory
from fastdistill.loop.flops import step_flops
from fastdistill.loop.judgement import selection, table
from fastdistill.loop.sizes import Sizes
from fastdistill.report.formats import operations

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan

# Resident bytes of Linux processes with torch 2.13's CPU build; bench/memory.py holds them to the measured peaks.
_LIBRARIES = 395_000_000  # after the imports of a run: Python, torch and what its meta device needs, torchvision
_LATER = 60_000_000  # what is touched first on the way: oneDNN with its compiled convolutions, matplotlib
_COMPILER = 200_000_000  # torch's compiler, once it has compiled something
# glibc keeps freed blocks below 32 MiB, and later ones do not fill the gaps exactly: a process ends up with more than
# its small blocks ever took together, by this share.
_GAPS = 0.75
_PARTS = {  # what each part is, and what lowers it
    "process": ("the program itself", "free some memory"),
    "data": ("the real images", "use fewer or smaller images"),
    "state": ("the synthetic images and students", "lower --ipc, --runs, --students or --student.width"),
    "step": ("a distilling step", "lower --method.real_batch, --students, --student.width or --chunk"),
    "saving": ("a checkpoint", "lower --ipc, --runs or --students"),
    "training": ("training students between steps", "lower --students, --runs, --ipc or --student.width"),
    "selection": ("a selection", "lower --evaluation.validation_students, --ipc or --student.width"),
    "evaluation": ("the evaluation", "lower --evaluation.students, --ipc or --student.width"),
}


_STORED = "--students, --student.width or --chunk, raise --method.keep, or set --method.storage to bfloat16"
_STEPS = {  # what lowers the distilling step of methods that store the students' weights along their training
    "unrolled": f"lower --method.window, --method.epochs, --method.real_batch, {_STORED}",
    "trajectory": f"lower --method.inner_steps, --method.batch, {_STORED}",
}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted bytes of a run, by part, and floating-point operations of a step.

    Attributes:
        process: interpreter and libraries; 0 on CUDA, where only tensors are counted.
        data: the real images, with the copies that training and validation part are.
        state: what outlives an outer step.
        step: a distilling step with one chunk of students, beyond the parts above, as the next four.
        saving: the copies of the state that a checkpoint takes.
        training: students trained between two steps; 0 where none are.
        selection: a selection on the validation images; 0 without.
        evaluation: the arms of the table at the end.
        present: what of all this the process holds already.
        reached: most that the process ever held, such as while it read the images.
        method: kind of the method, which decides what lowers a step.
        flops: operations of an outer step, see `flops`.
    """

    process: int
    data: int
    state: int
    step: int
    saving: int
    training: int
    selection: int
    evaluation: int
    present: int = 0
    reached: int = 0
    method: str = "matching"
    flops: int = 0

    @property
    def distilling(self) -> int:
        """Peak of the process up to the last step."""
        return max(self._with(self.step, self.saving, self.training, self.selection), self.reached)

    @property
    def peak(self) -> int:
        """Peak of the process."""
        return max(self.distilling, self._with(self.evaluation))

    @property
    def needed(self) -> int:
        """Most that is still to be held."""
        return self._with(self.step, self.saving, self.training, self.selection, self.evaluation)

    def _with(self, *phases: int) -> int:
        return self.process + self.data + self.state + max(phases)

    def sentence(self, available: int) -> str:
        """What a run says before it starts; ``available`` as in `refuse_what_does_not_fit`."""
        room = gigabytes(available + self.present)
        return f"predicted: {gigabytes(self.peak)} of {room}, {operations(self.flops)} a step"

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        return max(_PARTS, key=lambda name: int(getattr(self, name)))


def forecast(
    config: RunConfig, plan: Plan, sizes: Sizes, *, resident: int = 0, reached: int = 0, judge: bool = True
) -> Forecast:
    """Predicts the memory of a run.

    Args:
        config: the run.
        plan: how it is computed.
        sizes: of the real images.
        resident: bytes this process holds now, the real images among them (`environment.resident_memory`); 0 for a
            process that has yet to start, of which the same is predicted wherever it is asked.
        reached: most bytes this process ever held.
        judge: whether the run ends with the table of arms.
    """
    on_cpu = plan.device == "cpu"
    images = sum(sizes.classes) + sizes.test
    loaded = sizes.stored(images) if on_cpu else 0
    process = (max(resident - loaded, 0) if resident else _LIBRARIES) + _LATER + _COMPILER * (plan.switch is not None)
    bound = _Bound(_GAPS if on_cpu else 0.0)
    return Forecast(
        process=process if on_cpu else 0,
        # on the CPU the test images are those that were loaded
        data=loaded + sizes.stored(sum(sizes.classes) + (0 if on_cpu else sizes.test)),
        state=state_bytes(config, plan, sizes),
        step=bound(step(config, plan, sizes)),
        saving=saving_bytes(config, plan, sizes),
        training=bound(training(config, plan, sizes)),
        selection=bound(selection(config, plan, sizes)),
        evaluation=bound(table(config, plan, sizes)) if judge else 0,
        present=resident if on_cpu else 0,
        reached=reached if on_cpu else 0,
        method=config.method.kind,
        flops=step_flops(config, plan, sizes),
    )


def forecast_here(config: RunConfig, plan: Plan, sizes: Sizes, *, judge: bool = True) -> Forecast:
    """The forecast of a run that goes on in this process, which has read the real images; arguments as `forecast`."""
    release_freed_memory()
    reached = round(peak_memory_mb(torch.device("cpu")) * 1e6)
    return forecast(config, plan, sizes, resident=resident_memory(), reached=reached, judge=judge)


def step_forecast(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """Peak bytes of distilling steps alone, in a process that has yet to start: what a chunk is chosen by."""
    on_cpu = plan.device == "cpu"
    images = sizes.stored(2 * sum(sizes.classes) + sizes.test)
    held = images + state_bytes(config, plan, sizes) + (_LIBRARIES + _LATER if on_cpu else 0)
    return held + step_bytes(config, plan, sizes)


def step_bytes(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """Peak bytes of a distilling step with one chunk of students, beyond what is held before it."""
    return _Bound(_GAPS if plan.device == "cpu" else 0.0)(step(config, plan, sizes))


class _Bound:
    """Turns footprints, in the order of their programs, into the bytes a process holds meanwhile.

    Args:
        gaps: share of small blocks' memory that lies between them; 0 where the allocator gives back everything.
    """

    def __init__(self, gaps: float) -> None:
        self._gaps, self._small = gaps, 0

    def __call__(self, found: Footprint) -> int:
        """The bytes of the next program, with what earlier ones left to the process; 0 for an empty one."""
        if not self._gaps:
            return found.peak
        most = 0
        for small, large in found.course:
            self._small = max(self._small, small)
            most = max(most, large + round((1 + self._gaps) * self._small))
        return most


def refuse_what_does_not_fit(predicted: Forecast, available: int, savings: Callable[[], Sequence[str]] = tuple) -> None:
    """Refuses a run that memory cannot hold.

    Args:
        predicted: the run's forecast.
        available: bytes that the process can have beyond those it holds (`environment.available_memory`).
        savings: what makes a distilling step smaller (`savings.savings`); asked where that is the largest part.

    Raises:
        ValueError: with the predicted bytes and what to lower.
    """
    room = available + predicted.present
    if predicted.needed <= room:
        return
    part, advice = _PARTS[predicted.largest]
    if predicted.largest == "step":
        advice = _STEPS.get(predicted.method, advice)
    smaller = savings() if predicted.largest == "step" else ()
    if smaller:
        advice += f"; or try {', '.join(smaller)}"
    raise ValueError(
        f"expected a run that fits the {gigabytes(room)} of memory that are free, got one predicted to need "
        f"{gigabytes(predicted.needed)} (largest part: {part}, {gigabytes(getattr(predicted, predicted.largest))}): "
        f"{advice}"
    )


def gigabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
