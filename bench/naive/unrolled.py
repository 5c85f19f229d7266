"""Distillation through a whole training, one student at a time (Wang et al. 2018, Dataset Distillation).

The inner training keeps its graph from the first differentiated step to the outer loss, so memory grows with the
number of steps. Shapes: `N` synthetic images in all, `T` inner steps, `C` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Weights = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
StepAugment = Callable[[Tensor, int], Tensor]
State = tuple[list[Tensor], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sgd:
    """Gradient descent with heavy-ball momentum and weight decay, as `torch.optim.SGD`.

    Attributes:
        momentum: one number, or a tensor [T] with one per step, which may be learned.
        weight_decay: added to the gradient, times the weights.
    """

    momentum: float | Tensor = 0.0
    weight_decay: float = 0.0

    def step(
        self, values: list[Tensor], grads: list[Tensor], state: State, rate: Tensor, index: int
    ) -> tuple[list[Tensor], State]:
        """Return the weights and the state after step `index`; the state is empty before the first step."""
        if self.weight_decay:
            grads = [grad + self.weight_decay * value for grad, value in zip(grads, values, strict=True)]
        if isinstance(self.momentum, Tensor) or self.momentum:
            momentum = _at(self.momentum, index)
            if state:
                grads = [momentum * velocity + grad for velocity, grad in zip(state[0], grads, strict=True)]
            state = (grads,)
        return [value - rate * grad for value, grad in zip(values, grads, strict=True)], state


@dataclass(frozen=True, kw_only=True, eq=False)
class Adam:
    """Adam as `torch.optim.Adam`, weight decay added to the gradient; differentiable where a gradient is zero.

    Attributes:
        momentum: beta1, one number, or a tensor [T] with one per step, which may be learned.
        beta2: decay of the second moment.
        epsilon: added to its root.
        weight_decay: added to the gradient, times the weights.
    """

    momentum: float | Tensor = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def step(
        self, values: list[Tensor], grads: list[Tensor], state: State, rate: Tensor, index: int
    ) -> tuple[list[Tensor], State]:
        """Return the weights and the state after step `index`; the state is empty before the first step."""
        if self.weight_decay:
            grads = [grad + self.weight_decay * value for grad, value in zip(grads, values, strict=True)]
        beta1 = _at(self.momentum, index)
        first, second = state or ([torch.zeros_like(grad) for grad in grads],) * 2
        first = [beta1 * m + (1 - beta1) * grad for m, grad in zip(first, grads, strict=True)]
        second = [self.beta2 * v + (1 - self.beta2) * grad**2 for v, grad in zip(second, grads, strict=True)]
        scale = rate / (1 - beta1 ** (index + 1))
        correction = math.sqrt(1 - self.beta2 ** (index + 1))
        values = [
            value - scale * m / (_root(v) / correction + self.epsilon)
            for value, m, v in zip(values, first, second, strict=True)
        ]
        return values, (first, second)


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What an inner training of T steps consists of, but for the tensors that are learned.

    Attributes:
        net: gives the architecture and its buffers; its parameters do not change.
        batches: for each step its synthetic images, as indices or as a slice of the first axis.
        inner: the optimiser.
        loss: of logits and labels.
        augment: called with a batch of synthetic images and the step.
        skip: first steps whose graph is not kept; the weights and the optimiser's state after them are constants.
    """

    net: nn.Module
    batches: Sequence[Tensor | slice]
    inner: Sgd | Adam = Sgd()
    loss: Loss = F.cross_entropy
    augment: StepAugment | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        """Check that something is left to differentiate."""
        steps = len(self.batches)
        if not 0 <= self.skip < steps:
            raise ValueError(
                f"expected to skip at least 0 and fewer than all {steps} steps, got {self.skip}; change the skip"
            )


def cycled(batches: int, size: int, epochs: int) -> list[Tensor | slice]:
    """Return the images of each of the T = `batches` * `epochs` steps: consecutive batches, cycled."""
    return [slice(batch * size, (batch + 1) * size) for _ in range(epochs) for batch in range(batches)]


def inverse_softplus(rate: float) -> float:
    """Return the rho whose softplus is `rate`, the start of a learned learning rate."""
    return math.log(math.expm1(rate))


