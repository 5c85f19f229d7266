"""What the pages say about a run, from whichever of its files knows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from fastdistill.report.folder import RunFolder, part
from fastdistill.report.formats import MISSING
from fastdistill.report.metrics import number, series

RANDOM, WHOLE, DISTILLED = "random real", "whole", "distilled"


def data_set(run: RunFolder) -> str:
    """The real images' source."""
    return str(part(run.config, "data").get("source", "?"))


def protocol(run: RunFolder) -> str:
    """The name of the protocol that the run is judged by."""
    return str(run.results.get("protocol", part(run.config, "evaluation").get("protocol", MISSING)))


def architecture(run: RunFolder) -> str:
    """The students' network; of a convnet with depth and width, such as ``convnet-3-128``."""
    student = part(run.config, "student")
    name = str(run.results.get("architecture", student.get("architecture", MISSING)))
    if name == "convnet" and "depth" in student and "width" in student:
        return f"{name}-{student['depth']}-{student['width']}"
    return name


def layers(run: RunFolder) -> str:
    """What the students' network is made of beside its shape, such as ``instance norm, relu, avg pooling``."""
    student = part(run.config, "student")
    named = (("norm", " norm"), ("activation", ""), ("pooling", " pooling"))
    return ", ".join(f"{student[key]}{suffix}" for key, suffix in named if key in student)


def is_distilled(arm: Mapping[str, Any]) -> bool:
    """Whether an arm's students were trained on distilled images."""
    return str(arm.get("arm", "")).startswith(DISTILLED)


def reference(run: RunFolder, name: str) -> Mapping[str, Any]:
    """The arm that distilled images are compared with, `RANDOM` or `WHOLE`; empty where it was not measured."""
    return next((arm for arm in run.arms if str(arm.get("arm", "")).startswith(name)), {})


def seconds(run: RunFolder) -> float | None:
    """Time of the distillation, selections left out; an unfinished run's so far."""
    found = number(run.results.get("distill_s"))
    elapsed = _recorded(run, "time_s")
    return found if found is not None or not elapsed else elapsed[-1]


def steps(run: RunFolder) -> float | None:
    """Steps of a finished run, which may have ended by its time; of another, those it is to have."""
    found = number(run.results.get("steps"))
    return number(part(run.config, "method").get("steps")) if found is None else found


def step_seconds(run: RunFolder) -> float | None:
    """Median time of one step."""
    return _result_or(run, "step_s", "perf/step_s", median)


def compiling_seconds(run: RunFolder) -> float | None:
    """Time of the first compiled step, compilation with it; None or 0 where nothing was compiled."""
    return _result_or(run, "compiling_step_s", "perf/compiling_step_s", max)


def peak_mb(run: RunFolder) -> float | None:
    """Peak memory of the distillation, in MB."""
    return _result_or(run, "distill_peak_mb", "mem/peak_mb", max)


def predicted_peak_mb(run: RunFolder) -> float | None:
    """The peak memory that was predicted before the distillation, in MB."""
    return number(run.results.get("predicted_peak_mb"))


def step_flops(run: RunFolder) -> float | None:
    """The floating-point operations of one step, as they were predicted before the distillation."""
    return number(run.results.get("step_flops"))


def counted_flops(run: RunFolder) -> float | None:
    """Those that were counted while the first step ran."""
    return number(run.results.get("counted_flops"))


def flops_per_second(run: RunFolder) -> float | None:
    """These by the median time of one step."""
    return number(run.results.get("flops_per_s"))


def students_per_second(run: RunFolder) -> float | None:
    """Median rate of students that the images were matched for."""
    rates = _recorded(run, "perf/students_per_s")
    return median(rates) if rates else None


def hardware(run: RunFolder) -> str:
    """What the run was computed on."""
    gpu = run.environment.get("gpu")
    if gpu and part(run.results, "plan").get("device") != "cpu":
        return str(gpu.get("name", gpu) if isinstance(gpu, Mapping) else gpu)
    return str(run.environment.get("cpu", MISSING))


def _result_or(run: RunFolder, result: str, metric: str, summary: Any) -> float | None:
    found = number(run.results.get(result))
    if found is not None:
        return found
    recorded = _recorded(run, metric)
    return float(summary(recorded)) if recorded else None


def _recorded(run: RunFolder, key: str) -> list[float]:
    return [value for value in series(run.metrics, key)[1].tolist() if math.isfinite(value)]
