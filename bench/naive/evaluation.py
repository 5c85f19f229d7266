"""Training a fresh net on a small set and testing it, by the field's common protocol (Zhao et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.naive.matching import train_epoch


def decay_epoch(epochs: int) -> int:
    """Return the (zero-based) epoch after which the learning rate falls to a tenth; `epochs` + 1 epochs are run."""
    return epochs // 2 + 1


def train_and_test(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    augment: Callable[[Tensor], Tensor] | None = None,
    *,
    generator: torch.Generator,
) -> float:
    """Train the net in place and return its accuracy in [0, 1] after the last epoch.

    The schedule is the one behind published numbers, oddities included: one epoch more than asked for, and an
    optimiser rebuilt at the decay, which forgets its momentum.

    Args:
        net: a fresh net.
        images: training images [n, D, H, W], normalised.
        labels: int64 [n].
        test_images: [m, D, H, W], normalised likewise.
        test_labels: int64 [m].
        epochs: the nominal number of epochs.
        lr: learning rate before the decay.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        batch: images per step, in training and in testing.
        augment: applied to each training batch.
        generator: source of the shuffles.
    """
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    for epoch in range(epochs + 1):
        train_epoch(net, images, labels, optimizer, batch, generator=generator, augment=augment)
        if epoch == decay_epoch(epochs):
            optimizer = torch.optim.SGD(net.parameters(), lr=lr * 0.1, momentum=momentum, weight_decay=weight_decay)
    return accuracy(net, test_images, test_labels, batch)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> float:
    """Return the share in [0, 1] of images [n, D, H, W] whose largest logit is at their label [n]."""
    net.eval()
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for inputs, targets in zip(torch.split(images, batch), torch.split(labels, batch), strict=True):
        correct += (net(inputs).argmax(dim=1) == targets).sum()
    return correct.item() / len(labels)
