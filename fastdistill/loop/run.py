"""From a configuration to a finished run folder; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import hashlib
import json
import reprlib
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdistill.config import RunConfig
from fastdistill.data.sources import RealData, load_configured
from fastdistill.data.split import stratified_split
from fastdistill.derivatives.flops import Counted
from fastdistill.evaluation.arms import Judge
from fastdistill.failures import Stopped
from fastdistill.files import append, held, sweep, write_whole
from fastdistill.loop.artefact import as_distilled, labels_of, learning_rate_of, replay_of, shown_of
from fastdistill.loop.checkpoint import load_checkpoint, sweep_checkpoints
from fastdistill.loop.compilation import Compilation
from fastdistill.loop.descents import make_descent
from fastdistill.loop.environment import available_memory, describe_environment, prepare_process
from fastdistill.loop.fingerprint import data_hash, seen_hash
from fastdistill.loop.memory import forecast_here, refuse_what_does_not_fit
from fastdistill.loop.opened_experts import open_experts
from fastdistill.loop.outer import State, Step, outer_step
from fastdistill.loop.plan import Plan, derivatives, make_plan, resolve_device
from fastdistill.loop.record import BEST_FILE, LAST_FILE, Recorder, Result
from fastdistill.loop.retry import retrying
from fastdistill.loop.savings import savings
from fastdistill.loop.setup import generator_of, initial_state, make_method
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stop import Stop
from fastdistill.method_configs import (
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
)
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.generator_file import FILE as GENERATOR_FILE
from fastdistill.synthetic.generator_file import save_generator

# settings that change where a run is read from and written to and what it says, but no bit of its result
_PRESENTATION = (
    "output",
    "log_every",
    "picture_every",
    "checkpoint_every",
    "max_masked_share",
    "data.root",
    "data.download",
)
_COMPILING = "perf/compiling_step_s"  # the first compiled step of a start, compilation with it
_SHOWN = 5  # settings of another run that are named


def config_hash(config: Mapping[str, Any]) -> str:
    """A short hash of everything in a configuration (as plain values) that decides the result."""
    return hashlib.sha256(json.dumps(decisive(config), sort_keys=True).encode()).hexdigest()[:16]


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the result, by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        entries = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: inner for key, inner in entries.items() if key not in _PRESENTATION}
    return flat


def run(
    config: RunConfig,
    data: RealData | None = None,
    *,
    progress: Silent | None = None,
    stop: Stop | None = None,
    stop_after: int | None = None,
    judge: bool = True,
) -> Result | None:
    """Distils, or goes on distilling, and judges the result.

    Args:
        config: the run.
        data: the real images; loaded by the configuration when not given.
        progress: what the run says while it runs.
        stop: asked from outside to stop; the run then finishes its step and saves.
        stop_after: stop after this many outer steps in all, leaving a checkpoint.
        judge: evaluate at the end; the selections during the run are the configuration's.

    Returns:
        The result, or None when ``stop_after`` ended it before the end.

    Raises:
        ValueError: for a folder that holds another run or that another process writes to, or data that do not fit the
            configuration.
        RunFailed: when the run cannot go on; its last checkpoint is kept.
        Stopped: when asked to stop; repeating the call goes on.
    """
    folder = Path(config.output) / config.name
    with held(folder):
        return _run(config, folder, data, progress or Silent(), stop or Stop(), stop_after, judge)


def _run(
    config: RunConfig,
    folder: Path,
    data: RealData | None,
    progress: Silent,
    stop: Stop,
    stop_after: int | None,
    judge: bool,
) -> Result | None:
    refuse_another(folder, config.as_dict())
    sweep(folder)
    sweep_checkpoints(folder / "checkpoints")
    digest = config_hash(config.as_dict())
    if judge and (finished := _finished(folder, digest, progress)) is not None:
        progress.say(f"{config.name} is finished already; fastdistill evaluate judges it again")
        return finished
    data = data or load_configured(config.data)
    learned_from = data_hash(data)
    if isinstance(config.method, TrajectoryConfig):  # before there is a folder, and not at the first step
        seen = seen_hash(data, config.data.validation_fraction, config.seed)
        learned_from += f"+{open_experts(config, data.train, data_hash=seen).identity}"  # it learns from these too
    loaded = load_checkpoint(folder / "checkpoints", digest, learned_from)
    sizes = Sizes.of(data)
    plan = loaded.plan if loaded else make_plan(config, sizes.shape, len(sizes.classes), sizes=sizes)
    device = _device_of(plan, resumed=loaded is not None)
    predicted, available = forecast_here(config, plan, sizes, judge=judge), available_memory(device)
    refuse_what_does_not_fit(predicted, available, partial(savings, config, plan, sizes))
    progress.say(predicted.sentence(available))
    progress.say(derivatives(config, plan, sizes.shape, len(sizes.classes)))
    prepare_process(plan.threads)
    torch.backends.cudnn.allow_tf32 = plan.tf32
    kept, held_out = stratified_split(data.train.labels, config.data.validation_fraction, config.seed)
    train, validation = data.train.subset(kept).to(device), data.train.subset(held_out).to(device)
    recipe = config.method
    if isinstance(recipe, UnrolledConfig | ImplicitConfig) and len(train) < recipe.real_batch:
        progress.say(f"real batches have all {len(train)} training images, not {recipe.real_batch}: there are no more")
    if isinstance(recipe, MatchingConfig | DistributionConfig) and min(train.class_sizes) < recipe.real_batch:
        progress.say(
            f"real batches have {min(train.class_sizes)} images of every class, not {recipe.real_batch}: the "
            f"smallest class, {train.class_names[train.class_sizes.index(min(train.class_sizes))]}, has no more"
        )
    state, best, elapsed = initial_state(config, plan, train), None, 0.0
    if loaded:
        state, best, elapsed = loaded.state.to(device), loaded.best and loaded.best.to(device), loaded.elapsed_s
        progress.say(f"continuing {config.name} at step {state.step}")
        if plan.torch_version != torch.__version__:
            progress.say(f"it began under torch {plan.torch_version}: under {torch.__version__} bits may differ")
    make = lru_cache(maxsize=1)(partial(make_method, config, train=train))
    descent = make_descent(config.method, config.generator)
    judging = Judge(
        config,
        train,
        validation,
        data.test.to(device),
        plan.torch_dtype,
        replay=partial(replay_of, config, train),
        learning_rate=partial(learning_rate_of, config),
        labels=lambda learned: labels_of(config, learned, train),
        show=partial(shown_of, config, train),
    )
    # only now, so that settings which do not work out leave no folder that refuses their correction
    write_whole(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False).encode())
    write_environment(folder)
    recorder = Recorder(
        config,
        folder,
        plan,
        judging,
        predicted=predicted,
        method=make(plan.at(state.step)),
        say=progress.say,
        as_artefact=lambda learned: as_distilled(config, shown_of(config, train, learned), train, data.name, digest),
        config_hash=digest,
        data_hash=learned_from,
        elapsed_s=elapsed,
        state=state,
        best=best,
    )
    steps, first = config.method.steps, state.step
    over = state.step == steps or (loaded is not None and recorder.out_of_time())
    end = steps if stop_after is None else min(steps, stop_after)
    title = "distilling, seconds" if config.seconds else "distilling"
    compilation = Compilation(config, sizes, predicted.distilling, progress.say)
    with (
        progress.stage(title, recorder.whole, recorder.done(state.step)) as advance,
        stop.deferred(),
        closing(compilation),
    ):
        while state.step < end and not stop.asked and not over:

            def attempt(plan: Plan, state: State = state) -> tuple[State, Step]:
                now = plan.at(state.step)
                step = partial(outer_step, make(now), descent, state, masked_share=config.max_masked_share)
                # nothing sees into compiled code, and counting would look at every operator that it has been made from
                return _counted(step) if state.step == first and now == plan else step()

            begin = time.perf_counter()
            plan, (following, found) = retrying(plan, attempt, progress.say)
            took = time.perf_counter() - begin
            if plan.switch is not None and state.step in (plan.switch.step, first) and plan.at(state.step) != plan:
                found = replace(found, values={**found.values, _COMPILING: torch.tensor(took, dtype=torch.float64)})
            plan = compilation.after_step(plan, state.step + 1, took)
            before, state = state, following
            over = recorder.out_of_time() or state.step == steps
            last = over or state.step == end or bool(stop.asked)
            recorder.after_step(before, state, found, plan, last=last, end=over, advance=advance)
        if stop.asked:
            recorder.save(state)
    if stop.asked:
        progress.say(f"saved step {state.step} of {steps}")
        raise Stopped(stop.asked)
    if not over:
        return None
    if (generator := generator_of(config, train.shape, train.num_classes)) is not None:
        save_generator(folder / GENERATOR_FILE, generator, state.learned)
    result = recorder.finish(state, arms := _arms(folder, digest, learned_from))
    if judge:
        measured: list[dict[str, Any]] = []
        for arm in judging.arms(state.learned, recorder.candidate(state), progress, arms):
            measured.append(arm)
            recorder.keep({**result.table, "arms": measured})
        result = recorder.judged(result, measured, judging.conditions)
    recorder.close()
    return result


def results_of(folder: Path, digest: str) -> dict[str, Any]:
    """What ``results.json`` holds of this run; nothing where there is none, a damaged one or another run's."""
    try:
        table = json.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(table, dict) and isinstance(table.get("arms"), list) and table.get("config_hash") == digest
    return table if whole else {}


