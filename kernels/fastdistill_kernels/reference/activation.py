"""Pointwise activations with their first two derivatives, which a dual backward pass needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("none", "relu", "leaky_relu", "softplus", "sigmoid", "swish")
CURVED = ("softplus", "sigmoid", "swish")  # those whose second derivative is not zero everywhere
LEAK = 0.01  # slope of leaky_relu below zero, as torch.nn.LeakyReLU's
STRAIGHT = 20.0  # past this softplus is the identity, as torch.nn.Softplus's threshold


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
            return functional.softplus(z, threshold=STRAIGHT)
        case "sigmoid":
            return torch.sigmoid(z)
        case _:
            return functional.silu(z)


def sloped(kind: str, z: Tensor, tangent: Tensor) -> Tensor:
    """``a′(z)·tangent``, zero (relu) or the leak (leaky_relu) at a kink, as torch has it; one pass over memory.

    Args:
        kind: one of ``ACTIVATIONS``.
        z: what the activation was applied to, any shape.
        tangent: a tangent or a cotangent, same shape and dtype.
    """
    aten, product = torch.ops.aten, tangent
    match kind:
        case "none":
            pass
        case "relu":
            product = aten.threshold_backward(tangent, z, 0)
        case "leaky_relu":
            product = aten.leaky_relu_backward(tangent, z, LEAK, False)
        case "softplus":
            product = aten.softplus_backward(tangent, z, 1, STRAIGHT)
        case "sigmoid":
            product = aten.sigmoid_backward(tangent, torch.sigmoid(z))
        case _:
            product = aten.silu_backward(tangent, z)
    return product


def slope(kind: str, z: Tensor) -> Tensor:
    """``a′(z)``; zero (relu) or the leak (leaky_relu) at a kink, as torch has it."""
    return sloped(kind, z, torch.ones_like(z))


def curvature(kind: str, z: Tensor) -> Tensor:
    """``a″(z)``; zero at a kink."""
    if kind not in CURVED:
        return torch.zeros_like(z)
    gate = torch.sigmoid(z)
    bend = gate * (1 - gate)
    match kind:
        case "softplus":
            return torch.where(z < STRAIGHT, bend, 0)
        case "sigmoid":
            return bend * (1 - 2 * gate)
        case _:
            return bend * (2 + z * (1 - 2 * gate))
