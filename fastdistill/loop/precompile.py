"""What `Compilation` runs in a process of its own: steps on random images, for what they leave in the cache."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch

from fastdistill.config import RunConfig
from fastdistill.data.arrays import from_arrays
from fastdistill.data.store import ImageStore
from fastdistill.loop.environment import prepare_process
from fastdistill.loop.plan import Plan
from fastdistill.loop.random_experts import RandomExperts
from fastdistill.loop.stepping import Stepper
from fastdistill.method_configs import TrajectoryConfig


def compile_steps(request: dict[str, Any]) -> None:
    """Takes a step of every kind by the compiled programs of a plan.

    Args:
        request: ``config`` and ``plan`` as plain values, the images' ``shape``, and how many there are of each class.
    """
    config, plan = RunConfig.from_dict(request["config"]), Plan.from_dict(request["plan"])
    assert plan.switch is not None
    plan = replace(plan, switch=replace(plan.switch, step=0))
    prepare_process(plan.threads)
    store = _images(tuple(request["shape"]), request["classes"])
    experts = None
    if isinstance(config.method, TrajectoryConfig):
        experts = RandomExperts.of(config, store.shape, store.num_classes)
    Stepper.of(config, plan.at(0), store, experts).warm_up(1)


def _images(shape: tuple[int, ...], classes: list[int]) -> ImageStore:
    pixels = torch.randint(
        0, 256, (sum(classes), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return from_arrays(pixels, torch.arange(len(classes)).repeat_interleave(torch.tensor(classes)))


if __name__ == "__main__":
    compile_steps(json.load(sys.stdin))
