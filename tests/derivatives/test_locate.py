"""Naming the layer where numbers stop being finite."""

import pytest
import torch
from torch import nn

from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.locate import first_nonfinite


class Explosive(nn.Module):
    """Its first convolution overflows on bright images, the square root has an infinite slope at zero."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.classifier = nn.Linear(2, 3)

    def forward(self, images):
        return self.classifier(self.norm(self.first(images)).mean((2, 3)).abs().sqrt())


@pytest.fixture
def student():
    module = Explosive()
    layout = Layout.of(module)
    weights = layout.flatten({name: torch.full(shape, 0.5) for name, shape in layout.shapes.items()})
    return module, layout, weights, dict(module.named_buffers())


def batch(value):
    return {"real images": (torch.full((2, 1, 4, 4), value), torch.tensor([0, 2]))}


def test_a_finite_student_is_named_nowhere(student):
    module, _, weights, buffers = student
    assert first_nonfinite(module, weights, buffers, batch(1.0)) == ""


def test_weights_come_first(student):
    module, layout, weights, buffers = student
    layout.views(weights)["classifier.weight"][0, 0] = torch.inf
    assert first_nonfinite(module, weights, buffers, batch(1.0)) == "weights classifier.weight"


def test_buffers_are_looked_at(student):
    module, _, weights, buffers = student
    buffers["norm.running_var"] = torch.tensor([1.0, torch.nan])
    assert first_nonfinite(module, weights, buffers, batch(1.0)) == "buffer norm.running_var"


def test_the_first_output_is_named(student):
    module, layout, weights, buffers = student
    layout.views(weights)["first.weight"].fill_(1e30)
    assert first_nonfinite(module, weights, buffers, batch(1e20)) == "output of first on real images"


def test_images_may_be_the_cause(student):
    module, _, weights, buffers = student
    assert first_nonfinite(module, weights, buffers, batch(torch.nan)) == "real images"


def test_a_gradient_may_be_the_cause(student):
    module, layout, weights, buffers = student
    layout.views(weights)["first.weight"].zero_()
    layout.views(weights)["first.bias"].zero_()
    layout.views(weights)["norm.bias"].zero_()
    assert first_nonfinite(module, weights, buffers, batch(1.0)) == "gradient of first.weight on real images"
