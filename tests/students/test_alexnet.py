from __future__ import annotations

import pytest
import torch

from fastdistill.students.alexnet import AlexNet


def build(channels, height, width, num_classes=10):
    with torch.device("meta"):
        return AlexNet(channels=channels, height=height, width=width, num_classes=num_classes)


@pytest.mark.parametrize(
    ("channels", "height", "width", "map_height", "map_width"),
    [(3, 32, 32, 4, 4), (1, 28, 28, 4, 4), (3, 64, 40, 8, 5), (1, 4, 4, 1, 1), (3, 8, 15, 1, 1)],
)
def test_maps_and_count(channels, height, width, map_height, map_width):
    student = build(channels, height, width, 7)
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.body(images).shape == (2, 192, map_height, map_width)
    assert student.features(images).shape == (2, 192 * map_height * map_width)
    assert student(images).shape == (2, 7)
    convolutions = (
        (128 * channels * 25 + 128)
        + (192 * 128 * 25 + 192)
        + (256 * 192 * 9 + 256)
        + (192 * 256 * 9 + 192)
        + (192 * 192 * 9 + 192)
    )
    classifier = 192 * map_height * map_width * 7 + 7
    assert sum(parameter.numel() for parameter in student.parameters()) == convolutions + classifier


@pytest.mark.parametrize(("channels", "height", "smallest"), [(1, 3, 4), (3, 7, 8)])
def test_too_small_an_image_names_the_smallest(channels, height, smallest):
    with pytest.raises(ValueError, match=f"at least {smallest} x {smallest} pixels"):
        build(channels, height, 40)
