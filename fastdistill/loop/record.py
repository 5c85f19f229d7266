"""What a run writes while it goes and when it ends: metrics, pictures, checkpoints, artefacts and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.evaluation.arms import Judge
from fastdistill.files import write_whole
from fastdistill.loop.checkpoint import save_checkpoint
from fastdistill.loop.environment import peak_memory_mb
from fastdistill.loop.metrics import MetricsLog
from fastdistill.loop.outer import Best, State
from fastdistill.loop.plan import Plan
from fastdistill.progress import Advance
from fastdistill.synthetic.distilled import Distilled

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
        as_artefact: makes the artefact of images ``[R, C, M, D, H, W]``.
        config_hash: of the configuration.
        elapsed_s: wall-clock time of the run before this start.
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
        as_artefact: Callable[[Tensor], Distilled],
        config_hash: str,
        elapsed_s: float,
        state: State,
        best: Best | None,
    ) -> None:
        self._config, self._folder, self._plan, self._judge = config, folder, plan, judge
        self._as_artefact, self._hash, self._best = as_artefact, config_hash, best
        self._device = state.images.device
        self._metrics = MetricsLog(folder / "metrics.jsonl", state.step)
        self._begin = time.perf_counter() - elapsed_s
        self._tick, self._ticked = time.perf_counter(), state.step
        self._remark = ""

    def after_step(self, state: State, values: Mapping[str, Tensor], *, last: bool, advance: Advance) -> None:
        """Logs, selects, pictures and saves as often as the configuration says, and at the last step of this start."""
        config, step = self._config, state.step
        if step % config.log_every == 0 or last:
            self._remark = f"loss {self._log(step, values):.4f}"
        advance(step, self._remark)
        every = config.evaluation.validation_every
        if every and (step % every == 0 or step == config.method.steps):
            self._select(state)
        if config.picture_every and step % config.picture_every == 0:
            self._picture(f"images-{step:06d}.png", self._as_artefact(state.images))
        if step % config.checkpoint_every == 0 or last:
            save_checkpoint(
                self._folder / "checkpoints",
                state,
                self._best,
                self._plan,
                config_hash=self._hash,
                elapsed_s=self._elapsed(),
            )

    def candidate(self, state: State) -> Tensor | None:
        """The selected images; the very same tensor as the last ones where those were selected."""
        if self._best is None:
            return None
        return state.images if set(self._best.step) == {state.step} else self._best.images

    def finish(self, state: State) -> Result:
        """Writes the artefacts, the results without arms, and the report."""
        last = self._as_artefact(state.images)
        best = None if self._best is None else self._as_artefact(self._best.images)
        last.save(self._folder / LAST_FILE)
        if best is not None:
            best.save(self._folder / BEST_FILE)
        self._picture("images.png", last)
        peak = peak_memory_mb(self._device)
        table: dict[str, Any] = {
            "name": self._config.name,
            "steps": state.step,
            "distill_s": self._elapsed(),
            "step_s": self._metrics.median("perf/step_s"),
            "distill_peak_mb": peak,
            "peak_mb": peak,
            "plan": self._plan.as_dict(),
            "best_step": None if self._best is None else self._best.step,
            "arms": [],
        }
        return self.write_results(Result(distilled=last, best=best, table=table, folder=self._folder))

    def write_results(self, result: Result) -> Result:
        """Writes ``results.json`` and what is drawn from it."""
        # matplotlib and jinja2 take longer to import than a small run takes for a step, so they wait until here
        from fastdistill.report.figures import read_metrics, save_curves
        from fastdistill.report.page import write_report

        table = result.table
        for arm in table["arms"]:
            name = f"eval/{arm['arm']}"
            values = {f"{name}/acc_mean": arm["mean"], f"{name}/acc_std": arm["std"]}
            self._metrics.write(table["steps"], self._elapsed(), values)
        write_whole(self._folder / "results.json", json.dumps(table, indent=1).encode())
        # the judgement comes after the last step and would stretch the wall clock of the curves
        course = [line for line in read_metrics(self._folder / "metrics.jsonl") if not _is_judgement(line)]
        save_curves(self._folder / "curves.png", course, self._config.name)
        write_report(self._folder)
        return result

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def _log(self, step: int, values: Mapping[str, Tensor]) -> float:
        line = {name: value.item() for name, value in values.items()}  # the one host synchronisation of the loop
        now = time.perf_counter()
        seconds = (now - self._tick) / (step - self._ticked)
        self._tick, self._ticked = now, step
        line |= {
            "perf/step_s": seconds,
            "perf/students_per_s": self._config.students * self._config.runs / seconds,
            "mem/peak_mb": peak_memory_mb(self._device),
        }
        self._metrics.write(step, self._elapsed(), line)
        return line["outer/loss"]

    def _select(self, state: State) -> None:
        score = self._judge.validate(state.images)
        values = {"validation/acc_mean": score.mean, "validation/acc_std": score.std}
        self._metrics.write(state.step, self._elapsed(), values)
        per_run = torch.tensor(score.per_student).view(self._config.runs, -1).mean(1)
        self._best = Best.choose(self._best, state, tuple(per_run.tolist()))
        self._tick, self._ticked = time.perf_counter(), state.step  # a selection is no part of a step's time

    def _picture(self, name: str, distilled: Distilled) -> None:
        from fastdistill.report.figures import save_image_grid

        low, high = distilled.pixel_range
        shown = (distilled.pixels() - low) / max(high - low, 1e-12)
        save_image_grid(self._folder / name, shown, distilled.labels, class_names=distilled.class_names)


def _is_judgement(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)
