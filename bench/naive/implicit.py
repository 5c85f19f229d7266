"""Implicit differentiation at a trained student (Lorraine et al. 2020), with one retained graph of its gradient.

At weights w that minimise the training loss L_T(w, phi), the validation loss L_V(w, phi) changes with phi by
dL_V/dphi = direct - <d/dphi grad_w L_T, p> with H p = grad_w L_V and H the Hessian of L_T. Shapes: `P` weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.naive.unrolled import Weights

BilevelLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
Product = Callable[[Tensor], Tensor]
Solver = Callable[[Product, Tensor], Tensor]


def neumann(product: Product, vector: Tensor, steps: int, alpha: float, *, scaled: bool = True) -> Tensor:
    """Return alpha * sum over j <= steps of (I - alpha H)^j v, which tends to H^-1 v if alpha < 2 / largest eigenvalue.

    Args:
        product: multiplies a vector [P] by a symmetric positive definite H.
        vector: v [P].
        steps: products of H.
        alpha: the step of the series.
        scaled: without it the leading alpha is left out, as in AuxiLearn (Navon et al. 2021).
    """
    term = total = vector
    for _ in range(steps):
        term = term - alpha * product(term)
        total = total + term
    return alpha * total if scaled else total


def conjugate_gradients(product: Product, vector: Tensor, steps: int, tolerance: float = 0.0) -> Tensor:
    """Return the solution of H p = v after so many steps from zero, or where |v - H p| <= tolerance * |v|.

    A direction of no positive curvature ends it too, with the sum so far.

    Args:
        product: multiplies a vector [P] by a symmetric H.
        vector: v [P].
        steps: products of H at most.
        tolerance: relative residual to stop at.
    """
    solution, residual, direction = torch.zeros_like(vector), vector, vector
    square = vector @ vector
    stop = tolerance**2 * square
    for _ in range(steps):
        if square <= stop:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            break
        length = square / curvature
        solution = solution + length * direction
        residual = residual - length * image
        square, previous = residual @ residual, square
        direction = residual + square / previous * direction
    return solution


def dense(product: Product, vector: Tensor) -> Tensor:
    """Return H^-1 v [P] by forming H column by column: the truth for tiny problems."""
    identity = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)
    solution: Tensor = torch.linalg.solve(torch.stack([product(row) for row in identity]), vector)
    return solution


def implicit_gradient(
    training_loss: BilevelLoss,
    validation_loss: BilevelLoss,
    weights: Sequence[Tensor],
    hyper: Sequence[Tensor],
    solver: Solver,
    *,
    damping: float = 0.0,
    direct: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Return the validation loss and its gradient with respect to each tensor of `hyper`.

    Args:
        training_loss: L_T of weights and hyper.
        validation_loss: L_V of weights and hyper.
        weights: where the gradient of L_T vanishes, tensors of any shapes.
        hyper: phi, tensors of any shapes; either loss may ignore some.
        solver: given a product with H + damping * I and a vector [P], returns p [P].
        damping: added to the Hessian's diagonal.
        direct: whether to add the derivative of L_V by phi at fixed weights, which AuxiLearn leaves out.
    """
    weights = [tensor.detach().requires_grad_() for tensor in weights]
    hyper = [tensor.detach().requires_grad_() for tensor in hyper]
    value = validation_loss(weights, hyper)
    outer = torch.autograd.grad(value, [*weights, *hyper], allow_unused=True, materialize_grads=True)
    inner = torch.autograd.grad(
        training_loss(weights, hyper), weights, create_graph=True, allow_unused=True, materialize_grads=True
    )
    # one vector of all gradients, since the gradient of a tensor by itself need not depend on anything
    gradient = _vector(inner)

    def product(vector: Tensor) -> Tensor:
        rows = torch.autograd.grad(
            gradient, weights, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _vector(rows) + damping * vector

    solution = solver(product, _vector(outer[: len(weights)]))
    mixed = torch.autograd.grad(gradient, hyper, solution, allow_unused=True, materialize_grads=True)
    if not direct:
        return value.detach(), [-part for part in mixed]
    return value.detach(), [term - part for term, part in zip(outer[len(weights) :], mixed, strict=True)]


def image_gradient(
    net: nn.Module,
    weights: Weights,
    images: Tensor,
    labels: Tensor,
    real_images: Tensor,
    real_labels: Tensor,
    solver: Solver,
    *,
    weight_decay: float = 0.0,
    damping: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of a real batch and its implicit gradient [N, D, H, W] by the synthetic images.

    Args:
        net: gives the architecture.
        weights: the student's weights by name, trained on the synthetic images.
        images: [N, D, H, W].
        labels: int64 [N], or soft [N, C].
        real_images: [B, D, H, W].
        real_labels: int64 [B].
        solver: see `implicit_gradient`.
        weight_decay: of the training; half of it times |w|^2 belongs to the training loss.
        damping: see `implicit_gradient`.
    """

    def cross_entropy(values: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, dict(zip(weights, values, strict=True)), (inputs,)), targets)

    def training_loss(values: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        penalty = weight_decay / 2 * torch.stack([(value**2).sum() for value in values]).sum()
        return cross_entropy(values, hyper[0], labels) + penalty

    def validation_loss(values: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        return cross_entropy(values, real_images, real_labels)

    value, (gradient,) = implicit_gradient(
        training_loss, validation_loss, list(weights.values()), [images], solver, damping=damping
    )
    return value, gradient


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    """Return all numbers as one vector [P]."""
    return torch.cat([tensor.flatten() for tensor in tensors])
