"""Floating-point operations of an outer step, predicted before a run by counting its program on the meta device.

Those of convolutions and matrix products (`derivatives.flops`), the mean over a run's steps, for all students.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from fastdistill.config import RunConfig
from fastdistill.generator_config import GeneratorConfig
from fastdistill.loop.counting import training, whole_step
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import MatchingConfig, TrajectoryConfig, UnrolledConfig
from fastdistill.methods.trajectory import batch_sizes

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan


def step_flops(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """Operations of an outer step of all students, with those of the training between it and the next."""
    if config.generator.learned:
        pixels = replace(config, generator=GeneratorConfig())
        return step_flops(pixels, plan, sizes) + config.runs * _generating(config, plan, sizes)
    recipe, students = config.method, config.students * config.runs
    config, plan = replace(config, students=1, runs=1), replace(plan, chunk=1)  # every student takes as many
    if isinstance(recipe, MatchingConfig):
        found = _matching(config, recipe, plan, sizes)
    elif isinstance(recipe, UnrolledConfig):
        found = _unrolled(config, recipe, plan, sizes)
    elif isinstance(recipe, TrajectoryConfig):
        found = _trajectory(config, recipe, plan, sizes)
    else:
        found = whole_step(config, plan, sizes).flops
    return round(found * students)


def _matching(config: RunConfig, recipe: MatchingConfig, plan: Plan, sizes: Sizes) -> float:
    """A step, and the epochs after all but the last of those that a student lives through."""
    step = replace(config, method=replace(recipe, outer_loop=1))
    epoch = replace(config, method=replace(recipe, inner_loop=min(recipe.inner_loop, 1)))
    epochs = recipe.inner_loop * (recipe.outer_loop - 1) / recipe.outer_loop
    return whole_step(step, plan, sizes).flops + epochs * training(epoch, plan, sizes).flops


def _unrolled(config: RunConfig, recipe: UnrolledConfig, plan: Plan, sizes: Sizes) -> float:
    """A step whose window stands in the middle of its places, which are taken alike: by what each of its parts takes.

    A part is the difference of two short trainings, so that a long one costs no more to predict.
    """

    def of(before: int, inside: int, every: int = 0) -> int:
        """A step with so many inner steps before its window and inside, and so many between further outer losses."""
        short = replace(  # without what takes long to count and has no convolution or matrix product
            recipe,
            optimizer="sgd",
            learn_momenta=False,
            augmentation="none",
            real_augmentation="none",
            drawn=bool(recipe.drawn_classes),
            epochs=-(-(before + inside) // recipe.batches),
            window=inside,
            window_start="moving",  # from its least place
            window_least=before,
            grow_every=0,
            grow_backwards=False,
            intermediate_every=every,
            keep=1,
        )
        return whole_step(replace(config, method=short), plan, sizes).flops

    one, two = of(0, 1), of(0, 2)
    gradient = of(1, 1) - one
    product = two - one - gradient
    further = of(0, 2, every=1) - two if recipe.intermediate_every else 0

    def step(length: int, before: float) -> float:
        again = length - -(-length // recipe.keep)  # steps that are run a second time
        found = one + (before + length - 1 + again) * gradient + (length - 1) * product
        return found + ((length - 1) // recipe.intermediate_every * further if recipe.intermediate_every else 0)

    if recipe.grow_every:
        lengths = Counter(map(recipe.trained_steps, range(recipe.steps)))
        return sum(count * step(length, 0) for length, count in lengths.items()) / recipe.steps
    length = recipe.window or recipe.inner_steps
    last = recipe.inner_steps - length
    return step(length, last if recipe.window_start == "last" else (recipe.window_least + last) / 2)


def _trajectory(config: RunConfig, recipe: TrajectoryConfig, plan: Plan, sizes: Sizes) -> float:
    """A step by what each of its inner steps takes for an image, from trainings of one and two steps on all images."""

    def of(steps: int, *, keep: int = 1, labels: str = "hard") -> int:
        short = replace(  # without what takes long to count and has no convolution or matrix product
            recipe, inner_steps=steps, batch=0, keep=keep, storage="same", labels=labels, augmentation="none"
        )
        return whole_step(replace(config, method=short), plan, sizes).flops

    images = len(sizes.classes) * config.ipc
    one, two = of(1), of(2)
    gradient = of(2, keep=2) - two
    counts = batch_sizes(recipe, images)
    first, *later = counts
    # steps that are run a second time: all but the last of those between two stored ones
    again = [count for step, count in enumerate(counts[:-1]) if (step + 1) % recipe.keep]
    labelling = of(1, labels="expert") - one if recipe.labels == "expert" else 0
    return labelling + (one * first + (two - one) * sum(later) + gradient * sum(again)) / images


def _generating(config: RunConfig, plan: Plan, sizes: Sizes) -> int:
    """What a generator adds to a step of one run, for which the students hardly need to train."""
    recipe, plan = config.method, replace(plan, chunk=1)
    if isinstance(recipe, UnrolledConfig):
        recipe = replace(recipe, grow_every=0, grow_backwards=False, intermediate_every=0)
        recipe = replace(recipe, epochs=1, window=1, window_start="moving", window_least=0)
    elif isinstance(recipe, TrajectoryConfig):
        recipe = replace(recipe, inner_steps=1)
    elif isinstance(recipe, MatchingConfig):
        recipe = replace(recipe, inner_loop=min(recipe.inner_loop, 1))
    one = replace(config, students=1, runs=1, method=recipe)
    with_it, without = (
        whole_step(replace(one, generator=generator), plan, sizes).flops
        for generator in (config.generator, GeneratorConfig())
    )
    return with_it - without
