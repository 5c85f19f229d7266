"""Gradient matching for one student, class after class (Zhao, Mopuri and Bilen 2021, Dataset Condensation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DistanceKind = Literal["ours", "mse", "l1", "l1_mean", "cos"]
ClassAugment = Callable[[Tensor, int], Tensor]

_EPSILON = 1e-6  # added to the product of two norms, as in the published results


def distance(grads_syn: Sequence[Tensor], grads_real: Sequence[Tensor], kind: DistanceKind = "ours") -> Tensor:
    """Return the distance of two gradients of one student as a scalar.

    `ours` sums 1 - cosine over the rows (output units) of every tensor and ignores one-dimensional tensors; `cos` is
    1 - cosine of all tensors as one vector; `mse` and `l1` sum squared and absolute differences of all tensors, and
    `l1_mean` each row's mean absolute difference, where a one-dimensional tensor has rows of one value.

    Args:
        grads_syn: gradient on synthetic images, one tensor per parameter.
        grads_real: gradient on real images, of the same shapes.
        kind: which distance.

    Raises:
        ValueError: if `kind` is unknown.
    """
    if kind == "ours":
        total = grads_syn[0].new_zeros(())
        for syn, real in zip(grads_syn, grads_real, strict=True):
            if syn.ndim > 1:
                total = total + _one_minus_cosine(syn.flatten(1), real.flatten(1)).sum()
        return total
    if kind == "l1_mean":
        pairs = zip(grads_syn, grads_real, strict=True)
        return sum(
            ((syn - real).abs().reshape(len(syn), -1).mean(1).sum() for syn, real in pairs),
            start=grads_syn[0].new_zeros(()),
        )
    syn = torch.cat([grad.flatten() for grad in grads_syn])
    real = torch.cat([grad.flatten() for grad in grads_real])
    if kind == "mse":
        return ((syn - real) ** 2).sum()
    if kind == "l1":
        return (syn - real).abs().sum()
    if kind == "cos":
        return _one_minus_cosine(syn, real)
    raise ValueError(f"expected the distance 'ours', 'mse', 'l1', 'l1_mean' or 'cos', got {kind!r}; choose one of them")


def matching_loss(
    net: nn.Module,
    real_images: Sequence[Tensor] | Tensor,
    synthetic_images: Tensor,
    kind: DistanceKind = "ours",
    augment: ClassAugment | None = None,
) -> Tensor:
    """Return the distance of the net's gradients, summed over the classes, differentiable in the synthetic images.

    Args:
        net: the student; its parameters require gradients.
        real_images: for each class its real batch [B, D, H, W], normalised.
        synthetic_images: [C, M, D, H, W], normalised.
        kind: see `distance`.
        augment: called with images and their class, for the real and the synthetic images of a class alike; it has to
            use the same draw both times (Siamese).

    Raises:
        ValueError: if the numbers of classes differ.
    """
    if len(real_images) != len(synthetic_images):
        raise ValueError(
            f"expected one real batch per class, got {len(real_images)} batches for {len(synthetic_images)} classes;"
            " pass as many of both"
        )
    parameters = list(net.parameters())
    total = synthetic_images.new_zeros(())
    for label, (real, synthetic) in enumerate(zip(real_images, synthetic_images, strict=True)):
        if augment is not None:
            real, synthetic = augment(real, label), augment(synthetic, label)
        grads_real = torch.autograd.grad(_class_loss(net, real, label), parameters)
        grads_syn = torch.autograd.grad(_class_loss(net, synthetic, label), parameters, create_graph=True)
        total = total + distance(grads_syn, grads_real, kind)
    return total


def image_gradient(
    net: nn.Module,
    real_images: Sequence[Tensor] | Tensor,
    synthetic_images: Tensor,
    kind: DistanceKind = "ours",
    augment: ClassAugment | None = None,
) -> Tensor:
    """Return the gradient [C, M, D, H, W] of `matching_loss` with respect to the synthetic images."""
    images = synthetic_images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(matching_loss(net, real_images, images, kind, augment), images)
    return gradient


def image_optimizer(synthetic_images: Tensor, lr: float = 0.1, momentum: float = 0.5) -> torch.optim.SGD:
    """Return the optimiser of the synthetic images [C, M, D, H, W], whose momentum lives as long as the run."""
    return torch.optim.SGD([synthetic_images], lr=lr, momentum=momentum)


def dc_step(
    net: nn.Module,
    real_images: Sequence[Tensor] | Tensor,
    synthetic_images: Tensor,
    optimizer: torch.optim.Optimizer,
    kind: DistanceKind = "ours",
    augment: ClassAugment | None = None,
) -> Tensor:
    """Update the synthetic images once, in place, and return the loss before the update as a scalar.

    Args:
        net: the student, left as it is.
        real_images: for each class its real batch [B, D, H, W], normalised.
        synthetic_images: leaf [C, M, D, H, W] that requires gradients.
        optimizer: the images' optimiser, see `image_optimizer`.
        kind: see `distance`.
        augment: see `matching_loss`.
    """
    optimizer.zero_grad()
    loss = matching_loss(net, real_images, synthetic_images, kind, augment)
    # without `inputs` autograd would also derive the loss by the student's weights, which nobody reads
    torch.autograd.backward(loss, inputs=[synthetic_images])
    optimizer.step()
    return loss.detach()


def train_network(
    net: nn.Module,
    synthetic_images: Tensor,
    labels: Tensor,
    epochs: int,
    lr: float = 0.01,
    batch: int = 256,
    *,
    generator: torch.Generator,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Train the net on the synthetic images by plain SGD, between two updates of the images.

    Args:
        net: the student, changed in place.
        synthetic_images: [C, M, D, H, W] or [n, D, H, W]; no gradient reaches them.
        labels: int64, one per image, in the images' order.
        epochs: passes over the images.
        lr: learning rate.
        batch: images per step.
        generator: source of the shuffles.
        augment: applied to each batch.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    images = synthetic_images.detach().flatten(0, -4)
    for _ in range(epochs):
        train_epoch(net, images, labels.flatten(), optimizer, batch, generator=generator, augment=augment)


def train_epoch(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    batch: int,
    *,
    generator: torch.Generator,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Pass once over images [n, D, H, W] with labels [n] in shuffled batches; the last one may be smaller."""
    order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    for indices in torch.split(order, batch):
        inputs = images[indices] if augment is None else augment(images[indices])
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(inputs), labels[indices]))
        optimizer.step()


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cosine along the last axis."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return 1 - (a * b).sum(-1) / (norms + _EPSILON)


def _class_loss(net: nn.Module, images: Tensor, label: int) -> Tensor:
    """Return the mean cross-entropy of images [n, D, H, W] that all have one label."""
    labels = torch.full((len(images),), label, dtype=torch.int64, device=images.device)
    return F.cross_entropy(net(images), labels)
