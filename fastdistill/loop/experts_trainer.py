"""Training of experts, one epoch of a chunk of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdistill.augmentation import dsa
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.plan import Batching
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.evaluation.protocols import DIGITS
from fastdistill.experts_config import ExpertsConfig
from fastdistill.loop.setup import Primitive
from fastdistill.methods.inner_training import refuse_buffers
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Augment, Fetch, Training, count_correct, train_students
from fastdistill.students.weights import initial_weights

TEST_BLOCK = 1000  # images that are classified at once


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Experts that train together, after an epoch.

    Attributes:
        indices: of the experts, int64 ``[S]``.
        weights: ``[S, P]``.
        velocity: of the momentum, ``[S, P]``; None without.
        loss: mean over the epoch's images as they were trained on, ``[S]``; zero before the first epoch.
    """

    indices: Tensor
    weights: Tensor
    velocity: Tensor | None
    loss: Tensor

    def to(self, device: torch.device) -> Chunk:
        """The same experts on a device."""
        return Chunk(
            indices=self.indices.to(device),
            weights=self.weights.to(device),
            velocity=None if self.velocity is None else self.velocity.to(device),
            loss=self.loss.to(device),
        )


class Trainer:
    """Trains experts by plain SGD on the real images; expert ``e`` depends on the seed and ``e`` alone.

    Args:
        config: of the experts.
        train: the images.
        training: batching of the training steps.
        testing: batching of the classification of ``TEST_BLOCK`` images.
        dtype: of weights and images.
        primitive: makes the network's derivative.
        fetch: gives the mini-batches; from ``train`` by default.

    Attributes:
        module: the network on the meta device.
        tester: classifies.

    Raises:
        ValueError: as `expert_module` does.
    """

    def __init__(
        self,
        config: ExpertsConfig,
        train: ImageStore,
        training: Batching,
        testing: Batching,
        *,
        dtype: torch.dtype = torch.float32,
        primitive: Primitive = make_primitive,
        fetch: Fetch | None = None,
    ) -> None:
        self.module = expert_module(config, train.shape, train.num_classes)
        self._config, self._dtype, self._count = config, dtype, len(train)
        self._primitive, self.tester = primitive(self.module, training), primitive(self.module, testing)
        self._fetch = fetch or store_fetch(train, dtype)
        self._strategy = dsa.Strategy.parse(strategy_of(config), align_corners=config.align_corners)
        self._training = Training(
            epochs=1,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            batch=config.batch,
        )

    def start(self, indices: Tensor) -> Chunk:
        """Experts before their first epoch, on the device of ``indices``, int64 ``[S]``."""
        config = self._config
        weights = initial_weights(
            self.module,
            config.student.weights,
            seed=config.seed,
            step=0,
            students=indices,
            purpose=Purpose.EXPERT_WEIGHTS,
        ).to(self._dtype)
        velocity = torch.zeros_like(weights) if config.momentum else None
        return Chunk(indices=indices, weights=weights, velocity=velocity, loss=weights.new_zeros(len(indices)))

    def epoch(self, before: Chunk, epoch: int) -> Chunk:
        """Experts after epoch ``epoch``, counted from 1, from what they were before it."""
        after: list[tuple[Tensor | None, Tensor]] = []
        weights, _ = train_students(
            self._primitive,
            before.weights,
            {},
            self._fetch,
            self._count,
            self._training,
            seed=self._config.seed,
            students=before.indices,
            first_epoch=epoch - 1,
            purpose=Purpose.EXPERT_MINIBATCH,
            augment=self._augment(before.indices),
            velocity=before.velocity,
            observe=lambda velocity, loss: after.append((velocity, loss)),
        )
        ((velocity, loss),) = after
        return Chunk(indices=before.indices, weights=weights, velocity=velocity, loss=loss)

    def accuracy(self, weights: Tensor, store: ImageStore) -> Tensor:
        """The share of a store's images that each expert classifies as they are labelled, float64 ``[S]``."""
        correct = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
        for block in torch.arange(len(store), device=store.device).split(TEST_BLOCK):
            correct += count_correct(self.tester, weights, {}, store.batch(block, self._dtype), store.labels[block])
        return correct.double() / len(store)

    def _augment(self, indices: Tensor) -> Augment | None:
        strategy = self._strategy
        if not strategy.operations:
            return None

        def augment(images: Tensor, step: int) -> Tensor:
            draw = dsa.draw_per_image(
                strategy,
                seed=self._config.seed,
                step=step,
                students=indices,
                images=images.shape[-4],
                purpose=Purpose.EXPERT_AUGMENTATION,
            )
            return dsa.augment(images, strategy, draw)

        return augment


def expert_module(config: ExpertsConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The experts' network, on the meta device.

    Raises:
        ValueError: for one with running statistics, which are no part of a trajectory.
    """
    module = student_module(config.student, shape, num_classes)
    refuse_buffers(module, "as experts")
    return module


def strategy_of(config: ExpertsConfig) -> str:
    """The DSA strategy of some experts, with ``auto`` made explicit: all operations, but digits are not mirrored."""
    if config.augmentation != "auto":
        return config.augmentation
    return "_".join(name for name in dsa.OPERATIONS if name != "flip" or config.data.source not in DIGITS)
