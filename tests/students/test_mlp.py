from __future__ import annotations

import pytest
import torch

from fastdistill.students.mlp import MLP


@pytest.mark.parametrize(
    ("channels", "height", "width", "num_classes"), [(1, 28, 28, 10), (3, 32, 32, 100), (2, 3, 5, 4)]
)
def test_parameter_count_follows_the_image(channels, height, width, num_classes):
    with torch.device("meta"):
        student = MLP(channels=channels, height=height, width=width, num_classes=num_classes)
    pixels = channels * height * width
    expected = (pixels * 128 + 128) + (128 * 128 + 128) + (128 * num_classes + num_classes)
    assert sum(parameter.numel() for parameter in student.parameters()) == expected
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.features(images).shape == (2, 128)
    assert student(images).shape == (2, num_classes)


def test_forward_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    student = MLP(channels=2, height=3, width=2, num_classes=4).double()
    weights = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in student.parameters()]
    for parameter, value in zip(student.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    images = torch.randn(5, 2, 3, 2, generator=generator, dtype=torch.float64)
    hidden = images.reshape(5, 12)
    for weight, bias in (weights[0:2], weights[2:4]):
        hidden = (hidden @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(student.features(images), hidden, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student(images), hidden @ weights[4].T + weights[5], rtol=1e-12, atol=1e-12)
