"""The programs of a method, counted on the meta device: an outer step, and the students' training between two.

They run the very method that `setup.make_method` builds, with sketches for primitives. Of a long training a few steps
are run, since every further one holds the same, and what the others would store is added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.derivatives.primitive import make_sketch
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import Method, State, outer_step
from fastdistill.loop.setup import beside_images, generator_of, make_method
from fastdistill.loop.sizes import META, Sizes, Unseen, synthetic_images
from fastdistill.method_configs import (
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
)
from fastdistill.methods.implicit import estimates_eigenvalue
from fastdistill.methods.inner_training import inner_optimizer
from fastdistill.methods.trajectory import last_epoch, orders
from fastdistill.students.ensemble import Students, student_module
from fastdistill.students.weights import initial_buffers

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan


def step(config: RunConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """One outer step with students that begin at it, beyond the state before it; or live on, where that takes more."""
    recipe = config.method
    if isinstance(recipe, MatchingConfig):
        return whole_step(replace(config, method=replace(recipe, outer_loop=1)), plan, sizes)
    if isinstance(recipe, DistributionConfig):
        return whole_step(config, plan, sizes)
    if isinstance(recipe, ImplicitConfig):
        return _hypersteps(config, recipe, plan, sizes)
    if isinstance(recipe, TrajectoryConfig):
        steps = min(recipe.inner_steps, 2 * recipe.keep + 1)
        whole = _followed(config, plan, sizes, recipe.inner_steps)
        further = whole - _followed(config, plan, sizes, steps)
        few = replace(recipe, inner_steps=steps, max_start_epoch=1)  # so that only targets are later than epoch 0
        return whole_step(replace(config, method=few), plan, sizes, further)
    shorter = _few_steps(recipe)
    return whole_step(replace(config, method=shorter), plan, sizes).above(_stored(config, plan, sizes, recipe, shorter))


def whole_step(config: RunConfig, plan: Plan, sizes: Sizes, further: int = 0) -> Footprint:
    """One outer step as it is, with students that begin at it.

    Args:
        config: the run.
        plan: how it is computed.
        sizes: of the real images.
        further: bytes that are held too while a chunk of students follows experts.
    """
    ledger = Ledger()
    method = _method(config, plan, sizes, ledger, further)
    descent = make_descent(config.method, config.generator)
    learned = _learned(config, plan, sizes)
    state = State(step=0, learned=learned, moments=descent.start(learned))
    with ledger:
        outer_step(method, descent, state)
        return ledger.footprint


def _followed(config: RunConfig, plan: Plan, sizes: Sizes, steps: int) -> int:
    """Bytes that a chunk of students stores along some steps of trajectory matching: weights, losses and orders."""
    recipe, students = config.method, min(plan.chunk, config.students * config.runs)
    assert isinstance(recipe, TrajectoryConfig)
    width = torch.bfloat16.itemsize if recipe.storage == "bfloat16" else plan.torch_dtype.itemsize
    size = Layout.of(student_module(config.student, sizes.shape, len(sizes.classes))).size
    scalars = (
        2 if recipe.gradient == "tesla" else 3
    )  # loss, derivative in the rate and, of the adjoint, in the momentum
    images = len(sizes.classes) * config.ipc
    shuffled = orders(replace(recipe, inner_steps=steps), images) * images * torch.int64.itemsize
    weights = -(-steps // recipe.keep) * size * width
    return students * (weights + shuffled + scalars * steps * plan.torch_dtype.itemsize)


def _hypersteps(config: RunConfig, recipe: ImplicitConfig, plan: Plan, sizes: Sizes) -> Footprint:
    """A hyperstep with students that begin at it and, where they live on, one with those."""
    few = {name: min(getattr(recipe, name), 3) for name in ("inner_steps", "terms", "eigenvalue_steps")}
    config, descent = replace(config, method=replace(recipe, **few)), make_descent(recipe, config.generator)
    learned = _learned(config, plan, sizes)
    state = State(step=0, learned=learned, moments=descent.start(learned))
    found = []
    later = [step for step in range(1, recipe.steps) if step % recipe.hypersteps]
    estimating = [step for step in later if estimates_eigenvalue(recipe, step)]
    for number in dict.fromkeys([0, *later[:1], *estimating[:1]]):
        ledger = Ledger()
        method = _method(config, plan, sizes, ledger)
        with ledger:
            following, _ = outer_step(method, descent, replace(state, step=number))
            found.append(ledger.footprint)
        if number == 0:
            state = following
    return Footprint.in_turn(found)


def _few_steps(recipe: UnrolledConfig) -> UnrolledConfig:
    """The recipe with one step before the window, and so few in it that each kind of step is there."""
    length = recipe.window or recipe.inner_steps
    keep = min(recipe.keep, 2)
    before, inside = min(recipe.inner_steps - length, 1), min(length, keep * min(_rows(recipe), 3))
    return replace(
        recipe,
        epochs=-(-(before + inside) // recipe.batches),
        window=inside,
        window_start="moving",  # from its least place
        window_least=before,
        grow_every=0,
        grow_backwards=False,
        intermediate_every=min(recipe.intermediate_every, 1),
        keep=keep,
    )


def _rows(recipe: UnrolledConfig) -> int:
    """Steps that a trajectory stores."""
    return -(-(recipe.window or recipe.inner_steps) // recipe.keep)


def _again(recipe: UnrolledConfig) -> int:
    """Steps that its adjoint runs again and holds."""
    return min(recipe.keep, recipe.window or recipe.inner_steps) - 1


def _stored(config: RunConfig, plan: Plan, sizes: Sizes, recipe: UnrolledConfig, few: UnrolledConfig) -> Footprint:
    """What the steps that are left out would hold together."""
    rows, again = _rows(recipe) - _rows(few), _again(recipe) - _again(few)
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    students = min(plan.chunk, config.students * config.runs)
    weights = students * Layout.of(module).size * plan.torch_dtype.itemsize
    state = inner_optimizer(recipe.optimizer, recipe.inner_decay).slots * weights
    narrow = 2 / plan.torch_dtype.itemsize if recipe.storage == "bfloat16" else 1
    buffers = initial_buffers(module, students, dtype=plan.torch_dtype, device=META)
    later = (recipe.window or recipe.inner_steps) - (few.window or few.inner_steps)
    means = [later * tensor.nbytes for tensor in buffers.values()]
    trajectory = Footprint.of_blocks([round(rows * weights * narrow), rows * state, *means])
    return trajectory.above(Footprint.of_blocks([weights, state]).times(again))


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
    moments = sum(value.nbytes for value in make_descent(config.method, config.generator).start(learned).values())
    module = student_module(config.student, sizes.shape, len(sizes.classes))
    size = Layout.of(module).size * plan.torch_dtype.itemsize
    students = config.students * config.runs * _vectors(config) * size
    return held + moments + students, held if config.evaluation.validation_every else 0


def _vectors(config: RunConfig) -> int:
    """Vectors of its weights' length that a student keeps between two outer steps."""
    method = config.method
    if isinstance(method, MatchingConfig):
        return int(method.outer_loop > 1)
    if isinstance(method, ImplicitConfig) and method.hypersteps > 1:
        return 1 + inner_optimizer(method.optimizer, method.inner_decay).slots + method.warm_start
    return 0


