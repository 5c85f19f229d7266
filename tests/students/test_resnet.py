from __future__ import annotations

import pytest
import torch

from fastdistill.students.resnet import BasicBlock, ResNet18, ResNet18AP


def build(architecture, channels, height, width, num_classes=10, norm="instance"):
    with torch.device("meta"):
        return architecture(channels=channels, height=height, width=width, num_classes=num_classes, norm=norm)


def parameter_count(student):
    return sum(parameter.numel() for parameter in student.parameters())


def body_parameter_count(channels):
    """Stem, then two blocks per stage; the first block of all stages but the first has a 1x1 shortcut; a norm has 2."""
    total, incoming = 64 * channels * 9 + 2 * 64, 64
    for outgoing in (64, 128, 256, 512):
        total += (outgoing * incoming * 9 + 2 * outgoing) + (outgoing * outgoing * 9 + 2 * outgoing)
        total += 2 * (outgoing * outgoing * 9 + 2 * outgoing)
        total += outgoing * incoming + 2 * outgoing if incoming != outgoing else 0
        incoming = outgoing
    return total


def map_sides(student, channels, height, width):
    maps, shapes = student.stem(torch.empty(2, channels, height, width, device="meta")), []
    for block in student.body:
        maps = block(maps)
        assert (block.height, block.width) == tuple(maps.shape[2:])
        shapes.append(tuple(maps.shape[1:]))
    return shapes[1::2]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    ("architecture", "channels", "height", "width", "sides", "features"),
    [
        (ResNet18, 3, 32, 32, [(32, 32), (16, 16), (8, 8), (4, 4)], 512),
        (ResNet18, 1, 28, 28, [(28, 28), (14, 14), (7, 7), (4, 4)], 512),
        (ResNet18, 3, 64, 9, [(64, 9), (32, 5), (16, 3), (8, 2)], 512),
        (ResNet18AP, 3, 32, 32, [(32, 32), (16, 16), (8, 8), (4, 4)], 512 * 16),
        (ResNet18AP, 1, 28, 28, [(28, 28), (14, 14), (7, 7), (3, 3)], 512 * 9),
        (ResNet18AP, 3, 64, 17, [(64, 17), (32, 8), (16, 4), (8, 2)], 512 * 16),
    ],
)
def test_maps_and_count(architecture, channels, height, width, sides, features, norm):
    student = build(architecture, channels, height, width, 7, norm)
    maps = [(stage_width, *side) for stage_width, side in zip((64, 128, 256, 512), sides, strict=True)]
    assert map_sides(student, channels, height, width) == maps
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.features(images).shape == (2, features)
    assert student(images).shape == (2, 7)
    assert parameter_count(student) == body_parameter_count(channels) + features * 7 + 7


def test_counts_at_the_published_setting():
    # 11,173,962 is the count commonly quoted for ResNet18 with the stem for 32-pixel images.
    assert parameter_count(build(ResNet18, 3, 32, 32)) == 11_173_962
    assert parameter_count(build(ResNet18AP, 3, 32, 32)) == 11_173_962 + 10 * 512 * 15


@pytest.mark.parametrize("average_pooled", [False, True])
def test_block_equals_the_formula(average_pooled):
    generator = torch.Generator().manual_seed(0)
    block = BasicBlock(
        incoming=3, outgoing=4, height=6, width=8, halving=True, average_pooled=average_pooled, norm="instance"
    ).double()
    for parameter in block.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = dict(block.named_parameters())
    maps = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64)

    def normalised(values, name):
        variance, mean = torch.var_mean(values, dim=(2, 3), correction=0, keepdim=True)
        scale, shift = weights[f"{name}.weight"][:, None, None], weights[f"{name}.bias"][:, None, None]
        return (values - mean) / (variance + 1e-5).sqrt() * scale + shift

    def convolved(values, name, padding, stride):
        return torch.nn.functional.conv2d(values, weights[f"{name}.weight"], padding=padding, stride=stride)

    def halved(values):
        return values.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5)) if average_pooled else values

    stride = 1 if average_pooled else 2
    inner = halved(normalised(convolved(maps, "residual.convolution1", 1, stride), "residual.norm1").clamp(min=0))
    inner = normalised(convolved(inner, "residual.convolution2", 1, 1), "residual.norm2")
    shortcut = normalised(halved(convolved(maps, "shortcut.convolution", 0, stride)), "shortcut.norm")
    torch.testing.assert_close(block(maps), (inner + shortcut).clamp(min=0), rtol=1e-11, atol=1e-11)


def test_global_pooling_is_the_mean_of_the_last_map():
    student = build(ResNet18, 3, 32, 32).to_empty(device="cpu")
    maps = torch.randn(2, 512, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student.pool(maps)[:, :, 0, 0], maps.mean((2, 3)))


def test_convolutions_have_no_bias():
    names = [name for name, _ in build(ResNet18, 3, 32, 32).named_parameters() if "convolution" in name]
    assert len(names) == 1 + 16 + 3
    assert all(name.endswith(".weight") for name in names)


@pytest.mark.parametrize(
    ("architecture", "side", "norm", "message"),
    [
        (ResNet18AP, 7, "batch", "at least 8 x 8 pixels for ResNet18AP, got 7 x 7"),
        (ResNet18AP, 15, "instance", "got a 512 x 1 x 1 feature map, which it makes constant"),
        (ResNet18, 8, "instance", "got a 512 x 1 x 1 feature map, which it makes constant"),
        (ResNet18, 32, "layer", "norm='instance' or norm='batch' for ResNet18, got 'layer'"),
        (ResNet18AP, 32, "none", "norm='instance' or norm='batch' for ResNet18AP, got 'none'"),
    ],
)
def test_errors_say_what_to_do(architecture, side, norm, message):
    with pytest.raises(ValueError, match=message):
        build(architecture, 3, side, side, norm=norm)


@pytest.mark.parametrize(("architecture", "side"), [(ResNet18, 1), (ResNet18AP, 8)])
def test_batch_norm_takes_the_smallest_images(architecture, side):
    student = build(architecture, 3, side, side, norm="batch")
    assert student(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)
