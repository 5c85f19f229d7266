"""What the steps of a run take: time, work and memory by phase, and throughput against the number of students."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastdistill.config import RunConfig
from fastdistill.data.random_images import random_data
from fastdistill.data.sources import RealData, load_configured
from fastdistill.data.split import stratified_split
from fastdistill.data.store import ImageStore
from fastdistill.files import held, write_whole
from fastdistill.files import sweep as sweep_temporaries
from fastdistill.loop.breakdown import Breakdown, breakdown
from fastdistill.loop.environment import (
    available_memory,
    describe_environment,
    prepare_process,
    release_freed_memory,
)
from fastdistill.loop.memory import Forecast, forecast_here, refuse_what_does_not_fit
from fastdistill.loop.opened_experts import open_experts
from fastdistill.loop.peaks import measure_peaks
from fastdistill.loop.phase_times import memory_snapshot
from fastdistill.loop.plan import make_plan, resolve_device
from fastdistill.loop.random_experts import RandomExperts
from fastdistill.loop.savings import savings
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stepping import Stepper, moments
from fastdistill.loop.throughput import Sweep, Throughput, sweep
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods.trajectory import Experts
from fastdistill.profile_config import ProfileConfig
from fastdistill.progress import Silent
from fastdistill.report.formats import duration
from fastdistill.report.profile import PROFILE, TRACE, write_profile_report

_SNAPSHOT = "memory.pickle"
Environment = Mapping[str, Any]


def profile(config: ProfileConfig, data: RealData | None = None, *, progress: Silent | None = None) -> dict[str, Any]:
    """Measures the steps of a run and writes what it found; nothing is distilled.

    The folder gets ``profile.json``, ``trace.json.gz``, ``throughput.png``, ``report.html`` and, on CUDA,
    ``memory.pickle``. An earlier profile there is replaced once everything has been measured.

    Args:
        config: what is measured.
        data: the real images; loaded by the configuration, or random ones, when not given.
        progress: what is said meanwhile.

    Returns:
        What ``profile.json`` holds.

    Raises:
        ValueError: for a folder that holds something else, data or experts that are not there, or a step that memory
            cannot hold.
    """
    with held(config.folder):
        _refuse_another(config.folder)
        sweep_temporaries(config.folder)
        return _profile(config, data, progress or Silent())


def _profile(config: ProfileConfig, data: RealData | None, progress: Silent) -> dict[str, Any]:
    run, device = config.run, resolve_device(config.run.device)
    if data is None:
        data = random_data(run.data.source, zca=run.data.zca) if config.random_images else load_configured(run.data)
    sizes = Sizes.of(data)
    plan = make_plan(run, sizes.shape, len(sizes.classes), sizes=sizes)
    prepare_process(plan.threads)
    torch.backends.cudnn.allow_tf32 = plan.tf32
    predicted = forecast_here(run, plan, sizes, judge=False)
    refuse_what_does_not_fit(predicted, available_memory(device), partial(savings, run, plan, sizes))
    kept, held_out = stratified_split(data.train.labels, run.data.validation_fraction, run.seed)
    train = data.train.subset(kept).to(device)
    others = data.train.subset(held_out).to(device), data.test.to(device)  # a run holds them too
    experts = _experts(config, train)
    # before anything else that takes memory, which the process might keep
    found = sweep(
        run,
        train,
        sizes,
        most=config.max_students,
        warmup=config.warmup,
        experts=experts,
        said=lambda row: progress.say(_said(row)),
    )
    release_freed_memory()
    progress.say(f"measuring the phases of a step of {run.students} student{'s' * (run.students != 1)}")
    stepper = Stepper.of(run, plan, train, experts)
    stepper.warm_up(config.warmup)
    seconds = stepper.seconds()
    peaks = measure_peaks(device, plan.torch_dtype, tf32=plan.tf32)
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / TRACE
        parts = breakdown(stepper, peaks, rounds=config.profile_steps, trace=trace)
        files = {TRACE: trace.read_bytes()}
        if device.type == "cuda":
            snapshot = Path(scratch) / _SNAPSHOT
            stepper.walk(moments(run)[:1], lambda step: memory_snapshot(step, snapshot))
            files[_SNAPSHOT] = snapshot.read_bytes()
    del others
    content = {
        "name": run.name,
        "config": config.as_dict(),
        "plan": plan.as_dict(),
        "environment": describe_environment(),
        "images": "random bytes" if config.random_images else "real",
        "experts": _experts_said(run, config),
        "seconds": seconds,
        **_breakdown(parts, predicted),
        "peaks": asdict(peaks),
        "throughput": _throughput(found),
    }
    for name, written in files.items():
        write_whole(config.folder / name, written)
    write_whole(config.folder / PROFILE, json.dumps(content, indent=1).encode())
    write_profile_report(config.folder, content)
    return content


def _experts(config: ProfileConfig, train: ImageStore) -> Experts | None:
    """The experts of trajectory matching; None for other methods."""
    if not isinstance(config.run.method, TrajectoryConfig):
        return None
    if config.random_images:
        return RandomExperts.of(config.run, train.shape, train.num_classes)
    try:
        return open_experts(config.run, train)
    except ValueError as error:
        raise ValueError(f"{error}; or measure with random ones, by --random_images true") from error


def _experts_said(run: RunConfig, config: ProfileConfig) -> str:
    if not isinstance(run.method, TrajectoryConfig):
        return ""
    return "random weights" if config.random_images else run.method.experts


def _breakdown(parts: Breakdown, predicted: Forecast) -> dict[str, Any]:
    """The phases as plain values."""
    return {
        "profiled_seconds": parts.seconds,
        "flops": parts.flops,
        "predicted_flops": predicted.flops,
        "steps": [asdict(moment) for moment in parts.moments],
        "phases": [{**asdict(phase), "of_floor": phase.of_floor} for phase in parts.phases],
    }


def _throughput(found: Sweep) -> dict[str, Any]:
    """The sweep as plain values."""
    best = found.best
    return {
        "rows": [asdict(row) for row in found.rows],
        "best": best and best.students,
        "ended": found.ended,
        "base_bytes": found.base_bytes,
    }


def _said(row: Throughput) -> str:
    number = f"{row.students} student{'s' * (row.students != 1)}"
    return f"{number}: {duration(row.seconds)} a step, {row.students_per_s:.3g} students/s"


def _refuse_another(folder: Path) -> None:
    """Refuses a folder that holds something else than a profile.

    Raises:
        ValueError: naming what is there.
    """
    strange = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if strange and PROFILE not in strange and TRACE not in strange:
        raise ValueError(
            f"expected {folder} to hold a profile or nothing, got {strange[0]} and no {PROFILE}: choose another --name "
            "or --output"
        )
