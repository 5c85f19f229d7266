"""Where in a student numbers first stop being finite; for messages, after the fact."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from fastdistill.derivatives.functional import Buffers, cross_entropy_sum
from fastdistill.derivatives.layout import Layout


def first_nonfinite(
    module: nn.Module,
    weights: Tensor,
    buffers: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    *,
    training: bool = False,
) -> str:
    """Names the first layer of one student that holds or gives a number that is not finite.

    Weights and buffers are looked at first, then the outputs of the layers in the order of the forward pass, then the
    gradients of the weights.

    Args:
        module: the student's architecture.
        weights: ``[P]``.
        buffers: name to value; never modified.
        batch: what the student sees, by name: ``(images [n, D, H, W], labels [n] or [n, C])``.
        training: run the module in train mode.

    Returns:
        A noun phrase such as ``output of features.0 on real images``; empty when everything is finite.
    """
    parameters, state = Layout.of(module).views(weights), dict(buffers)
    quiet = copy.deepcopy(module).train(training)
    for kind, tensors in (("weights", parameters), ("buffer", state)):
        for name, tensor in tensors.items():
            if not _finite(tensor):
                return f"{kind} {name}"
    for name, (images, labels) in batch.items():
        if not _finite(images):
            return f"{name}"
        layer = _first_output(quiet, parameters, state, images)
        if layer:
            return f"output of {layer} on {name}"
        gradient = _gradient(quiet, parameters, state, images, labels)
        for tensor_name, tensor in gradient.items():
            if not _finite(tensor):
                return f"gradient of {tensor_name} on {name}"
    return ""


def _copies(state: Buffers) -> Buffers:
    """For a module in train mode, which writes its buffers in place."""
    return {name: tensor.clone() for name, tensor in state.items()}


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _first_output(module: nn.Module, parameters: Buffers, state: Buffers, images: Tensor) -> str:
    found: list[str] = []
    watched = copy.deepcopy(module)
    for name, layer in watched.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda _layer, _inputs, output, name=name: None if _finite(output) else found.append(name)
            )
    with torch.no_grad():
        functional_call(watched, {**parameters, **_copies(state)}, (images,))
    return found[0] if found else ""


def _gradient(module: nn.Module, parameters: Buffers, state: Buffers, images: Tensor, labels: Tensor) -> Buffers:
    def loss(parameters: Buffers) -> Tensor:
        logits: Tensor = functional_call(module, {**parameters, **_copies(state)}, (images,))
        return cross_entropy_sum(logits, labels) / len(images)

    gradient: Buffers = grad(loss)(parameters)
    return gradient
