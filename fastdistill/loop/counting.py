"""The programs of a method, counted on the meta device: an outer step, and the students' training between two.

A method brings `step` and `training`; they build it as `setup.make_method` does, with sketches for primitives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sampler import class_batches, effective_batch
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.derivatives.plan import Batching
from fastdistill.derivatives.sketch import Sketch
from fastdistill.draws import Purpose
from fastdistill.loop.outer import State, outer_step
from fastdistill.loop.sizes import META, Sizes, Unseen, synthetic_images
from fastdistill.methods.matching import Batch, GradientMatching, Primitives
from fastdistill.students.ensemble import Ensemble, Students, student_module
from fastdistill.students.weights import initial_buffers

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan


def step(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """One outer step with students that begin at it, beyond the state before it."""
    ledger = Ledger()
    method = _matching(replace(config, method=replace(config.method, outer_loop=1)), plan, sizes, ledger)
    images = synthetic_images(config, sizes, plan.torch_dtype)
    state = State(step=0, images=images, velocity=torch.empty_like(images))
    with ledger:
        outer_step(method, state, learning_rate=0.1, momentum=0.5)
        return ledger.footprint


def training(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """The students' training between two outer steps, beyond the state before and after it."""
    recipe = config.method
    if recipe.outer_loop == 1 or recipe.inner_loop == 0:
        return Footprint()
    ledger, count = Ledger(), config.students * config.runs
    method = _matching(
        replace(config, method=replace(recipe, inner_loop=min(recipe.inner_loop, 2))), plan, sizes, ledger
    )
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    students = Students(
        indices=torch.arange(count, device=META),
        weights=torch.empty(count, Layout.of(module).size, dtype=plan.torch_dtype, device=META),
        buffers=initial_buffers(module, count, dtype=plan.torch_dtype, device=META),
    )
    images = synthetic_images(config, sizes, plan.torch_dtype)
    with ledger:
        method.advance(images, students, 0)
        return ledger.footprint


def state_bytes(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """What outlives an outer step, with that of the step before, which its guard may still look at."""
    kept, best = _kept(config, plan, sizes)
    return 2 * kept + best


def saving_bytes(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """The two copies that a checkpoint is written from, between steps."""
    return 2 * sum(_kept(config, plan, sizes))


def _kept(config: RunConfig, plan: Plan, sizes: Sizes) -> tuple[int, int]:
    """Bytes of the state after a step and of the selected images."""
    images = synthetic_images(config, sizes, plan.torch_dtype).nbytes
    count = config.students * config.runs if config.method.outer_loop > 1 else 0
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    students = count * Layout.of(module).size * plan.torch_dtype.itemsize
    best = images if config.evaluation.validation_every else 0
    return 2 * images + students, best  # images, momentum, students


def _matching(config: RunConfig, plan: Plan, sizes: Sizes, ledger: Ledger) -> GradientMatching:
    """Gradient matching on images of which only the sizes are known."""
    kept, _ = sizes.split(config.data.validation_fraction)
    train = Unseen.of(config, sizes, kept)
    fresh = replace(config.student, initialization="fresh", pretrained="")  # a pool is read before anything is counted
    ensemble = Ensemble(fresh, sizes.shape, len(kept), seed=config.seed, dtype=plan.torch_dtype)
    classes = torch.arange(len(kept), device=META)

    def sample(purpose: Purpose, step: int, students: Tensor, batch: int) -> Batch:
        batch = effective_batch(train.class_sizes, batch)
        chosen = class_batches(train.class_index, seed=0, step=step, students=students, batch=batch, purpose=purpose)
        return Batch(images=train.batch(chosen, plan.torch_dtype), labels=classes[None, :, None].expand(chosen.shape))

    def primitive(batching: Batching) -> Sketch:
        return Sketch(ensemble.module, batching, ledger)

    return GradientMatching(
        config.method,
        ensemble,
        Primitives(real=primitive(plan.real), synthetic=primitive(plan.synthetic), training=primitive(plan.training)),
        sample,
        classes[:, None].expand(-1, config.ipc),
        runs=config.runs,
        students=config.students,
        chunk=plan.chunk,
        seed=config.seed,
    )
