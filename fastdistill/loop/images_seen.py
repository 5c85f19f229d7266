"""How many images a student is shown in an outer step: real and synthetic ones, as often as it is shown each."""

from __future__ import annotations

from typing import assert_never

from fastdistill.config import RunConfig
from fastdistill.data.sampler import effective_batch
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import (
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
)
from fastdistill.methods.trajectory import batch_sizes


def images_seen(config: RunConfig, sizes: Sizes) -> float:
    """The mean over a run's steps; images of which a second pass finds a product count once."""
    method, kept = config.method, sizes.split(config.data.validation_fraction)[0]
    synthetic = len(kept) * config.ipc
    if isinstance(method, MatchingConfig):
        between = method.inner_loop * (method.outer_loop - 1) / method.outer_loop
        return len(kept) * effective_batch(kept, method.real_batch) + (1 + between) * synthetic
    if isinstance(method, DistributionConfig):
        return len(kept) * effective_batch(kept, method.real_batch) + synthetic
    if isinstance(method, TrajectoryConfig):
        return sum(batch_sizes(method, synthetic))
    real = min(method.real_batch, sum(kept))
    if isinstance(method, ImplicitConfig):
        return real + method.inner_steps * synthetic
    if isinstance(method, UnrolledConfig):
        return _unrolled(method, real, method.batch(len(kept), config.ipc))
    assert_never(method)


def _unrolled(method: UnrolledConfig, real: int, batch: int) -> float:
    """Real images of every outer loss, and those of the inner steps up to the end of the window."""
    if method.grow_every:
        trained = sum(map(method.trained_steps, range(method.steps))) / method.steps
        return real + trained * batch
    length = method.window or method.inner_steps
    last = method.inner_steps - length
    before = last if method.window_start == "last" else (method.window_least + last) / 2
    points = 1 + (length - 1) // method.intermediate_every if method.intermediate_every else 1
    return points * real + (before + length) * batch
