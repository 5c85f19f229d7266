"""The programs of a method, counted on the meta device: an outer step, and the students' training between two.

They run the very method that `setup.make_method` builds, with sketches for primitives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import MatchingConfig, RunConfig, UnrolledConfig
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.derivatives.sketch import Sketch
from fastdistill.loop.outer import Method, State, outer_step
from fastdistill.loop.setup import make_descent, make_method
from fastdistill.loop.sizes import META, Sizes, Unseen, synthetic_images
from fastdistill.methods.unrolled import initial_settings
from fastdistill.students.ensemble import Students, student_module
from fastdistill.students.weights import initial_buffers

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan


def step(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """One outer step with students that begin at it, beyond the state before it."""
    ledger = Ledger()
    if isinstance(config.method, MatchingConfig):
        config = replace(config, method=replace(config.method, outer_loop=1))
    method, descent = _method(config, plan, sizes, ledger), make_descent(config.method)
    learned = _learned(config, plan, sizes)
    state = State(step=0, learned=learned, moments=descent.start(learned))
    with ledger:
        outer_step(method, descent, state)
        return ledger.footprint


def training(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """The students' training between two outer steps, beyond the state before and after it."""
    recipe = config.method
    if not isinstance(recipe, MatchingConfig) or recipe.outer_loop == 1 or recipe.inner_loop == 0:
        return Footprint()
    ledger, count = Ledger(), config.students * config.runs
    shortened = replace(config, method=replace(recipe, inner_loop=min(recipe.inner_loop, 2)))
    method = _method(shortened, plan, sizes, ledger)
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    students = Students(
        indices=torch.arange(count, device=META),
        weights=torch.empty(count, Layout.of(module).size, dtype=plan.torch_dtype, device=META),
        buffers=initial_buffers(module, count, dtype=plan.torch_dtype, device=META),
    )
    learned = _learned(config, plan, sizes)
    with ledger:
        method.advance(learned, students, 0)
        return ledger.footprint


def state_bytes(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """What outlives an outer step, with that of the step before, which its guard may still look at."""
    kept, best = _kept(config, plan, sizes)
    return 2 * kept + best


def saving_bytes(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """The two copies that a checkpoint is written from, between steps."""
    return 2 * sum(_kept(config, plan, sizes))


def _kept(config: RunConfig, plan: Plan, sizes: Sizes) -> tuple[int, int]:
    """Bytes of the state after a step and of what is selected of it."""
    learned = _learned(config, plan, sizes)
    held = sum(value.nbytes for value in learned.values())
    moments = sum(value.nbytes for value in make_descent(config.method).start(learned).values())
    lasting = isinstance(config.method, MatchingConfig) and config.method.outer_loop > 1
    count = config.students * config.runs if lasting else 0
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    students = count * Layout.of(module).size * plan.torch_dtype.itemsize
    return held + moments + students, held if config.evaluation.validation_every else 0


def _learned(config: RunConfig, plan: Plan, sizes: Sizes) -> dict[str, Tensor]:
    """What is learned, without values."""
    learned = {"images": synthetic_images(config, sizes, plan.torch_dtype)}
    if isinstance(config.method, UnrolledConfig):
        learned |= initial_settings(config.method, config.runs, dtype=plan.torch_dtype, device=META)
    return learned


def _method(config: RunConfig, plan: Plan, sizes: Sizes, ledger: Ledger) -> Method:
    """The method on images of which only the sizes are known."""
    kept, _ = sizes.split(config.data.validation_fraction)
    fresh = replace(config.student, initialization="fresh", pretrained="")  # a pool is read before anything is counted
    return make_method(
        replace(config, student=fresh),
        plan,
        Unseen.of(config, sizes, kept),
        lambda module, batching: Sketch(module, batching, ledger),
    )