def _finished(folder: Path, digest: str, progress: Silent) -> Result | None:
    """The result of a folder whose run has been judged and drawn."""
    table = results_of(folder, digest)
    if not table.get("complete"):
        return None
    best = folder / BEST_FILE
    try:
        return Result(
            distilled=load_file(folder / LAST_FILE),
            best=load_file(best) if best.exists() else None,
            table=table,
            folder=folder,
        )
    except ValueError as error:
        progress.say(f"{folder.name} is finished but damaged, and is written again from its checkpoint: {error}")
        return None


def _arms(folder: Path, digest: str, learned_from: str) -> list[dict[str, Any]]:
    """The arms that an interrupted judgement of the same run on the same images has measured."""
    table = results_of(folder, digest)
    return list(table["arms"]) if table.get("data_hash") == learned_from else []


def _counted(step: Callable[[], tuple[State, Step]]) -> tuple[State, Step]:
    """A step, and among its values the operations that it took; counting slows the host down, so one step has to do."""
    with Counted() as counted:
        state, found = step()
    flops = torch.tensor(counted.work.flops, dtype=torch.float64)
    return state, replace(found, values={**found.values, "perf/step_flops": flops})


def write_environment(folder: Path) -> None:
    """Writes ``environment.json`` at the first start; a later start on something else is added to a list beside it."""
    described, path = describe_environment(), folder / "environment.json"
    try:
        first = json.loads(path.read_bytes())
    except (OSError, ValueError):
        write_whole(path, json.dumps(described, indent=1).encode())
        return
    if first != described:
        append(folder / "environments.jsonl", f"{json.dumps(described)}\n".encode())


