from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastdistill.students.convnet import ConvNet, activation_layer, named_sequence, normalization, pooling_layer


def build(channels=3, height=32, width=32, num_classes=10, **options):
    defaults = {"depth": 3, "net_width": 128, "norm": "instance", "activation": "relu", "pooling": "avg"}
    with torch.device("meta"):
        return ConvNet(
            channels=channels, height=height, width=width, num_classes=num_classes, **{**defaults, **options}
        )


def parameter_count(student):
    return sum(parameter.numel() for parameter in student.parameters())


def map_shapes(student, channels, height, width):
    maps, shapes = torch.empty(2, channels, height, width, device="meta"), []
    for block in student.body:
        maps = block(maps)
        shapes.append(tuple(maps.shape[1:]))
    return shapes


@pytest.mark.parametrize(
    ("channels", "side", "num_classes", "depth", "count"),
    [
        (3, 32, 10, 3, 320_010),
        (1, 28, 10, 3, 317_706),
        (3, 32, 100, 3, 504_420),
        (3, 64, 200, 3, 1_938_120),
        (3, 64, 200, 4, 857_160),
    ],
)
def test_published_parameter_counts(channels, side, num_classes, depth, count):
    assert parameter_count(build(channels, side, side, num_classes, depth=depth)) == count


@pytest.mark.parametrize(
    ("channels", "side", "depth", "sides"),
    [(3, 32, 3, [16, 8, 4]), (1, 28, 3, [16, 8, 4]), (3, 64, 4, [32, 16, 8, 4]), (3, 128, 5, [64, 32, 16, 8, 4])],
)
def test_feature_maps(channels, side, depth, sides):
    student = build(channels, side, side, depth=depth)
    assert map_shapes(student, channels, side, side) == [(128, map_side, map_side) for map_side in sides]
    assert student.features(torch.empty(2, channels, side, side, device="meta")).shape == (2, 128 * sides[-1] ** 2)


def test_default_network_has_14_parameter_tensors_in_the_published_order():
    student = build()
    block = [("convolution.weight", 4), ("convolution.bias", 1), ("norm.weight", 1), ("norm.bias", 1)]
    expected = [(f"body.{depth}.{name}", dimensions) for depth in range(3) for name, dimensions in block]
    expected += [("classifier.weight", 2), ("classifier.bias", 1)]
    assert [(name, parameter.dim()) for name, parameter in student.named_parameters()] == expected
    assert len(expected) == 14


@pytest.mark.parametrize(
    ("norm", "first_block", "second_block"),
    [
        ("none", 0, 0),
        ("instance", 16, 16),
        ("group", 16, 16),
        ("batch", 16, 16),
        ("layer", 2 * 8 * 12 * 6, 2 * 8 * 6 * 3),
    ],
)
def test_parameter_count_of_every_norm_on_a_rectangle(norm, first_block, second_block):
    student = build(3, 12, 6, 5, depth=2, net_width=8, norm=norm)
    convolutions = (8 * 3 * 9 + 8) + (8 * 8 * 9 + 8)
    classifier = 5 * 8 * 3 * 1 + 5
    assert parameter_count(student) == convolutions + first_block + second_block + classifier


@pytest.mark.parametrize("depth", range(1, 9))
def test_every_depth_without_pooling_keeps_the_side(depth):
    student = build(2, 5, 7, 4, depth=depth, net_width=4, pooling="none")
    assert map_shapes(student, 2, 5, 7) == [(4, 5, 7)] * depth
    assert student(torch.empty(3, 2, 5, 7, device="meta")).shape == (3, 4)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_forward_equals_the_formula(pooling):
    generator = torch.Generator().manual_seed(0)
    student = ConvNet(
        channels=1, height=6, width=6, num_classes=3, depth=2, net_width=4, norm="instance", activation="relu",
        pooling=pooling,
    ).double()  # fmt: skip
    weights = [
        torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for parameter in student.parameters()
    ]
    for parameter, value in zip(student.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    images = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64)
    pool = functional.avg_pool2d if pooling == "avg" else functional.max_pool2d
    maps = images
    for block, padding in enumerate((3, 1)):
        weight, bias, scale, shift = weights[4 * block : 4 * block + 4]
        maps = functional.conv2d(maps, weight, bias, padding=padding)
        variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
        maps = (maps - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        maps = pool(maps.clamp(min=0), 2)
    torch.testing.assert_close(student.features(images), maps.flatten(1), rtol=1e-12, atol=1e-12)
    logits = maps.flatten(1) @ weights[-2].T + weights[-1]
    torch.testing.assert_close(student(images), logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("sigmoid", lambda x: 1 / (1 + (-x).exp())),
        ("swish", lambda x: x / (1 + (-x).exp())),
        ("softplus", lambda x: (1 + x.exp()).log()),
    ],
)
def test_activations(name, formula):
    inputs = torch.linspace(-3, 3, 40, dtype=torch.float64)
    kept = inputs.clone()
    torch.testing.assert_close(activation_layer(name)(inputs), formula(kept), rtol=1e-12, atol=1e-12)
    assert torch.equal(inputs, kept)


def test_norm_layers():
    assert (normalization("instance", 8, 4, 4).num_groups, normalization("group", 8, 4, 4).num_groups) == (8, 4)
    assert normalization("layer", 8, 4, 2).normalized_shape == (8, 4, 2)
    assert isinstance(normalization("batch", 8, 1, 1), nn.BatchNorm2d)


def test_named_sequence_leaves_out_none():
    sequence = named_sequence(first=nn.ReLU(), second=None, third=nn.Sigmoid())
    assert [name for name, _ in sequence.named_children()] == ["first", "third"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "expected a depth of 1 to 8, got 0"),
        ({"depth": 9}, "expected a depth of 1 to 8, got 9"),
        ({"depth": 6}, "largest depth that fits is 5"),
        ({"channels": 1, "height": 8, "width": 20, "depth": 4}, "largest depth that fits is 3"),
        ({"norm": "weight"}, "expected a norm out of .*, got 'weight'"),
        ({"norm": "group", "net_width": 6}, "multiple of 4 for norm='group', got 6"),
        ({"height": 1, "width": 1, "pooling": "none"}, "feature map, which it makes constant"),
        ({"activation": "gelu"}, "expected an activation out of .*, got 'gelu'"),
        ({"pooling": "mean"}, "expected a pooling out of .*, got 'mean'"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_the_depth_named_by_the_error_builds():
    assert parameter_count(build(1, 8, 20, depth=3)) > 0
    assert pooling_layer("none") is None
