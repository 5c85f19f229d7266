"""From a configuration to a finished run folder; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sources import RealData, load_source
from fastdistill.data.split import stratified_split
from fastdistill.evaluation.arms import Judge
from fastdistill.files import write_whole
from fastdistill.loop.checkpoint import load_checkpoint, save_checkpoint
from fastdistill.loop.environment import describe_environment, peak_memory_mb
from fastdistill.loop.metrics import MetricsLog
from fastdistill.loop.outer import Best, State, outer_steps
from fastdistill.loop.plan import make_plan, resolve_device
from fastdistill.loop.setup import as_distilled, initial_state, make_method
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import Distilled

# settings that change where a run is written and what it says, but no bit of its result
_PRESENTATION = ("output", "log_every", "picture_every", "checkpoint_every")


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


def config_hash(config: Mapping[str, Any]) -> str:
    """A short hash of everything in a configuration (as plain values) that decides the result."""
    values = {name: value for name, value in config.items() if name not in _PRESENTATION}
    values["data"] = {name: value for name, value in values["data"].items() if name not in ("root", "download")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def run(
    config: RunConfig,
    data: RealData | None = None,
    *,
    progress: Silent | None = None,
    stop_after: int | None = None,
    judge: bool = True,
) -> Result | None:
    """Distils, or goes on distilling, and judges the result.

    Args:
        config: the run.
        data: the real images; loaded by the configuration when not given.
        progress: what the run says while it runs.
        stop_after: stop after this many outer steps in all, leaving a checkpoint.
        judge: evaluate at the end; the selections during the run are the configuration's.

    Returns:
        The result, or None when stopped before the end.

    Raises:
        ValueError: for a folder that holds another run, or data that do not fit the configuration.
    """
    progress = progress or Silent()
    folder = Path(config.output) / config.name
    _claim(folder, config)
    digest = config_hash(config.as_dict())
    data = data or load_source(
        config.data.source, root=config.data.root, download=config.data.download, zca=config.data.zca
    )
    device = resolve_device(config.device)
    loaded = load_checkpoint(folder / "checkpoints", device)
    plan = loaded.plan if loaded else make_plan(config, data.train.shape, data.train.num_classes)
    torch.set_num_threads(plan.threads)
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
    kept, held_out = stratified_split(data.train.labels, config.data.validation_fraction, config.seed)
    train, validation = data.train.subset(kept).to(device), data.train.subset(held_out).to(device)
    if loaded:
        state, best, elapsed = loaded.state, loaded.best, loaded.elapsed_s
        progress.say(f"continuing {config.name} at step {state.step}")
    else:
        state, best, elapsed = initial_state(config, plan, train), None, 0.0
    metrics = MetricsLog(folder / "metrics.jsonl", state.step)
    judging = Judge(config, train, validation, data.test.to(device), plan.torch_dtype)
    method = make_method(config, plan, train)

    def distilled(images: Tensor) -> Distilled:
        return as_distilled(config, images, train, data.name, digest)

    begin = time.perf_counter()
    steps = config.method.steps
    end = min(steps, stop_after or steps)
    with progress.stage("distilling", steps, state.step) as advance:
        tick, done = time.perf_counter(), state.step
        for following, values in outer_steps(method, state, config.method, end):
            state = following
            if state.step % config.log_every == 0 or state.step == end:
                # the one host synchronisation of the loop
                line = {name: value.item() for name, value in values.items()}
                now = time.perf_counter()
                seconds = (now - tick) / (state.step - done)
                tick, done = now, state.step
                line |= {
                    "perf/step_s": seconds,
                    "perf/students_per_s": config.students * config.runs / seconds,
                    "mem/peak_mb": peak_memory_mb(device),
                }
                metrics.write(state.step, elapsed + now - begin, line)
                advance(state.step, f"loss {line['outer/loss']:.4f}")
            every = config.evaluation.validation_every
            if every and (state.step % every == 0 or state.step == steps):
                score = judging.validate(state.images)
                metrics.write(
                    state.step,
                    elapsed + time.perf_counter() - begin,
                    {"validation/acc_mean": score.mean, "validation/acc_std": score.std},
                )
                if best is None or score.mean > best.accuracy:
                    best = Best(images=state.images, accuracy=score.mean, step=state.step)
                tick, done = time.perf_counter(), state.step
            if config.picture_every and state.step % config.picture_every == 0:
                _picture(folder / f"images-{state.step:06d}.png", distilled(state.images))
            if state.step % config.checkpoint_every == 0 or state.step == end:
                save_checkpoint(
                    folder / "checkpoints",
                    state,
                    best,
                    plan,
                    config_hash=digest,
                    elapsed_s=elapsed + time.perf_counter() - begin,
                )
    if state.step < steps:
        return None
    seconds = elapsed + time.perf_counter() - begin
    last = distilled(state.images)
    selected = None if best is None else distilled(best.images)
    last.save(folder / "distilled.safetensors")
    if selected is not None:
        selected.save(folder / "distilled-best.safetensors")
    _picture(folder / "images.png", last)
    table: dict[str, Any] = {
        "name": config.name,
        "steps": steps,
        "distill_s": seconds,
        "step_s": metrics.median("perf/step_s"),
        "distill_peak_mb": peak_memory_mb(device),
        "plan": plan.as_dict(),
        "best_step": None if best is None else best.step,
        "arms": [],
    }
    if judge:
        table |= judging.table(state.images, _candidate(best, state), progress)
    table["peak_mb"] = peak_memory_mb(device)
    for arm in table["arms"]:
        name = f"eval/{arm['arm']}"
        metrics.write(steps, seconds, {f"{name}/acc_mean": arm["mean"], f"{name}/acc_std": arm["std"]})
    write_whole(folder / "results.json", json.dumps(table, indent=1).encode())
    _report(folder, config.name)
    return Result(distilled=last, best=selected, table=table, folder=folder)


def _candidate(best: Best | None, state: State) -> Tensor | None:
    """The selected images; the very same tensor as the last ones where those were selected."""
    if best is None:
        return None
    return state.images if best.step == state.step else best.images


def _claim(folder: Path, config: RunConfig) -> None:
    """Takes a new run folder, or checks that an old one belongs to the same run."""
    path = folder / "config.yaml"
    now = config.as_dict()
    if path.exists():
        old = yaml.safe_load(path.read_text())
        if not isinstance(old, dict) or "data" not in old or config_hash(old) != config_hash(now):
            before = old if isinstance(old, dict) else {}
            changed = [name for name, value in now.items() if before.get(name) != value and name not in _PRESENTATION]
            raise ValueError(
                f"expected {folder} to hold this run or nothing, got a run that differs in "
                f"{', '.join(changed) or 'its settings'}: choose another --name, or remove the folder"
            )
        return
    write_whole(path, yaml.safe_dump(now, sort_keys=False).encode())


def _picture(path: Path, distilled: Distilled) -> None:
    from fastdistill.report.figures import save_image_grid

    save_image_grid(path, distilled.pixels(), distilled.labels, class_names=distilled.class_names)


def _report(folder: Path, title: str) -> None:
    # matplotlib and jinja2 take longer to import than a small run takes to finish a step, so they wait until here
    from fastdistill.report.figures import read_metrics, save_curves
    from fastdistill.report.page import write_report

    save_curves(folder / "curves.png", read_metrics(folder / "metrics.jsonl"), title)
    write_report(folder)
