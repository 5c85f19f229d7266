"""What a run's images are judged and kept with: labels, steps, rates, and the artefact of all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.plan import choose_batching, forward_cost
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.evaluation.replay import Replay
from fastdistill.loop.decoded import Shown
from fastdistill.loop.opened_experts import open_experts
from fastdistill.loop.setup import generator_of
from fastdistill.method_configs import DistributionConfig, MatchingConfig, TrajectoryConfig, UnrolledConfig
from fastdistill.methods import trajectory
from fastdistill.methods.unrolled import batch_order, drawn_order, learning_rates, momenta
from fastdistill.students.ensemble import student_module
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.schedule import Schedule

_BLOCK = 1000  # images that experts label at once, as many as evaluation tests at once


def shown_of(config: RunConfig, train: ImageStore, learned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What is learned as images are judged and kept: with those that a generator makes in its place."""
    generator = generator_of(config, train.shape, train.num_classes)
    return learned if generator is None else Shown(generator, learned, config.method.steps)


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
    return trajectory.final_labels(method, make_primitive(module, batching), experts, images)


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
