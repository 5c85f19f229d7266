"""What configuration, plan and real images become before the first step, and the artefact after the last.

With `descents` the one place that tells methods apart: `make_method` and what is learned beside the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

import torch
from torch import Tensor

from fastdistill.augmentation import dsa
from fastdistill.augmentation.pad_crop_flip import pad_crop_flip
from fastdistill.config import RunConfig
from fastdistill.data.class_index import one_class
from fastdistill.data.sampler import class_batches, effective_batch
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.embedding import Embedding
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.draws import Purpose
from fastdistill.loop.decoded import Decoded
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import Method, State
from fastdistill.method_configs import (
    PAD_CROP_FLIP,
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
)
from fastdistill.methods import trajectory
from fastdistill.methods.distribution import DistributionMatching, Embeddings
from fastdistill.methods.implicit import Implicit, initial_labels
from fastdistill.methods.matching import Batch, GradientMatching
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.unrolled import (
    Unrolled,
    initial_settings,
)
from fastdistill.phases import AUGMENTATION, phase
from fastdistill.students.ensemble import Ensemble
from fastdistill.synthetic.generator import Generator
from fastdistill.synthetic.pixels import initial_pixels

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan

Primitive = Callable[[torch.nn.Module, Batching], Functional]


def initial_state(config: RunConfig, plan: Plan, train: ImageStore) -> State:
    """The state before the first step.

    Raises:
        ValueError: for fewer real images than are to start from.
    """
    method, dtype = config.method, plan.torch_dtype
    generator = generator_of(config, train.shape, train.num_classes)
    if generator is None:
        pixels = initial_pixels(train, method.start, ipc=config.ipc, runs=config.runs, seed=config.seed, dtype=dtype)
        learned = {"images": pixels}
    else:
        learned = generator.initial(dtype=dtype, device=train.device)
    learned |= beside_images(config, train.num_classes, dtype=dtype, device=train.device)
    return State(step=0, learned=learned, moments=make_descent(method, config.generator).start(learned))


def generator_of(config: RunConfig, shape: tuple[int, int, int], classes: int) -> Generator | None:
    """What makes the images; None where they are learned pixel by pixel."""
    if not config.generator.learned:
        return None
    return Generator(
        config=config.generator, shape=shape, classes=classes, ipc=config.ipc, runs=config.runs, seed=config.seed
    )


def beside_images(config: RunConfig, classes: int, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """What is learned beside the images, before the first step, by name."""
    if isinstance(config.method, UnrolledConfig):
        return initial_settings(config.method, config.runs, classes, config.ipc, dtype=dtype, device=device)
    if isinstance(config.method, TrajectoryConfig):
        return trajectory.initial_settings(config.method, config.runs, classes, config.ipc, dtype=dtype, device=device)
    if isinstance(config.method, ImplicitConfig):
        return initial_labels(config.method, config.runs, classes, config.ipc, dtype=dtype, device=device)
    return {}


def make_method(
    config: RunConfig,
    plan: Plan,
    train: ImageStore,
    primitive: Primitive = make_primitive,
    *,
    experts: trajectory.Experts | None = None,
) -> Method:
    """The configured method on a plan, sampling from the training images, with what makes its images.

    Args:
        config: the run.
        plan: how it is computed.
        train: the training images.
        primitive: makes the student's derivative.
        experts: of trajectory matching; the configured ones when not given.
    """
    method = _method_of(config, plan, train, primitive, experts)
    generator = generator_of(config, train.shape, train.num_classes)
    return method if generator is None else Decoded(method=method, generator=generator)


def _method_of(
    config: RunConfig, plan: Plan, train: ImageStore, primitive: Primitive, experts: trajectory.Experts | None
) -> Method:
    """The method as it is for images that are learned pixel by pixel."""
    ensemble = Ensemble(config.student, train.shape, train.num_classes, seed=config.seed, dtype=plan.torch_dtype)
    labels = torch.arange(train.num_classes, device=train.device)[:, None].expand(-1, config.ipc)
    primitives = Primitives(
        real=primitive(ensemble.module, plan.real),
        synthetic=primitive(ensemble.module, plan.synthetic),
        training=primitive(ensemble.module, plan.training),
    )
    if isinstance(config.method, MatchingConfig):
        return GradientMatching(
            config.method,
            ensemble,
            primitives,
            _by_class(config, plan, train),
            labels,
            runs=config.runs,
            students=config.students,
            chunk=plan.chunk,
            seed=config.seed,
        )
    if isinstance(config.method, DistributionConfig):
        return DistributionMatching(
            config.method,
            ensemble,
            Embeddings(
                real=Embedding(ensemble.module, plan.real), synthetic=Embedding(ensemble.module, plan.synthetic)
            ),
            _by_class(config, plan, train),
            labels,
            runs=config.runs,
            students=config.students,
            chunk=plan.chunk,
            seed=config.seed,
        )
    if isinstance(config.method, TrajectoryConfig):
        return trajectory.TrajectoryMatching(
            config.method,
            ensemble,
            primitives,
            _opened(config, train) if experts is None else experts,
            labels,
            runs=config.runs,
            students=config.students,
            chunk=plan.chunk,
            seed=config.seed,
            dtype=plan.torch_dtype,
        )
    if isinstance(config.method, ImplicitConfig):
        return Implicit(
            config.method,
            ensemble,
            primitives,
            _of_any_class(config, plan, train, config.method),
            labels,
            runs=config.runs,
            students=config.students,
            chunk=plan.chunk,
            seed=config.seed,
        )
    if isinstance(config.method, UnrolledConfig):
        return Unrolled(
            config.method,
            ensemble,
            primitives,
            _of_any_class(config, plan, train, config.method),
            labels,
            runs=config.runs,
            students=config.students,
            chunk=plan.chunk,
            seed=config.seed,
        )
    assert_never(config.method)


def _opened(config: RunConfig, train: ImageStore) -> trajectory.Experts:
    """The configured experts; only files of tensors need the library that reads them, not steps."""
    from fastdistill.loop.opened_experts import open_experts

    return open_experts(config, train)


def _by_class(config: RunConfig, plan: Plan, train: ImageStore) -> Callable[[Purpose, int, Tensor, int], Batch]:
    """Real images of every class."""
    classes = torch.arange(train.num_classes, device=train.device)

    def sample(purpose: Purpose, step: int, students: Tensor, batch: int) -> Batch:
        batch = effective_batch(train.class_sizes, batch)
        chosen = class_batches(
            train.class_index, seed=config.seed, step=step, students=students, batch=batch, purpose=purpose
        )
        return Batch(images=train.batch(chosen, plan.torch_dtype), labels=classes[None, :, None].expand(chosen.shape))

    return sample


def _of_any_class(
    config: RunConfig, plan: Plan, train: ImageStore, method: UnrolledConfig | ImplicitConfig
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """Real images whatever their class, without replacement within a batch, augmented as the method says."""
    every = one_class(len(train), train.device)
    batch, name = min(method.real_batch, len(train)), method.real_augmentation
    strategy = dsa.Strategy.parse("none" if name == PAD_CROP_FLIP else name, align_corners=method.align_corners)

    def augmented(images: Tensor, step: int, students: Tensor) -> Tensor:
        if name == PAD_CROP_FLIP:
            return pad_crop_flip(images, seed=config.seed, step=step, students=students)
        draw = dsa.draw_per_image(
            strategy, seed=config.seed, step=step, students=students, images=batch, purpose=Purpose.AUGMENTATION
        )
        return dsa.augment(images, strategy, draw)

    def sample(step: int, students: Tensor) -> tuple[Tensor, Tensor]:
        chosen = class_batches(every, seed=config.seed, step=step, students=students, batch=batch)[:, 0]
        images = train.batch(chosen, plan.torch_dtype)
        if name == "none":
            return images, train.labels[chosen]
        with phase(AUGMENTATION):
            return augmented(images, step, students), train.labels[chosen]

    return sample
