"""What a dual program is predicted to hold and compute, against what it does."""

import pytest
import torch

from fastdistill.derivatives.dual.sketch import DualSketch
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.primitive import make_primitive, make_sketch
from fastdistill.students.architectures import build_student

MODULE = build_student("convnet", channels=1, height=8, width=8, num_classes=10, depth=2, net_width=4)


def inputs():
    size = make_primitive(MODULE, Batching(path=Path.DUAL, piece=1, students=1)).layout.size
    lead = (3, 2, 7)
    labels = torch.randint(0, 10, lead)
    return torch.randn(3, size), torch.randn(*lead, 1, 8, 8), labels, torch.randn(3, 2, size)


def gradient(primitive, weights, images, labels, vector):
    return primitive.value_and_gradient(weights, {}, images, labels).gradient


def products(primitive, weights, images, labels, vector):
    found = primitive.products(weights, {}, images, labels, vector, wanted=("weights", "images"))
    return found.weights, found.images


def logits(primitive, weights, images, labels, vector):
    return primitive.logits(weights, {}, images[0, 0])


@pytest.mark.parametrize("call", [gradient, products, logits])
@pytest.mark.parametrize(("piece", "students", "groups"), [(100, 3, 2), (3, 2, 1), (2, 1, 2)])
def test_a_sketch_counts_what_a_program_holds_and_computes(call, piece, students, groups):
    batching, given = Batching(path=Path.DUAL, piece=piece, students=students, groups=groups), inputs()
    primitive = make_primitive(MODULE, batching)
    with Ledger() as ledger:
        real = call(primitive, *given)
        expected = ledger.footprint
    ledger = Ledger()
    sketch = make_sketch(MODULE, batching, ledger)
    assert type(sketch) is DualSketch
    unseen = [tensor.to("meta") for tensor in given]
    with ledger:
        made = call(sketch, *unseen)
        found = ledger.footprint
    shapes = [[tensor.shape for tensor in (one if isinstance(one, tuple) else (one,))] for one in (real, made)]
    assert shapes[0] == shapes[1]
    assert found.flops == expected.flops > 0
    assert found.kept == expected.kept
    assert found.peak == pytest.approx(expected.peak, rel=0.01)
