"""What configuration, plan and real images become before the first step, and the artefact after the last."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.sampler import class_batches, effective_batch
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.functional import Functional
from fastdistill.draws import Purpose
from fastdistill.loop.outer import State
from fastdistill.loop.plan import Plan
from fastdistill.methods.matching import Batch, GradientMatching, Primitives
from fastdistill.students.ensemble import Ensemble
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.pixels import initial_pixels


def initial_state(config: RunConfig, plan: Plan, train: ImageStore) -> State:
    """The state before the first step."""
    images = initial_pixels(
        train, config.method.start, ipc=config.ipc, runs=config.runs, seed=config.seed, dtype=plan.torch_dtype
    )
    return State(step=0, images=images, velocity=torch.zeros_like(images))


def make_method(config: RunConfig, plan: Plan, train: ImageStore) -> GradientMatching:
    """The configured method on a plan, sampling from the training images."""
    ensemble = Ensemble(config.student, train.shape, train.num_classes, seed=config.seed, dtype=plan.torch_dtype)
    classes = torch.arange(train.num_classes, device=train.device)

    def sample(purpose: Purpose, step: int, students: Tensor, batch: int) -> Batch:
        batch = effective_batch(train.class_sizes, batch)
        chosen = class_batches(
            train.class_index, seed=config.seed, step=step, students=students, batch=batch, purpose=purpose
        )
        return Batch(images=train.batch(chosen, plan.torch_dtype), labels=classes[None, :, None].expand(chosen.shape))

    return GradientMatching(
        config.method,
        ensemble,
        Primitives(
            real=Functional(ensemble.module, plan.real),
            synthetic=Functional(ensemble.module, plan.synthetic),
            training=Functional(ensemble.module, plan.training),
        ),
        sample,
        classes[:, None].expand(-1, config.ipc),
        runs=config.runs,
        students=config.students,
        chunk=plan.chunk,
        seed=config.seed,
    )


def as_distilled(config: RunConfig, images: Tensor, train: ImageStore, dataset: str, digest: str) -> Distilled:
    """The artefact of images ``[R, C, M, D, H, W]``."""
    return Distilled(
        images=images.flatten(1, 2).float().cpu(),
        labels=torch.arange(train.num_classes).repeat_interleave(config.ipc),
        class_names=train.class_names,
        normalization=train.normalization.to("cpu"),
        dataset=dataset,
        augmentation=config.method.augmentation,
        align_corners=config.method.align_corners,
        unit=train.unit,
        pixel_range=train.pixel_range,
        config_hash=digest,
        details={"name": config.name, "steps": str(config.method.steps)},
    )
