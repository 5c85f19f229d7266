from __future__ import annotations

import pytest
import torch
from torch import nn

from fastdistill.students.vgg import VGG11


def build(channels, height, width, num_classes=10, norm="instance"):
    with torch.device("meta"):
        return VGG11(channels=channels, height=height, width=width, num_classes=num_classes, norm=norm)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    ("channels", "height", "width", "map_height", "map_width"),
    [(3, 32, 32, 1, 1), (1, 28, 28, 1, 1), (3, 64, 32, 2, 1), (3, 63, 96, 1, 3)],
)
def test_maps_and_count(channels, height, width, map_height, map_width, norm):
    student = build(channels, height, width, 7, norm)
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.body(images).shape == (2, 512, map_height, map_width)
    assert student.features(images).shape == (2, 512 * map_height * map_width)
    assert student(images).shape == (2, 7)
    pairs = [(channels, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    convolutions_and_norms = sum(outgoing * incoming * 9 + outgoing + 2 * outgoing for incoming, outgoing in pairs)
    classifier = 512 * map_height * map_width * 7 + 7
    assert sum(parameter.numel() for parameter in student.parameters()) == convolutions_and_norms + classifier


def test_pools_follow_convolutions_1_2_4_6_8():
    kinds = [type(layer) for layer in build(3, 32, 32).body if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    convolution, pool = nn.Conv2d, nn.MaxPool2d
    expected = [convolution, pool, convolution, pool] + 3 * [convolution, convolution, pool]
    assert kinds == expected


def test_norm_decides_the_buffers():
    assert list(build(3, 32, 32).buffers()) == []
    assert len(list(build(3, 32, 32, norm="batch").buffers())) == 8 * 3


@pytest.mark.parametrize(("channels", "height", "smallest"), [(1, 27, 28), (3, 31, 32)])
def test_too_small_an_image_names_the_smallest(channels, height, smallest):
    with pytest.raises(ValueError, match=f"at least {smallest} x {smallest} pixels"):
        build(channels, height, 40)


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError, match=f"norm='instance' or norm='batch' for VGG11, got '{norm}'"):
        build(3, 32, 32, norm=norm)
