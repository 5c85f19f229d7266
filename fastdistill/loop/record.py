"""What a run writes while it goes and when it ends: metrics, pictures, checkpoints, artefacts and the report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.evaluation.arms import Judge
from fastdistill.failures import RunFailed
from fastdistill.files import write_whole
from fastdistill.loop.checkpoint import save_checkpoint
from fastdistill.loop.environment import peak_memory_mb, release_freed_memory
from fastdistill.loop.guard import Guard
from fastdistill.loop.memory import Forecast
from fastdistill.loop.metrics import MetricsLog
from fastdistill.loop.outer import Best, Method, State, Step, Warns
from fastdistill.loop.plan import Plan
from fastdistill.progress import Advance
from fastdistill.report.board import open_board
from fastdistill.synthetic.distilled import Distilled

_DISTILL_PEAK = "mem/distill_peak_mb"
LAST_FILE, BEST_FILE = "distilled.safetensors", "distilled-best.safetensors"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        distilled: the last images.
        best: the images with the best validation accuracy, where any were selected.
        table: what ``results.json`` holds.
        folder: the run folder.
    """

    distilled: Distilled
    best: Distilled | None
    table: Mapping[str, Any]
    folder: Path


class Recorder:
    """Watches one run.

    Args:
        config: the run.
        folder: its folder.
        plan: how it is computed.
        judge: measures validation accuracy.
        predicted: the memory and operations it was predicted to need.
        method: for naming where a student stopped being finite, and for what it says of its own figures.
        say: takes messages.
        as_artefact: makes the artefact of what is learned.
        config_hash: of the configuration.
        data_hash: of the real images, and of the experts that are followed.
        elapsed_s: time that was distilled before this start.
        state: the state it starts from.
        best: the images selected before this start.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        plan: Plan,
        judge: Judge,
        *,
        predicted: Forecast,
        method: Method,
        say: Callable[[str], None],
        as_artefact: Callable[[Mapping[str, Tensor]], Distilled],
        config_hash: str,
        data_hash: str,
        elapsed_s: float,
        state: State,
        best: Best | None,
    ) -> None:
        self._config, self._folder, self._plan, self._judge = config, folder, plan, judge
        self._predicted, self._saved = predicted, state.step
        self._as_artefact, self._best = as_artefact, best
        self._hashes = {"config_hash": config_hash, "data_hash": data_hash}
        self._guard, self._say = Guard(method, self._note), say
        self._device = state.device
        self._metrics = MetricsLog(folder / "metrics.jsonl", state.step)
        self._board = open_board(folder, state.step)
        self._begin, self._read = time.perf_counter() - elapsed_s, elapsed_s
        self._tick, self._ticked = time.perf_counter(), state.step
        self._remark = ""
        self._selected = False  # in this start
        self._values: dict[str, Tensor] = {}  # the newest of every name since the last line
        self._warns: Warns | None = method if isinstance(method, Warns) else None
        self._warned: set[str] = set()

    def out_of_time(self) -> bool:
        """Whether the run has distilled as long as it may, by the time that the next checkpoint keeps."""
        self._read = self._elapsed()
        return bool(self._config.seconds) and self._read >= self._config.seconds

    @property
    def whole(self) -> int:
        """What there is to do: seconds where the run has only so many, else steps."""
        return math.ceil(self._config.seconds) or self._config.method.steps

    def done(self, step: int) -> int:
        """How much of that is done after a step."""
        return min(int(self._elapsed()), self.whole) if self._config.seconds else step

    def after_step(
        self, before: State, state: State, found: Step, plan: Plan, *, last: bool, end: bool, advance: Advance
    ) -> None:
        """Logs, selects, pictures and saves as often as the configuration says, and at the last step of this start.

        Args:
            before: the state before the step.
            state: the state after it.
            found: what it found.
            plan: what it was computed by; one that ran out of memory has given way to a smaller one.
            last: whether this start ends here.
            end: whether the run does.
            advance: moves the progress.

        Raises:
            RunFailed: when too many students were not finite; nothing is saved then.
        """
        config, step, self._plan = self._config, state.step, plan
        with self._noting(before.step):
            self._guard.watch(before, found)
        self._values |= found.values
        if step % config.log_every == 0 or last:
            self._remark = f"loss {self._log(step, self._values):.4f}"
            if config.seconds:
                self._remark = f"{self._remark} after {step} steps"
            self._values = {}
        advance(self.done(step), self._remark)
        every = config.evaluation.validation_every
        if every and (step % every == 0 or end):
            self._select(state)
        if config.picture_every and step % config.picture_every == 0:
            self._picture(step, f"images-{step:06d}.png", self._as_artefact(state.learned))
        if step % config.checkpoint_every == 0 or last:
            self.save(state)

    def save(self, state: State) -> None:
        """Saves a checkpoint of what the guard finds sound, unless this step is saved already."""
        if self._saved == state.step:
            return
        with self._noting(state.step):
            self._guard.look()
        self._metrics.sync()
        save_checkpoint(
            self._folder / "checkpoints",
            state,
            self._best,
            self._plan,
            **self._hashes,
            elapsed_s=self._read,
        )
        self._saved = state.step

    def candidate(self, state: State) -> Mapping[str, Tensor] | None:
        """What was selected; the very state's where that was."""
        if self._best is None:
            return None
        return state.learned if set(self._best.step) == {state.step} else self._best.learned

    def finish(self, state: State, arms: Sequence[Mapping[str, Any]] = ()) -> Result:
        """Writes the artefacts, the results so far and the report.

        Args:
            state: after the last step.
            arms: those that an earlier start has judged.
        """
        last = self._as_artefact(state.learned)
        best = None if self._best is None else self._as_artefact(self._best.learned)
        last.save(self._folder / LAST_FILE)
        if best is not None:
            best.save(self._folder / BEST_FILE)
        self._picture(state.step, "images.png", last)
        # a start that only judges has distilled nothing itself
        peak = max(self._metrics.highest("mem/peak_mb"), peak_memory_mb(self._device))
        flops, step_s = self._predicted.flops, self._metrics.median("perf/step_s")
        table: dict[str, Any] = {
            "name": self._config.name,
            **self._hashes,
            "steps": state.step,
            "distill_s": self._elapsed(),
            "step_s": step_s,
            "step_flops": flops,  # predicted, the mean of all steps
            "counted_flops": self._metrics.median("perf/step_flops"),  # of the first step of a start
            "compiling_step_s": self._metrics.highest("perf/compiling_step_s"),  # a compiled step that compiles; else 0
            "flops_per_s": flops / step_s if step_s else None,
            "distill_peak_mb": self._metrics.highest(_DISTILL_PEAK) or peak,
            "peak_mb": peak,
            "predicted_distill_peak_mb": self._predicted.distilling / 1e6,
            "predicted_peak_mb": self._predicted.peak / 1e6,
            "plan": self._plan.as_dict(),
            "best_step": None if self._best is None else self._best.step,
            "judged": False,  # every arm is there
            "complete": False,  # and drawn
            "arms": list(arms),
        }
        if last.note:
            table["note"] = last.note
        result = Result(distilled=last, best=best, table=table, folder=self._folder)
        self.keep(table)
        self._draw(table)
        return result

    def keep(self, table: Mapping[str, Any]) -> None:
        """Writes ``results.json``; a judgement that is killed goes on behind the last arm in it."""
        write_whole(self._folder / "results.json", json.dumps(table, indent=1).encode())

    def judged(self, result: Result, arms: Sequence[Mapping[str, Any]], conditions: Mapping[str, str]) -> Result:
        """Writes the judged results, and what is drawn from them."""
        peak = max(result.table["peak_mb"], peak_memory_mb(self._device))
        table = {**result.table, **conditions, "arms": list(arms), "peak_mb": peak, "judged": True}
        for arm in arms:
            name = f"eval/{arm['arm']}"
            self._write(table["steps"], {f"{name}/acc_mean": arm["mean"], f"{name}/acc_std": arm["std"]})
        self.keep(table)
        self._draw(table)
        table["complete"] = True
        self.keep(table)
        return replace(result, table=table)

    def close(self) -> None:
        """Ends what is open."""
        if self._board is not None:
            self._board.close()

    def _draw(self, table: Mapping[str, Any]) -> None:
        release_freed_memory()  # what distilling and judging left would stand beside what drawing takes
        # matplotlib and jinja2 take longer to import than a small run takes for a step, so they wait until here
        from fastdistill.report.curves import save_curves
        from fastdistill.report.metrics import read_metrics
        from fastdistill.report.page import write_report

        log = self._folder / "metrics.jsonl"
        metrics = read_metrics(log) if log.exists() else []
        save_curves(self._folder / "curves.png", metrics, self._config.name, arms=table["arms"])
        write_report(self._folder)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._metrics.write(step, self._elapsed(), values)
        if self._board is not None:
            self._board.write(step, values)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def _note(self, step: int, text: str) -> None:
        self._say(f"step {step}: {text}")
        self._metrics.note(step, self._elapsed(), text)

    @contextmanager
    def _noting(self, step: int) -> Iterator[None]:
        """Notes a failure in the log, for the report."""
        try:
            yield
        except RunFailed as failure:
            self._metrics.note(step, self._elapsed(), f"failed: {failure}")
            raise

    def _log(self, step: int, values: Mapping[str, Tensor]) -> float:
        with self._noting(step):
            self._guard.look()
        line = {name: value.item() for name, value in values.items()}  # the one host synchronisation of the loop
        now = time.perf_counter()
        seconds = (now - self._tick) / (step - self._ticked)
        self._tick, self._ticked = now, step
        line |= {
            "perf/step_s": seconds,
            "perf/students_per_s": self._config.students * self._config.runs / seconds,
            "mem/peak_mb": peak_memory_mb(self._device),
        }
        self._write(step, line)
        if self._warns is not None and (sentence := self._warns.warning(line)):
            about = " ".join(sentence.split()[:4])  # of the same thing once is enough, whatever its figures
            if about not in self._warned:
                self._note(step - 1, sentence)
            self._warned.add(about)
        return line["outer/loss"]

    def _select(self, state: State) -> None:
        # a selection may take more than a step, so the peak of distilling is the one before the first
        peak = {} if self._selected else {_DISTILL_PEAK: peak_memory_mb(self._device)}
        self._selected, begin = True, time.perf_counter()
        score = self._judge.validate(state.learned)
        self._begin += time.perf_counter() - begin  # a selection is no distilling
        values = {"validation/acc_mean": score.mean, "validation/acc_std": score.std, **peak}
        self._write(state.step, values)
        per_run = torch.tensor(score.per_student).view(self._config.runs, -1).mean(1)
        self._best = Best.choose(self._best, state, tuple(per_run.tolist()))
        self._tick, self._ticked = time.perf_counter(), state.step  # a selection is no part of a step's time

    def _picture(self, step: int, name: str, distilled: Distilled) -> None:
        from fastdistill.report.figures import image_grid, save_picture

        low, high = distilled.pixel_range
        shown = (distilled.pixels() - low) / max(high - low, 1e-12)
        picture = image_grid(shown, distilled.labels, class_names=distilled.class_names)
        save_picture(self._folder / name, picture)
        if self._board is not None:
            self._board.picture(step, "images", picture)
