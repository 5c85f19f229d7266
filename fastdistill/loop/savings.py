"""What would make a distilling step smaller, and how small: for the refusal of a run that memory cannot hold."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

from fastdistill.config import RunConfig
from fastdistill.loop.memory import gigabytes, step_bytes
from fastdistill.loop.plan import Plan
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import TrajectoryConfig, UnrolledConfig


def savings(config: RunConfig, plan: Plan, sizes: Sizes) -> list[str]:
    """Flags that leave the students and images as they are, each with the bytes that a step then takes.

    Args:
        config: the run.
        plan: how it is computed.
        sizes: of the real images.

    Returns:
        Such as ``--method.keep 8 (0.6 GB)``; only what helps.
    """
    before, found = step_bytes(config, plan, sizes), []
    for name, value in _changes(config).items():
        changed = replace(config, method=replace(config.method, **{name: value}))
        needed = step_bytes(changed, plan, sizes)
        if needed < before:
            found.append(f"--method.{name} {value} ({gigabytes(needed)})")
    if plan.chunk > 1:
        half = -(-plan.chunk // 2)
        found.append(f"--chunk {half} ({gigabytes(step_bytes(config, replace(plan, chunk=half), sizes))})")
    return found


def _changes(config: RunConfig) -> dict[str, Any]:
    """Fields of the method that decide how much of a training is stored, with smaller values."""
    method = config.method
    if not isinstance(method, UnrolledConfig | TrajectoryConfig):
        return {}
    changes: dict[str, Any] = {}
    length = (method.window if isinstance(method, UnrolledConfig) else 0) or method.inner_steps
    if method.storage == "same":
        changes["keep"] = max(isqrt(length), 1)  # where the stored steps and those that are run again are as many
    if method.keep == 1:
        changes["storage"] = "bfloat16"
    if isinstance(method, TrajectoryConfig):
        changes["inner_steps"] = -(-length // 2)
    elif method.window:
        changes["window"] = -(-length // 2)
    else:
        changes["epochs"] = -(-method.epochs // 2)
    return changes
