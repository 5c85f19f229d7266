"""A student's traced graph read into dual layers, neighbours fused where one operator computes them.

Nothing here knows a student class: what can be read is what `torch.fx` finds in the module's forward pass.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fastdistill.derivatives.dual.layer import Layer
from fastdistill.derivatives.dual.normalised import FirstBlock, NormActPool
from fastdistill.derivatives.dual.plain import Add, AveragePool, Flatten, FrozenNorm
from fastdistill.derivatives.dual.products import Convolution, Linear

_FEW_CHANNELS = 3  # of a first block
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class Unsupported(ValueError):
    """What a student is made of and the dual program has no layer for."""


@dataclass(frozen=True)
class Step:
    """A layer and the values it reads and makes, by number; 0 is the images."""

    layer: Layer
    inputs: tuple[int, ...]
    output: int


def read(module: nn.Module, *, precision: str = "ieee", first_block: bool = False, inlined: bool = False) -> list[Step]:
    """The steps of a student's forward pass in eval mode, fused.

    Args:
        module: maps images ``[n, D, H, W]`` to logits ``[n, C]``.
        precision: of float32 products on a device, ``ieee`` or ``tf32``.
        first_block: compute a first convolution of few channels together with what follows it, which saves traffic
            where that is what a step costs.
        inlined: for a program that is compiled for a CPU.

    Raises:
        Unsupported: naming what cannot be read.
    """
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:  # a forward pass may do anything with what a tracer hands it
        raise Unsupported(f"its forward pass cannot be traced ({type(error).__name__}: {error})") from error
    modules, numbers, steps = dict(module.named_modules()), dict[fx.Node, int](), list[Step]()
    for node in graph.nodes:
        if node.op == "placeholder":
            if numbers:
                raise Unsupported("its forward pass has more than one input")
            numbers[node] = 0
        elif node.op == "output":
            last = node.args[0]
            if not isinstance(last, fx.Node) or not steps or numbers[last] != steps[-1].output:
                raise Unsupported("its forward pass does not end with its last layer's output")
        else:
            layer = _layer(node, modules, precision)
            inputs = tuple(numbers[argument] for argument in node.all_input_nodes)
            if layer is None:  # the identity
                numbers[node] = inputs[0]
                continue
            if isinstance(layer, Add) and len(inputs) != 2:
                raise Unsupported(f"it adds something else than two layers' outputs ({node.name})")
            numbers[node] = len(steps) + 1
            steps.append(Step(layer, inputs, len(steps) + 1))
    if not isinstance(steps[-1].layer if steps else None, Linear):
        raise Unsupported("its last layer is not linear")
    return [replace(step, layer=_inlined(step.layer)) if inlined else step for step in _fused(steps, first_block)]


def _inlined(layer: Layer) -> Layer:
    return replace(layer, inlined=True) if isinstance(layer, Convolution | Linear | NormActPool) else layer


def _layer(node: fx.Node, modules: dict[str, nn.Module], precision: str) -> Layer | None:
    if node.op == "call_module":
        name = str(node.target)
        return _of_module(modules[name], f"{name}.", precision)
    if node.op == "call_function":
        if node.target in _ADDITIONS:
            return Add()
        if node.target in (torch.relu, functional.relu):
            return NormActPool(activation="relu")
        if node.target is torch.flatten and _flattens(node):
            return Flatten()
    if node.op == "call_method":
        if node.target == "relu":
            return NormActPool(activation="relu")
        if node.target == "flatten" and _flattens(node):
            return Flatten()
    if node.op == "get_attr":
        raise Unsupported(f"it uses {node.target} outside of a layer")
    raise Unsupported(f"it calls {getattr(node.target, '__name__', node.target)}")


def _flattens(node: fx.Node) -> bool:
    """All axes but the first."""
    bounds = (*node.args[1:], *node.kwargs.values())
    return bounds in ((1,), (1, -1))


def _of_module(layer: nn.Module, prefix: str, precision: str) -> Layer | None:
    names = tuple(prefix + name for name, _ in layer.named_parameters(recurse=False))
    match layer:
        case nn.Identity():
            return None
        case nn.Conv2d() if _plain_convolution(layer):
            kernel, stride, padding = (_one(side) for side in (layer.kernel_size, layer.stride, layer.padding))
            return Convolution(names, layer.in_channels, kernel, stride, padding, precision)
        case nn.Linear():
            return Linear(names, precision)
        case nn.InstanceNorm2d() if not layer.track_running_stats:
            return NormActPool(names, groups=None, eps=layer.eps)
        case nn.GroupNorm():
            groups = None if layer.num_groups == layer.num_channels else layer.num_groups
            return NormActPool(names, groups=groups, eps=layer.eps)
        case nn.LayerNorm() if len(layer.normalized_shape) == 3 and len(names) != 1:
            return NormActPool(names, groups=1, eps=layer.eps)
        case nn.BatchNorm2d() if layer.track_running_stats and layer.running_mean is not None:
            buffers = (f"{prefix}running_mean", f"{prefix}running_var")
            return FrozenNorm(names, buffers, layer.eps)
        case nn.AvgPool2d() if not (layer.padding or layer.ceil_mode or layer.divisor_override):
            window, steps = _two(layer.kernel_size), _two(layer.stride)
            return NormActPool(pooling="avg") if window == steps == (2, 2) else AveragePool(window, steps)
        case nn.AdaptiveAvgPool2d() if layer.output_size in (1, (1, 1)):
            return AveragePool()
        case nn.MaxPool2d() if (_two(layer.kernel_size), _two(layer.stride), _two(layer.dilation)) == (
            (2, 2),
            (2, 2),
            (1, 1),
        ) and not (layer.padding or layer.ceil_mode or layer.return_indices):
            return NormActPool(pooling="max")
        case nn.Flatten() if (layer.start_dim, layer.end_dim) == (1, -1):
            return Flatten()
    activation = _activation(layer)
    if activation is None:
        raise Unsupported(f"there is no dual layer for {layer}")
    return NormActPool(activation=activation)


def _activation(layer: nn.Module) -> str | None:
    match layer:
        case nn.ReLU():
            return "relu"
        case nn.LeakyReLU() if layer.negative_slope == 0.01:
            return "leaky_relu"
        case nn.Sigmoid():
            return "sigmoid"
        case nn.SiLU():
            return "swish"
        case nn.Softplus() if (layer.beta, layer.threshold) == (1, 20):
            return "softplus"
    return None


def _plain_convolution(layer: nn.Conv2d) -> bool:
    square = all(isinstance(sides, tuple) and len(set(sides)) == 1 for sides in (layer.kernel_size, layer.stride))
    padded = isinstance(layer.padding, tuple) and len(set(layer.padding)) == 1 and layer.padding_mode == "zeros"
    return square and padded and layer.groups == 1 and set(layer.dilation) == {1}


def _one(sides: Any) -> int:
    return int(sides[0])


def _two(sides: Any) -> tuple[int, int]:
    return tuple(sides) if isinstance(sides, Sequence) else (sides, sides)


def _fused(steps: list[Step], first_block: bool) -> list[Step]:
    """Neighbours as one layer, where nothing else reads what lies between."""
    readers = [number for step in steps for number in step.inputs]
    fused: list[Step] = []
    for step in steps:
        before = fused[-1] if fused else None
        alone = before is not None and step.inputs == (before.output,) and readers.count(before.output) == 1
        joined = _joined(before, step.layer, first_block) if before is not None and alone else None
        if before is not None and joined is not None:
            fused[-1] = Step(joined, before.inputs, step.output)
        else:
            fused.append(step)
    return fused


def _joined(before: Step, layer: Layer, first_block: bool) -> Layer | None:
    if not isinstance(layer, NormActPool):
        return None
    if isinstance(before.layer, NormActPool):
        return before.layer.then(layer)
    if isinstance(before.layer, FirstBlock):
        behind = before.layer.behind.then(layer)
        return None if behind is None else FirstBlock(before.layer.convolution, behind)
    if first_block and before.inputs == (0,) and isinstance(before.layer, Convolution):
        convolution, whole = before.layer, layer.groups is None and bool(layer.weights)
        plain = (convolution.kernel, convolution.stride) == (3, 1) and convolution.channels <= _FEW_CHANNELS
        return FirstBlock(convolution, layer) if plain and (whole or layer.groups == 0) else None
    return None