def _device_of(plan: Plan, *, resumed: bool) -> torch.device:
    """The plan's device; a run goes on where it began, since another device gives other bits."""
    if resumed and plan.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "expected the CUDA device that this run began on, found none: go on where there is one, or start again "
            "under another --name"
        )
    return resolve_device(plan.device)


def refuse_another(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses a run folder that holds another run than that of a configuration (as plain values).

    Raises:
        ValueError: naming what differs.
    """
    path = folder / "config.yaml"
    if not path.exists():
        # a run writes its configuration first, so before it there is at most that file's temporary
        strange = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".config.yaml.")]
        if strange and not (folder / "checkpoints").is_dir():
            raise ValueError(
                f"expected {folder} to hold this run or nothing, got {strange[0]} and no config.yaml: choose another "
                "--name or --output"
            )
        return
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        old = None
    if not isinstance(old, dict) or not old:
        raise ValueError(
            f"expected the configuration of a run in {path}, got something else: restore the file, choose another "
            "--name, or remove the folder"
        )
    before, now, missing = decisive(old), decisive(config), "nothing"
    changed = [
        f"{name} ({reprlib.repr(before.get(name, missing))} there, {reprlib.repr(now.get(name, missing))} here)"
        for name in {**before, **now}
        if before.get(name, missing) != now.get(name, missing)
    ]
    if changed:
        shown = ", ".join(changed[:_SHOWN]) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        raise ValueError(
            f"expected {folder} to hold this run or nothing, got a run that differs in {shown}: choose another "
            "--name, or remove the folder"
        )
