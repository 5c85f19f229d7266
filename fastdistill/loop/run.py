"""From a configuration to a finished run folder; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdistill.config import RunConfig
from fastdistill.data.sources import RealData, load_source
from fastdistill.data.split import stratified_split
from fastdistill.evaluation.arms import Judge
from fastdistill.files import write_whole
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.environment import describe_environment, peak_memory_mb
from fastdistill.loop.outer import outer_steps
from fastdistill.loop.plan import make_plan, resolve_device
from fastdistill.loop.record import BEST_FILE, LAST_FILE, Recorder, Result
from fastdistill.loop.setup import as_distilled, initial_state, make_method
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import load

# settings that change where a run is written and what it says, but no bit of its result
_PRESENTATION = ("output", "log_every", "picture_every", "checkpoint_every")


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
    if judge and (finished := _finished(folder)) is not None:
        progress.say(f"{config.name} is finished already; fastdistill evaluate judges it again")
        return finished
    data = data or load_source(
        config.data.source, root=config.data.root, download=config.data.download, zca=config.data.zca
    )
    loaded = load_checkpoint(folder / "checkpoints")
    plan = loaded.plan if loaded else make_plan(config, data.train.shape, data.train.num_classes)
    device = resolve_device(plan.device)
    torch.set_num_threads(plan.threads)
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
    kept, held_out = stratified_split(data.train.labels, config.data.validation_fraction, config.seed)
    train, validation = data.train.subset(kept).to(device), data.train.subset(held_out).to(device)
    state, best, elapsed = initial_state(config, plan, train), None, 0.0
    if loaded:
        state, best, elapsed = loaded.state.to(device), loaded.best and loaded.best.to(device), loaded.elapsed_s
        progress.say(f"continuing {config.name} at step {state.step}")
    judging = Judge(config, train, validation, data.test.to(device), plan.torch_dtype)
    recorder = Recorder(
        config,
        folder,
        plan,
        judging,
        as_artefact=lambda images: as_distilled(config, images, train, data.name, digest),
        config_hash=digest,
        elapsed_s=elapsed,
        state=state,
        best=best,
    )
    steps = config.method.steps
    end = steps if stop_after is None else min(steps, stop_after)
    with progress.stage("distilling", steps, state.step) as advance:
        for following, values in outer_steps(make_method(config, plan, train), state, config.method, end):
            state = following
            recorder.after_step(state, values, last=state.step == end, advance=advance)
    if state.step < steps:
        return None
    result = recorder.finish(state)
    if judge:
        table = {**result.table, **judging.table(state.images, recorder.candidate(state), progress)}
        result = recorder.write_results(replace(result, table={**table, "peak_mb": peak_memory_mb(device)}))
    return result


def _finished(folder: Path) -> Result | None:
    """The result of a folder whose run has been judged."""
    path = folder / "results.json"
    if not path.exists():
        return None
    table = json.loads(path.read_text())
    if not table["arms"]:
        return None
    best = folder / BEST_FILE
    return Result(
        distilled=load(folder / LAST_FILE), best=load(best) if best.exists() else None, table=table, folder=folder
    )


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
