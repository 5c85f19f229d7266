"""Pointwise activations with their first two derivatives, which a dual backward pass needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("none", "relu", "leaky_relu", "softplus", "sigmoid", "swish")
LEAK = 0.01  # slope of leaky_relu below zero, as torch.nn.LeakyReLU's


def value(kind: str, z: Tensor) -> Tensor:
    """``a(z)``; ``softplus`` has sharpness 1, ``swish`` is ``z·sigmoid(z)``."""
    match kind:
        case "none":
            return z
        case "relu":
            return z.clamp_min(0)
        case "leaky_relu":
            return functional.leaky_relu(z, LEAK)
        case "softplus":
            return functional.softplus(z)
        case "sigmoid":
            return torch.sigmoid(z)
        case _:
            return functional.silu(z)


def slope(kind: str, z: Tensor) -> Tensor:
    """``a′(z)``; zero (relu) or the leak (leaky_relu) at a kink, as torch has it."""
    match kind:
        case "none":
            return torch.ones_like(z)
        case "relu":
            return (z > 0).to(z.dtype)
        case "leaky_relu":
            return torch.where(z > 0, 1.0, LEAK).to(z.dtype)
        case "softplus":
            return torch.sigmoid(z)
        case "sigmoid":
            gate = torch.sigmoid(z)
            return gate * (1 - gate)
        case _:
            gate = torch.sigmoid(z)
            return gate * (1 + z * (1 - gate))


def curvature(kind: str, z: Tensor) -> Tensor:
    """``a″(z)``; zero at a kink."""
    match kind:
        case "none" | "relu" | "leaky_relu":
            return torch.zeros_like(z)
        case "softplus":
            gate = torch.sigmoid(z)
            return gate * (1 - gate)
        case "sigmoid":
            gate = torch.sigmoid(z)
            return gate * (1 - gate) * (1 - 2 * gate)
        case _:
            gate = torch.sigmoid(z)
            return gate * (1 - gate) * (2 + z * (1 - 2 * gate))
