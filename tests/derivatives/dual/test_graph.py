import operator

import pytest
import torch
from torch import fx, nn

from fastdistill.derivatives.dual.graph import Unsupported, read
from fastdistill.derivatives.dual.normalised import FirstBlock, NormActPool
from fastdistill.derivatives.dual.plain import Add, AveragePool, Flatten, FrozenNorm
from fastdistill.derivatives.dual.products import Convolution, Linear
from fastdistill.students.architectures import build_student


def student(architecture, **options):
    return build_student(architecture, channels=3, height=32, width=32, num_classes=10, **options)


def layers(module, **settings):
    return [step.layer for step in read(module, **settings)]


def test_norm_activation_and_pooling_are_one_layer():
    found = layers(student("convnet", depth=2, net_width=8))
    assert [type(layer) for layer in found] == [Convolution, NormActPool, Convolution, NormActPool, Flatten, Linear]
    assert found[0] == Convolution(("body.0.convolution.weight", "body.0.convolution.bias"), 3, 3, 1, 1)
    assert found[1] == NormActPool(
        ("body.0.norm.weight", "body.0.norm.bias"), groups=None, activation="relu", pooling="avg"
    )


def test_the_first_convolution_is_fused_where_that_is_asked_for():
    found = layers(student("convnet", depth=2, net_width=8), first_block=True)
    assert [type(layer) for layer in found] == [FirstBlock, Convolution, NormActPool, Flatten, Linear]
    assert found[0].behind.pooling == "avg" and found[0].weights[2] == "body.0.norm.weight"
    # not with a norm of several channels, nor of another size
    assert type(layers(student("convnet", norm="group"), first_block=True)[0]) is Convolution
    assert type(layers(student("lenet"), first_block=True)[0]) is Convolution


def test_a_pooling_before_an_activation_stays_a_layer_of_its_own():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10))
    found = layers(module)
    assert [type(layer) for layer in found] == [Convolution, *[NormActPool] * 3, Flatten, Linear]
    assert [layer.pooling for layer in found[1:4]] == ["max", "none", "none"]


def test_what_two_layers_read_is_not_fused_away():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 10)

        def forward(self, x):
            hidden = self.first(x.flatten(1))
            return self.last(operator.add(torch.relu(hidden), hidden.relu().relu()))

    steps = read(Fork())
    assert [type(step.layer) for step in steps] == [Flatten, Linear, *[NormActPool] * 3, Add, Linear]
    assert steps[2].inputs == steps[3].inputs == (steps[1].output,)


def test_a_resnet_is_read_with_its_shortcuts():
    found = layers(student("resnet18", norm="batch"))
    assert sum(isinstance(layer, Add) for layer in found) == 8
    assert sum(isinstance(layer, FrozenNorm) for layer in found) == 20
    assert any(isinstance(layer, AveragePool) for layer in found)
    assert {layer.stride for layer in found if isinstance(layer, Convolution)} == {1, 2}


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x.flatten(1) + self.scale)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


LAST = (nn.Flatten(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Tanh(), *LAST), "no dual layer for Tanh"),
        (nn.Sequential(nn.LeakyReLU(0.2), *LAST), "no dual layer for LeakyReLU"),
        (nn.Sequential(nn.Softplus(2), *LAST), "no dual layer for Softplus"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), *LAST), "no dual layer for Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), *LAST), "no dual layer for Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, (3, 1)), *LAST), "no dual layer for Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), *LAST), "no dual layer for Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), *LAST), "no dual layer for Conv2d"),
        (nn.Sequential(nn.MaxPool2d(3, 2), *LAST), "no dual layer for MaxPool2d"),
        (nn.Sequential(nn.AvgPool2d(2, padding=1), *LAST), "no dual layer for AvgPool2d"),
        (nn.Sequential(nn.LayerNorm(8), *LAST), "no dual layer for LayerNorm"),
        (nn.Sequential(nn.Dropout(), *LAST), "no dual layer for Dropout"),
        (nn.Sequential(Square(), *LAST), "it calls mul"),
        (Scaled(), "it uses scale outside of a layer"),
        (Branch(), "cannot be traced"),
        (nn.Sequential(nn.Flatten()), "its last layer is not linear"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(3, 2)), "no dual layer for Flatten"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_read_is_named(module, says):
    with pytest.raises(Unsupported, match=says):
        read(module)


def test_reading_leaves_the_module_alone():
    module = student("convnet", norm="batch").train()
    read(module)
    assert module.training and not isinstance(module, fx.GraphModule)
