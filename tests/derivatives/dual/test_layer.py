"""Every dual layer against torch.func on the module it stands for, in float64. A new layer is a row here."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vjp, vmap

from fastdistill.derivatives.dual.layer import Layer, Wanted
from fastdistill.derivatives.dual.normalised import FirstBlock, NormActPool
from fastdistill.derivatives.dual.plain import Add, AveragePool, Flatten, FrozenNorm
from fastdistill.derivatives.dual.products import Convolution, Linear

NORM = ("weight", "bias")
IMAGES, VECTORS = (4, 6, 5), (7,)


class Sum(nn.Module):
    def forward(self, first, second):
        return first + second


@dataclass(frozen=True)
class Row:
    layer: Layer
    module: nn.Module
    shape: tuple[int, ...] = IMAGES
    inputs: int = 1
    of_images: bool = False  # its input is the images, which have no tangent


def grey(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=2), *layers)


FIRST = Convolution(("0.weight", "0.bias"), 1, 3, 1, 2)
ROWS = {
    "convolution": Row(Convolution(NORM, 4, 3, 1, 1), nn.Conv2d(4, 5, 3, padding=1)),
    "strided": Row(Convolution(("weight",), 4, 3, 2, 1), nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False)),
    "pointwise": Row(Convolution(("weight",), 4, 1, 2, 0), nn.Conv2d(4, 5, 1, stride=2, bias=False)),
    "five": Row(Convolution(NORM, 4, 5, 1, 2), nn.Conv2d(4, 3, 5, padding=2)),
    "linear": Row(Linear(NORM), nn.Linear(7, 3), VECTORS),
    "linear without bias": Row(Linear(("weight",)), nn.Linear(7, 3, bias=False), VECTORS),
    "instance": Row(NormActPool(NORM, groups=None), nn.GroupNorm(4, 4)),
    "group": Row(
        NormActPool(NORM, groups=2, activation="relu", pooling="avg"),
        nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2)),
    ),
    "layer": Row(
        NormActPool(NORM, groups=1, activation="swish", pooling="max"),
        nn.Sequential(nn.LayerNorm(IMAGES), nn.SiLU(), nn.MaxPool2d(2)),
    ),
    "relu": Row(NormActPool(activation="relu"), nn.ReLU(), VECTORS),
    "leaky": Row(NormActPool(activation="leaky_relu", pooling="avg"), nn.Sequential(nn.LeakyReLU(), nn.AvgPool2d(2))),
    "softplus": Row(NormActPool(activation="softplus"), nn.Softplus()),
    "sigmoid": Row(NormActPool(activation="sigmoid", pooling="max"), nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2))),
    "pool": Row(NormActPool(pooling="avg"), nn.AvgPool2d(2)),
    "first block": Row(
        FirstBlock(FIRST, NormActPool(("1.weight", "1.bias"), groups=None, activation="softplus", pooling="avg")),
        grey(nn.GroupNorm(4, 4), nn.Softplus(), nn.AvgPool2d(2)),
        (1, 5, 6),
        of_images=True,
    ),
    "first block without norm": Row(
        FirstBlock(FIRST, NormActPool(activation="relu", pooling="max")),
        grey(nn.ReLU(), nn.MaxPool2d(2)),
        (1, 5, 6),
        of_images=True,
    ),
    "frozen": Row(FrozenNorm(NORM, ("running_mean", "running_var"), 1e-5), nn.BatchNorm2d(4)),
    "frozen without affine": Row(
        FrozenNorm((), ("running_mean", "running_var"), 1e-5), nn.BatchNorm2d(4, affine=False)
    ),
    "average": Row(AveragePool((3, 2), (2, 2)), nn.AvgPool2d((3, 2), 2)),
    "global": Row(AveragePool(), nn.AdaptiveAvgPool2d(1)),
    "flatten": Row(Flatten(), nn.Flatten()),
    "add": Row(Add(), Sum(), inputs=2),
}
STUDENTS, GROUPS, COUNT = 2, 3, 2


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(row):
    """Of the module's parameters, in the order of the layer's."""
    given = list(dict(row.module.named_parameters()))
    assert len(given) == len(row.layer.weights)
    return given


def problem(row):
    parameters = dict(row.module.named_parameters())
    own = tuple(random(STUDENTS, *parameters[name].shape, seed=seed) for seed, name in enumerate(names(row)))
    along = tuple(random(STUDENTS, GROUPS, *one.shape[1:], seed=10 + seed) for seed, one in enumerate(own))
    buffers = {
        name: random(STUDENTS, *tensor.shape, seed=20).abs()
        for name, tensor in row.module.named_buffers()
        if tensor.is_floating_point()
    }
    lead = (STUDENTS, GROUPS, COUNT)
    xs, dxs = (tuple(random(*lead, *row.shape, seed=s + k) for k in range(row.inputs)) for s in (30, 40))
    return own, along, buffers, xs, tuple(None for _ in dxs) if row.of_images else dxs


def paired(function):
    """Over students and groups; arguments: what students have, what pairs have."""
    return vmap(vmap(function, in_dims=(None, None, 0)), in_dims=(0, 0, 0))


def function_of(row, buffers):
    module = row.module.eval()

    def apply(weights, *xs):
        return functional_call(module, {**dict(zip(names(row), weights, strict=True)), **buffers}, xs)

    return apply


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-3))  # a bias before a norm has no gradient


def given_by(layer, own, buffers):
    return (*own, *(buffers[name] for name in layer.buffers))


LAYERS = {name: row.layer for name, row in ROWS.items()} | {
    f"{name}, inlined": replace(row.layer, inlined=True) for name, row in ROWS.items() if hasattr(row.layer, "inlined")
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_module_with_its_derivatives(name):
    row, layer = ROWS[name.removesuffix(", inlined")], LAYERS[name]
    own, along, buffers, xs, dxs = problem(row)
    given = given_by(layer, own, buffers)
    y, kept = layer.forward(given, *xs)
    dual_y, dy, dual_kept = layer.dual_forward(given, along, xs, dxs)
    gy, dgy = random(*y.shape, seed=50), random(*y.shape, seed=51)
    wanted = Wanted(weights=True, inputs=True)
    gxs, slopes = layer.backward(given, kept, gy, wanted)
    dual_gxs, dgxs, dslopes = layer.dual_backward(given, along, dual_kept, gy, dgy, wanted)
    assert relative(dual_y, y) <= 1e-14
    for s in range(STUDENTS):
        state = {key: tensor[s] for key, tensor in buffers.items()}
        weights = tuple(one[s] for one in own)
        apply = function_of(row, state)
        for g in range(GROUPS):
            x, tangents = tuple(one[s, g] for one in xs), tuple(one[s, g] for one in along)
            dx = tuple(torch.zeros_like(o) if one is None else one[s, g] for o, one in zip(x, dxs, strict=True))

            def both(weights, *x, apply=apply, bar=gy[s, g], dbar=dgy[s, g]):  # cotangents along a moving bar
                value, pull = vjp(apply, weights, *x)
                return value, pull(bar), pull(dbar)

            (value, pulled, _), (moved, second, _) = jvp(both, (weights, *x), (tangents, *dx))
            through = both(weights, *x)[2]
            assert relative(y[s, g], value) <= 1e-12
            assert relative(dy[s, g], moved) <= 1e-12
            for found, expected in zip(slopes, pulled[0], strict=True):
                assert relative(found[s, g], expected) <= 1e-11
            for found, expected in zip(gxs, pulled[1:], strict=True):
                assert relative(found[s, g], expected) <= 1e-11
            # the tangent of a cotangent: along weights and inputs, and along its own
            for found, fixed, moving in zip(dslopes, second[0], through[0], strict=True):
                assert relative(found[s, g], fixed + moving) <= 1e-10
            for found, fixed, moving in zip(dgxs, second[1:], through[1:], strict=True):
                assert relative(found[s, g], fixed + moving) <= 1e-10
            for found, expected in zip(dual_gxs, pulled[1:], strict=True):
                assert found is None or relative(found[s, g], expected) <= 1e-11


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.layer.weights])
def test_what_is_not_wanted_is_not_given(name):
    row = ROWS[name]
    own, along, buffers, xs, dxs = problem(row)
    given = given_by(row.layer, own, buffers)
    y, kept = row.layer.forward(given, *xs)
    _, _, dual_kept = row.layer.dual_forward(given, along, xs, dxs)
    nothing = Wanted(weights=False, inputs=True)
    assert row.layer.backward(given, kept, torch.ones_like(y), nothing)[1] == ()
    bars = torch.ones_like(y), torch.ones_like(y)
    assert row.layer.dual_backward(given, along, dual_kept, *bars, nothing)[2] == ()
