"""What configuration, plan and real images become before the first step, and the artefact after the last.

With `descents` the one place that tells methods apart: `make_method` and what is learned beside the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, choose_batching, forward_cost
from fastdistill.draws import Purpose
from fastdistill.evaluation.replay import Replay
from fastdistill.loop.decoded import Decoded, Shown
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
    batch_order,
    drawn_order,
    initial_settings,
    learning_rates,
    momenta,
)
from fastdistill.phases import AUGMENTATION, phase
from fastdistill.students.ensemble import Ensemble, student_module
from fastdistill.students.experts import Experts
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.generator import Generator
from fastdistill.synthetic.pixels import initial_pixels
from fastdistill.synthetic.schedule import Schedule

if TYPE_CHECKING:
    from fastdistill.loop.plan import Plan

Primitive = Callable[[torch.nn.Module, Batching], Functional]
_BLOCK = 1000  # images that experts label at once, as many as evaluation tests at once


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


def shown_of(config: RunConfig, train: ImageStore, learned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What is learned as images are judged and kept: with those that a generator makes in its place."""
    generator = generator_of(config, train.shape, train.num_classes)
    return learned if generator is None else Shown(generator, learned, config.method.steps)


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
    primitive: Primitive = Functional,
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
            open_experts(config, train) if experts is None else experts,
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


def open_experts(config: RunConfig, train: ImageStore, *, data_hash: str | None = None) -> Experts:
    """The experts of trajectory matching.

    Args:
        config: the run.
        train: the training images; give shape and classes.
        data_hash: of the images that the run sees (`fingerprint.seen_hash`); not compared when not given.

    Raises:
        ValueError: where none are named or found, for those of another network or of other images, or ones that end too
            soon.
    """
    assert isinstance(config.method, TrajectoryConfig)
    if not config.method.experts:
        raise ValueError(
            "expected the folder of experts in method.experts, got none: make some with fastdistill experts and name "
            "their folder with --method.experts"
        )
    opened = Experts.open(config.method.experts)
    opened.check(
        layout=Layout.of(student_module(config.student, train.shape, train.num_classes)),
        student=config.student,
        data_hash=opened.data_hash if data_hash is None else data_hash,
        zca=config.data.zca,
    )
    trajectory.refuse_short(config.method, opened)
    return opened


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


def schedule_of(config: RunConfig, learned: Mapping[str, Tensor], classes: int) -> Schedule | None:
    """The steps, rates and momenta that belong to the images, where the method learns such and the protocol is own."""
    method = config.method
    if not isinstance(method, UnrolledConfig) or config.evaluation.protocol != "own":
        return None
    if method.drawn:
        # an order like those that students were shown, of the step past the last, which none of them was
        first = torch.zeros(1, dtype=torch.int64)
        order = drawn_order(method, classes, config.ipc, seed=config.seed, step=method.steps, students=first)[0]
    else:
        order = batch_order(method, classes, config.ipc)
    momentum = momenta(method, learned)
    return Schedule(
        rates=learning_rates(method, learned).float().cpu(),
        images=order,
        optimizer=method.optimizer,
        momenta=None if momentum is None else momentum.float().cpu(),
        decay=method.inner_decay,
        augmentation=method.augmentation,
        align_corners=method.align_corners,
    )


def replay_of(config: RunConfig, train: ImageStore, learned: Mapping[str, Tensor]) -> Replay | None:
    """The same for evaluation."""
    schedule = schedule_of(config, learned, train.num_classes)
    return None if schedule is None else Replay.of(schedule)


def learning_rate_of(config: RunConfig, learned: Mapping[str, Tensor]) -> Tensor | None:
    """The one learning rate that every run's images were learned with, ``[R]``; None where none is learned."""
    return learned["rate"].float().cpu() if isinstance(config.method, TrajectoryConfig) else None


def labels_of(
    config: RunConfig, learned: Mapping[str, Tensor], train: ImageStore, *, experts: trajectory.Experts | None = None
) -> Tensor | None:
    """The soft labels that images are kept and judged with, ``[R, C, M, C]``; None where each has its class.

    Args:
        config: the run.
        learned: what is learned, by name.
        train: the training images; give shape and classes.
        experts: of trajectory matching; the configured ones when not given.
    """
    method = config.method
    if not isinstance(method, TrajectoryConfig) or method.labels != "expert":
        return learned.get("labels")
    images, module = learned["images"], student_module(config.student, train.shape, train.num_classes)
    block = min(images.shape[:3].numel(), _BLOCK)
    batching = choose_batching(forward_cost(module, train.shape), images.device, students=1, groups=1, images=block)
    experts = open_experts(config, train) if experts is None else experts
    return trajectory.final_labels(method, Functional(module, batching), experts, images)


def as_distilled(
    config: RunConfig, learned: Mapping[str, Tensor], train: ImageStore, dataset: str, digest: str
) -> Distilled:
    """The artefact of what is learned."""
    method, soft = config.method, labels_of(config, learned, train)
    shown_through = isinstance(method, MatchingConfig | TrajectoryConfig | DistributionConfig)
    return Distilled(
        images=learned["images"].flatten(1, 2).float().cpu(),
        labels=(
            torch.arange(train.num_classes).repeat_interleave(config.ipc)
            if soft is None
            else soft.flatten(1, 2).float().cpu()
        ),
        class_names=train.class_names,
        normalization=train.normalization.to("cpu"),
        dataset=dataset,
        augmentation=method.augmentation if shown_through else "none",
        align_corners=method.align_corners if shown_through else True,
        unit=train.unit,
        pixel_range=train.pixel_range,
        config_hash=digest,
        schedule=schedule_of(config, learned, train.num_classes),
        learning_rate=learning_rate_of(config, learned),
        details={"name": config.name, **_length(config)},
    )


def _length(config: RunConfig) -> dict[str, str]:
    """How long the images were distilled, as far as the configuration knows."""
    if config.seconds:
        return {"seconds": f"{config.seconds:g}"}
    return {"steps": str(config.method.steps)}