def trajectory(
    training: Training, weights: Weights, images: Tensor, labels: Tensor, rates: Tensor
) -> Iterator[Weights]:
    """Yield the weights after each of the T steps, differentiable from step `skip` on.

    Args:
        training: the net, its batches and its optimiser.
        weights: the initial weights by name; the result is differentiable in them only if they require gradients.
        images: synthetic images [N, D, H, W].
        labels: int64 [N], or soft [N, C], whose rows need not sum to one.
        rates: learning rates [T], or one scalar for all steps.
    """
    names, values = list(weights), list(weights.values())
    state: State = ()
    for step, index in enumerate(training.batches):
        graph = step >= training.skip
        inputs, targets = images[index], labels[index]
        if not graph:
            inputs, targets = inputs.detach(), targets.detach()
        if training.augment is not None:
            inputs = training.augment(inputs, step)
        values = [value if value.requires_grad else value.detach().requires_grad_() for value in values]
        logits = functional_call(training.net, dict(zip(names, values, strict=True)), (inputs,))
        grads = list(torch.autograd.grad(training.loss(logits, targets), values, create_graph=graph))
        with torch.set_grad_enabled(graph):
            values, state = training.inner.step(values, grads, state, rates[step] if rates.ndim else rates, step)
        yield dict(zip(names, values, strict=True))


def unrolled_loss(
    training: Training,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    rates: Tensor,
    real_images: Tensor,
    real_labels: Tensor,
    outer_weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss of a real batch after the training as a scalar, differentiable in all that trained the net.

    With `training.skip` this is truncated backpropagation in a window of T - skip steps (Feng et al. 2024, RaT-BPTT).

    Args:
        training: see `trajectory`, as for the next four.
        weights: the initial weights.
        images: synthetic images [N, D, H, W].
        labels: int64 [N] or soft [N, C].
        rates: learning rates [T].
        real_images: [B, D, H, W].
        real_labels: int64 [B].
        outer_weights: the loss after each of the T steps counts so much; if absent, the last alone.

    Raises:
        ValueError: if an outer loss falls before the window.
    """
    steps = len(training.batches)
    factors = [0.0] * (steps - 1) + [1.0] if outer_weights is None else list(outer_weights)
    if len(factors) != steps or any(factors[: training.skip]):
        raise ValueError(
            f"expected {steps} outer weights, zero in the first {training.skip} steps, got {factors}; give the loss"
            " weights only to steps that are differentiated"
        )
    total = real_images.new_zeros(())
    for factor, current in zip(factors, trajectory(training, weights, images, labels, rates), strict=True):
        if factor:
            logits = functional_call(training.net, current, (real_images,))
            total = total + factor * training.loss(logits, real_labels)
    return total


def hypergradient(
    training: Training,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    rho: Tensor,
    real_images: Tensor,
    real_labels: Tensor,
    outer_weights: Sequence[float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `unrolled_loss` and its gradients by name: `images`, `rho`, `labels` if soft, `momentum` if a tensor.

    The learning rate of step t is softplus(rho[t]); all else is as in `unrolled_loss`.
    """
    inner = training.inner
    learned = {"images": images, "rho": rho}
    if labels.is_floating_point():
        learned["labels"] = labels
    if isinstance(inner.momentum, Tensor):
        learned["momentum"] = inner.momentum
    learned = {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}
    if "momentum" in learned:
        training = replace(training, inner=replace(inner, momentum=learned["momentum"]))
    images, labels, rates = learned["images"], learned.get("labels", labels), F.softplus(learned["rho"])
    value = unrolled_loss(training, weights, images, labels, rates, real_images, real_labels, outer_weights)
    # without `inputs` autograd would also derive the loss by the initial weights, which nobody reads
    gradients = torch.autograd.grad(value, list(learned.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(learned, gradients, strict=True))


def linear_distillation(inputs: Tensor, targets: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Return the fewest synthetic pairs that bring linear regression from any weights to an optimum in one step.

    The step is theta - rate * gradient of the mean of (x theta - t)^2 / 2. It moves theta within the span of the
    synthetic inputs only, so as many inputs are needed as the real ones have rank; scaled right singular vectors do it.
    Source: Wang et al. 2018, section 3.3.

    Args:
        inputs: real inputs [n, D].
        targets: real targets [n, O].
        rate: learning rate of the step.

    Returns:
        Synthetic inputs [r, D] and targets [r, O], r being the rank of `inputs`.
    """
    rank = int(torch.linalg.matrix_rank(inputs))
    directions = torch.linalg.svd(inputs, full_matrices=False).Vh[:rank]
    synthetic = math.sqrt(rank / rate) * directions
    return synthetic, synthetic @ (torch.linalg.pinv(inputs) @ targets)


def _at(value: float | Tensor, step: int) -> float | Tensor:
    """Return what holds at a step of one number for all steps, or of a tensor [T]."""
    return value[step] if isinstance(value, Tensor) else value


def _root(x: Tensor) -> Tensor:
    """Return the square root, with derivative zero at zero: there Adam's numerator vanishes with it."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)