def _learned(config: RunConfig, plan: Plan, sizes: Sizes) -> dict[str, Tensor]:
    """What is learned, without values."""
    classes, dtype = len(sizes.classes), plan.torch_dtype
    beside = beside_images(config, classes, dtype=dtype, device=META)
    generator = generator_of(config, sizes.shape, classes)
    if generator is None:
        return {"images": synthetic_images(config, sizes, dtype), **beside}
    return {**generator.initial(dtype=dtype, device=META), **beside}


def _method(config: RunConfig, plan: Plan, sizes: Sizes, ledger: Ledger, further: int = 0) -> Method:
    """The method on images of which only the sizes are known; ``further`` as in `whole_step`."""
    kept, _ = sizes.split(config.data.validation_fraction)
    # the Gauss-Newton product differentiates logits itself, which a sketch of them does not show
    whole = isinstance(config.method, ImplicitConfig) and config.method.curvature == "gauss_newton"
    fresh = replace(config.student, initialization="fresh", pretrained="")  # a pool is read before anything is counted
    return make_method(
        replace(config, student=fresh),
        plan,
        Unseen.of(config, sizes, kept),
        Functional if whole else lambda module, batching: make_sketch(module, batching, ledger),
        experts=_UnseenExperts.of(config, sizes, further) if isinstance(config.method, TrajectoryConfig) else None,
    )


@dataclass(frozen=True, kw_only=True)
class _UnseenExperts:
    """An expert of which only the sizes are known.

    Attributes:
        size: ``P``.
        epochs: ``K``, as many as are needed: those of the real ones are checked where they are opened.
        further: bytes to hold beside the targets, which live as long as what students store along their training.
    """

    size: int
    epochs: int
    further: int
    count: int = 1

    @classmethod
    def of(cls, config: RunConfig, sizes: Sizes, further: int) -> _UnseenExperts:
        """One for the students of a run."""
        assert isinstance(config.method, TrajectoryConfig)
        module = student_module(config.student, sizes.shape, len(sizes.classes))
        return cls(size=Layout.of(module).size, epochs=last_epoch(config.method), further=further)

    def at(self, experts: Tensor, epochs: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights ``[S, P]`` without values."""
        beside = self.further // dtype.itemsize if bool(epochs.any()) else 0
        block = torch.empty(beside + len(experts) * self.size, dtype=dtype, device=device)
        return block[beside:].view(len(experts), self.size)
