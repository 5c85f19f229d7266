"""A gradient and the product of a Hessian with a vector, for one network: a graph, and a graph of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient of the mean cross-entropy of images [n, D, H, W], one tensor per parameter."""
    return torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))


def hessian_product(net: nn.Module, images: Tensor, labels: Tensor, vector: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the Hessian of that loss times a vector, which has one tensor per parameter, as the result."""
    parameters = list(net.parameters())
    first = torch.autograd.grad(F.cross_entropy(net(images), labels), parameters, create_graph=True)
    return torch.autograd.grad(first, parameters, list(vector))
