"""Distribution matching for one network, class after class (Zhao and Bilen 2023, Dataset Condensation with DM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.naive.convnet import ConvNet
from bench.naive.matching import ClassAugment


def distribution_loss(
    net: ConvNet,
    real_images: Sequence[Tensor] | Tensor,
    synthetic_images: Tensor,
    augment: ClassAugment | None = None,
) -> Tensor:
    """Return the squared distance of mean features, summed over classes, differentiable in the synthetic images.

    Args:
        net: a random network; never trained.
        real_images: for each class its real batch [B, D, H, W], normalised.
        synthetic_images: [C, M, D, H, W], normalised.
        augment: called with images and their class; has to use the same draw both times (Siamese).
    """
    total = synthetic_images.new_zeros(())
    for label, (real, synthetic) in enumerate(zip(real_images, synthetic_images, strict=True)):
        if augment is not None:
            real, synthetic = augment(real, label), augment(synthetic, label)
        with torch.no_grad():
            target = net.features(real).mean(0)
        total = total + ((target - net.features(synthetic).mean(0)) ** 2).sum()
    return total


def image_gradient(
    net: ConvNet,
    real_images: Sequence[Tensor] | Tensor,
    synthetic_images: Tensor,
    augment: ClassAugment | None = None,
) -> Tensor:
    """Return the gradient of the loss in the synthetic images, [C, M, D, H, W]; arguments as `distribution_loss`."""
    images = synthetic_images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distribution_loss(net, real_images, images, augment), images)
    return gradient
