"""Matching a stretch of an expert's training, one student at a time.

Sources: Cazenavette et al. 2022 (MTT), through the whole training; Cui et al. 2023 (TESLA), with the cross-step terms
dropped, in memory that does not grow with the steps. Shapes: `N` synthetic images in all, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.naive.unrolled import Sgd, StepAugment, Training, Weights, trajectory


def shuffled_batches(images: int, size: int, steps: int, *, generator: torch.Generator) -> list[Tensor]:
    """Return the image indices of each step: chunks of random orders, taken from the end, the short one first."""
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(images, generator=generator, device=generator.device)
        batches += reversed(torch.split(order, size))
    return batches[:steps]


def trajectory_loss(
    training: Training,
    start: Weights,
    target: Weights,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
) -> Tensor:
    """Return |theta_N - target|^2 / |start - target|^2 as a scalar, differentiable in the last three arguments.

    Args:
        training: the student's steps; plain gradient descent in the published method.
        start: the expert's weights that the student starts from.
        target: the expert's weights some epochs later.
        images: synthetic images [N, D, H, W].
        labels: int64 [N], or soft [N, C].
        step_size: one learning rate for all steps, a scalar.
    """
    final = start
    for weights in trajectory(training, start, images, labels, step_size):
        final = weights
    return _squared_distance(final, target) / _squared_distance(start, target)


def mtt(
    training: Training,
    start: Weights,
    target: Weights,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `trajectory_loss` and its gradients by name: `images`, `step_size`, and `labels` if soft."""
    learned = _leaves(images, labels, step_size)
    value = trajectory_loss(
        training, start, target, learned["images"], learned.get("labels", labels), learned["step_size"]
    )
    gradients = torch.autograd.grad(value, list(learned.values()))
    return value.detach(), dict(zip(learned, gradients, strict=True))


def tesla(
    training: Training,
    start: Weights,
    target: Weights,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    *,
    halved: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `trajectory_loss` and TESLA's approximate gradients: as `mtt`, but every theta_i is a constant.

    A first pass trains without a graph and sums the gradients to G. A second one adds, step by step, the derivative of
    2 <g_i, v> / |start - target|^2 with v = a (target - start) + a^2 G for the step size a; the derivative by a is that
    of |start - a G - target|^2 with G constant.

    Args:
        training: the student's steps, by plain gradient descent.
        start: see `trajectory_loss`, as for the next four.
        target: the expert's later weights.
        images: synthetic images [N, D, H, W].
        labels: int64 [N], or soft [N, C].
        step_size: a scalar.
        halved: leave out the factor 2 of the images and labels, as in the published results; not that of the step size.

    Raises:
        ValueError: if the steps are not plain gradient descent, or some are skipped.
    """
    inner = training.inner
    plain = isinstance(inner, Sgd) and not isinstance(inner.momentum, Tensor) and inner.momentum == 0
    if not plain or inner.weight_decay or training.skip:
        raise ValueError(f"expected plain gradient descent with no step skipped, got {inner}; use mtt for others")
    learned = _leaves(images, labels, step_size)
    net, loss, augment, rate = training.net, training.loss, training.augment, step_size.detach()

    def training_gradient(weights: Weights, step: int, create_graph: bool) -> tuple[Tensor, ...]:
        index = training.batches[step]
        inputs, targets = learned["images"][index], learned.get("labels", labels)[index]
        if augment is not None:
            inputs = augment(inputs, step)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        value = loss(functional_call(net, leaves, (inputs,)), targets)
        return torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph)

    current = {name: weight.detach() for name, weight in start.items()}
    visited: list[Weights] = []
    total = {name: torch.zeros_like(weight) for name, weight in current.items()}
    for step in range(len(training.batches)):
        visited.append(current)
        grads = dict(zip(current, training_gradient(current, step, create_graph=False), strict=True))
        current = {name: weight - rate * grads[name] for name, weight in current.items()}
        total = {name: summed + grads[name] for name, summed in total.items()}

    scale = _squared_distance(start, target)
    cotangent = [
        (1 if halved else 2) * (rate * (target[name] - start[name]) + rate**2 * total[name]) / scale for name in total
    ]
    inputs = [tensor for name, tensor in learned.items() if name != "step_size"]
    sums = [torch.zeros_like(tensor) for tensor in inputs]
    for step, weights in enumerate(visited):
        grads_of_step = training_gradient(weights, step, create_graph=True)
        parts = torch.autograd.grad(grads_of_step, inputs, grad_outputs=cotangent)
        sums = [summed + part for summed, part in zip(sums, parts, strict=True)]
    gradients = dict(zip((name for name in learned if name != "step_size"), sums, strict=True))
    by_step = sum(2 * (total[name] * (rate * total[name] - start[name] + target[name])).sum() for name in total)
    gradients["step_size"] = (by_step / scale).detach()
    return (_squared_distance(current, target) / scale).detach(), gradients


def expert_labels(net: nn.Module, weights: Weights, images: Tensor, chunk: int = 50) -> Tensor:
    """Return the soft labels [N, C] that an expert with these weights gives to images [N, D, H, W]."""
    with torch.no_grad():
        logits = [functional_call(net, weights, (part,)) for part in torch.split(images, chunk)]
    return torch.cat(logits).softmax(dim=1)


def train_expert(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: Sequence[Sequence[Tensor]],
    lr: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    augment: StepAugment | None = None,
) -> list[Weights]:
    """Train the net in place on real data and return copies of its weights, first the initial ones, then each epoch's.

    Args:
        net: a fresh net.
        images: real images [n, D, H, W], normalised.
        labels: int64 [n].
        epochs: for each epoch the image indices of its batches.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        augment: called with a batch of images and the number of batches before it, in all epochs.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    snapshots, step = [_snapshot(net)], count()
    for batches in epochs:
        for indices in batches:
            inputs = images[indices] if augment is None else augment(images[indices], next(step))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(inputs), labels[indices]))
            optimizer.step()
        snapshots.append(_snapshot(net))
    return snapshots


def _snapshot(net: nn.Module) -> Weights:
    """Return copies, which later steps do not change."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def _leaves(images: Tensor, labels: Tensor, step_size: Tensor) -> Weights:
    """Return fresh leaves of what is learned."""
    learned = {"images": images, "step_size": step_size}
    if labels.is_floating_point():
        learned["labels"] = labels
    return {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}


def _squared_distance(a: Weights, b: Weights) -> Tensor:
    """Return the squared distance over all tensors as a scalar."""
    return torch.stack([((a[name] - b[name]) ** 2).sum() for name in a]).sum()
