"""Networks trained on the real images, by whose features and forgetting coresets are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastdistill.data.store import ImageStore
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, choose_batching, forward_cost
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.draws import Purpose
from fastdistill.evaluation.coresets import joined_features
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.failures import RunFailed
from fastdistill.progress import Silent
from fastdistill.students.training import Training, train_students
from fastdistill.students.weights import initial_buffers, initial_weights

_BLOCK = 1000  # images that are classified at once


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetworks:
    """Some trained networks.

    Attributes:
        module: the architecture, with ``features`` as `students.architectures.build_student` makes it.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``.
        correct: whether each network classified each training image rightly after each epoch, bool ``[E, S, n]``.
        batching: of the classification.
    """

    module: nn.Module
    weights: Tensor
    buffers: dict[str, Tensor]
    correct: Tensor
    batching: Batching

    def features(self, store: ImageStore, indices: Tensor) -> Tensor:
        """The joined features of some of a store's images, see `joined_features`.

        Args:
            store: the images.
            indices: which, int64 ``[m]``.

        Returns:
            ``[m, S·F]``.
        """
        head = Functional(_Features(self.module), self.batching)
        buffers = {f"network.{name}": tensor for name, tensor in self.buffers.items()}
        with torch.no_grad():
            blocks = [
                head.logits(self.weights, buffers, store.batch(block, self.weights.dtype))
                for block in indices.split(_BLOCK)
            ]
        return joined_features(torch.cat(blocks, dim=1))


class _Features(nn.Module):
    """A network without its last layer, whose parameters stay in the layout."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to features ``[n, F]``."""
        features: Tensor = cast(Any, self.network).features(images)
        return features


def train_feature_networks(
    module: nn.Module,
    store: ImageStore,
    training: Training,
    *,
    count: int,
    seed: int,
    distribution: str = "default",
    dtype: torch.dtype = torch.float32,
    progress: Silent | None = None,
) -> FeatureNetworks:
    """Trains networks on all images of a store, as one batched program, and classifies these after every epoch.

    The networks are others than those that judge: weights and shuffles have purposes of their own.

    Args:
        module: the architecture.
        store: the images.
        training: the settings; the momentum goes on from epoch to epoch, so ``restart`` has no effect.
        count: networks, ``S``.
        seed: of the draws.
        distribution: of the first weights.
        dtype: float32 or float64.
        progress: what is said meanwhile.

    Raises:
        RunFailed: when a network's weights stop being finite, since its features would choose at random.
    """
    students, cost = torch.arange(count, device=store.device), forward_cost(module, store.shape)

    def batching(images: int) -> Batching:
        return choose_batching(cost, store.device, students=count, groups=1, images=images)

    trainer = make_primitive(module, batching(min(training.batch, len(store))))
    tester = make_primitive(module, batching(_BLOCK))
    weights = initial_weights(
        module, distribution, seed=seed, step=0, students=students, purpose=Purpose.FEATURE_WEIGHTS
    ).to(dtype)
    buffers = initial_buffers(module, count, dtype=dtype, device=store.device)
    velocity = torch.zeros_like(weights) if training.momentum else None
    correct = torch.zeros(training.epochs, count, len(store), dtype=torch.bool, device=store.device)
    with (progress or Silent()).stage("training feature networks", training.epochs) as advance:
        for epoch in range(training.epochs):
            after: list[Tensor | None] = []
            rate = training.rate(epoch)
            one = replace(training, epochs=1, learning_rate=rate, schedule="constant", restart=False)
            weights, buffers = train_students(
                trainer,
                weights,
                buffers,
                store_fetch(store, dtype),
                len(store),
                one,
                seed=seed,
                students=students,
                first_epoch=epoch,
                purpose=Purpose.FEATURE_MINIBATCH,
                velocity=velocity,
                observe=lambda moved, loss, after=after: after.append(moved),  # type: ignore[misc]
            )
            (velocity,) = after
            lost = (~weights.isfinite().all(1)).nonzero().flatten().tolist()
            if lost:
                raise RunFailed(
                    f"expected feature networks with finite weights, got others in epoch {epoch + 1} of network "
                    f"{lost[0]}: choose another student"
                )
            with torch.no_grad():
                for block in torch.arange(len(store), device=store.device).split(_BLOCK):
                    logits = tester.logits(weights, buffers, store.batch(block, dtype))
                    correct[epoch, :, block] = logits.argmax(-1) == store.labels[block]
            advance(epoch + 1, f"{100 * float(correct[epoch].double().mean()):.1f} % right")
    return FeatureNetworks(module=module, weights=weights, buffers=buffers, correct=correct, batching=tester.batching)
