from __future__ import annotations

import pytest
import torch

from fastdistill.students.lenet import LeNet


def build(channels, height, width, num_classes=10):
    with torch.device("meta"):
        return LeNet(channels=channels, height=height, width=width, num_classes=num_classes)


def parameter_count(student):
    return sum(parameter.numel() for parameter in student.parameters())


def test_published_parameter_count_on_mnist():
    assert parameter_count(build(1, 28, 28)) == 61_706


@pytest.mark.parametrize(
    ("channels", "height", "width", "map_height", "map_width"),
    [(1, 28, 28, 5, 5), (3, 32, 32, 5, 5), (3, 28, 64, 4, 13), (1, 12, 13, 1, 1), (3, 16, 17, 1, 1)],
)
def test_maps_and_count(channels, height, width, map_height, map_width):
    student = build(channels, height, width, 7)
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.body(images).shape == (2, 16, map_height, map_width)
    assert student.features(images).shape == (2, 84)
    assert student(images).shape == (2, 7)
    convolutions = (6 * channels * 25 + 6) + (16 * 6 * 25 + 16)
    linears = (16 * map_height * map_width * 120 + 120) + (120 * 84 + 84) + (84 * 7 + 7)
    assert parameter_count(student) == convolutions + linears


@pytest.mark.parametrize(("channels", "height", "smallest"), [(1, 11, 12), (3, 15, 16)])
def test_too_small_an_image_names_the_smallest(channels, height, smallest):
    with pytest.raises(ValueError, match=f"at least {smallest} x {smallest} pixels"):
        build(channels, height, 40)
