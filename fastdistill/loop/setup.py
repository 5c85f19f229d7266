"""What configuration, plan and real images become before the first step, and the artefact after the last.

The one place that tells methods apart: `make_descent`, `make_method` and what is learned beside the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import MatchingConfig, MethodConfig, RunConfig, UnrolledConfig
from fastdistill.data.class_index import one_class
from fastdistill.data.sampler import class_batches, effective_batch
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching
from fastdistill.draws import Purpose
from fastdistill.evaluation.replay import Replay
from fastdistill.loop.descent import Adam, Descent, Momentum
from fastdistill.loop.outer import Method, State
from fastdistill.methods.matching import Batch, GradientMatching
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.unrolled import Unrolled, batch_order, initial_settings, learning_rates
from fastdistill.students.ensemble import Ensemble
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.pixels import initial_pixels
from fastdistill.synthetic.schedule import Schedule

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan

Primitive = Callable[[torch.nn.Module, Batching], Functional]


def initial_state(config: RunConfig, plan: Plan, train: ImageStore) -> State:
    """The state before the first step."""
    method, dtype = config.method, plan.torch_dtype
    learned = {
        "images": initial_pixels(train, method.start, ipc=config.ipc, runs=config.runs, seed=config.seed, dtype=dtype)
    }
    if isinstance(method, UnrolledConfig):
        learned |= initial_settings(method, config.runs, dtype=dtype, device=train.device)
    return State(step=0, learned=learned, moments=make_descent(method).start(learned))


def make_descent(method: MethodConfig) -> Descent:
    """The outer optimiser of a method."""
    if isinstance(method, MatchingConfig):
        return Momentum(rates={"images": method.image_learning_rate}, momentum=method.image_momentum)
    return Adam(
        rate=method.learning_rate,
        beta1=method.beta1,
        beta2=method.beta2,
        decay_every=method.decay_every,
        decay=method.decay,
    )


def make_method(config: RunConfig, plan: Plan, train: ImageStore, primitive: Primitive = Functional) -> Method:
    """The configured method on a plan, sampling from the training images.

    Args:
        config: the run.
        plan: how it is computed.
        train: the training images.
        primitive: makes the student's derivative.
    """
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
    return Unrolled(
        config.method,
        ensemble,
        primitives,
        _of_any_class(config, plan, train, config.method.real_batch),
        labels,
        runs=config.runs,
        students=config.students,
        chunk=plan.chunk,
    )


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
    config: RunConfig, plan: Plan, train: ImageStore, batch: int
) -> Callable[[int, Tensor], tuple[Tensor, Tensor]]:
    """Real images whatever their class, without replacement within a batch."""
    every = one_class(len(train), train.device)
    batch = min(batch, len(train))

    def sample(step: int, students: Tensor) -> tuple[Tensor, Tensor]:
        chosen = class_batches(every, seed=config.seed, step=step, students=students, batch=batch)[:, 0]
        return train.batch(chosen, plan.torch_dtype), train.labels[chosen]

    return sample


def schedule_of(config: RunConfig, learned: Mapping[str, Tensor], classes: int) -> Schedule | None:
    """The steps and rates that belong to the images, where the method learns such."""
    method = config.method
    if not isinstance(method, UnrolledConfig) or not method.replayed:
        return None
    return Schedule(
        rates=learning_rates(method, learned).float().cpu(), images=batch_order(method, classes, config.ipc)
    )


def replay_of(config: RunConfig, train: ImageStore, learned: Mapping[str, Tensor]) -> Replay | None:
    """The same for evaluation."""
    schedule = schedule_of(config, learned, train.num_classes)
    return None if schedule is None else Replay(rates=schedule.rates, order=schedule.images)


def as_distilled(
    config: RunConfig, learned: Mapping[str, Tensor], train: ImageStore, dataset: str, digest: str
) -> Distilled:
    """The artefact of what is learned."""
    method = config.method
    return Distilled(
        images=learned["images"].flatten(1, 2).float().cpu(),
        labels=torch.arange(train.num_classes).repeat_interleave(config.ipc),
        class_names=train.class_names,
        normalization=train.normalization.to("cpu"),
        dataset=dataset,
        augmentation=method.augmentation if isinstance(method, MatchingConfig) else "none",
        align_corners=method.align_corners if isinstance(method, MatchingConfig) else True,
        unit=train.unit,
        pixel_range=train.pixel_range,
        config_hash=digest,
        schedule=schedule_of(config, learned, train.num_classes),
        details={"name": config.name, "steps": str(method.steps)},
    )
