import pytest
import torch

from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.sketch import Sketch
from fastdistill.students.architectures import build_student


def student(norm="instance"):
    return build_student("convnet", channels=1, height=8, width=8, num_classes=3, depth=2, net_width=8, norm=norm)


def counted(program, *inputs):
    """The same count on real tensors."""
    with Ledger() as ledger:
        result = program(*inputs)
        footprint = ledger.footprint
    del result
    return footprint


def bytes_of(footprint):
    """What a shortened loop must agree in: it does not climb by every round."""
    return footprint.peak, footprint.small, footprint.large, footprint.kept, footprint.flops


def inputs(module, students=3, groups=3, images=7, *, shared=False):
    size = Functional(module, Batching(path=Path.LOOP, piece=1, students=1)).layout.size
    generator = torch.Generator().manual_seed(0)
    lead = (groups, images) if shared else (students, groups, images)
    return (
        torch.randn(students, size, generator=generator),
        {name: torch.zeros(students, *buffer.shape, dtype=buffer.dtype) for name, buffer in module.named_buffers()},
        torch.randn(*lead, 1, 8, 8, generator=generator),
        torch.randint(0, 3, lead, generator=generator),
        torch.randn(students, groups, size, generator=generator),
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "batching",
    [
        Batching(path=Path.LOOP, piece=7, students=1),
        Batching(path=Path.LOOP, piece=3, students=1),
        Batching(path=Path.VMAP, piece=7, students=3),
        Batching(path=Path.VMAP, piece=4, students=2),
    ],
)
def test_a_sketch_finds_the_peak_of_the_whole_loop(batching, shared):
    module = student()
    weights, _, images, labels, vector = inputs(module, shared=shared)
    real = Functional(module, batching)

    def sketched(call, *given):
        ledger = Ledger()
        sketch = Sketch(module, batching, ledger)
        given = [tensor.to("meta") for tensor in given]
        with ledger:
            result = call(sketch, *given)
            footprint = ledger.footprint
        return footprint, result

    def gradient(primitive, weights, images, labels):
        return primitive.value_and_gradient(weights, {}, images, labels).gradient

    def products(primitive, weights, images, labels, vector):
        return primitive.products(weights, {}, images, labels, vector, wanted=("weights", "images"))

    found, result = sketched(gradient, weights, images, labels)
    assert result.shape == real.value_and_gradient(weights, {}, images, labels).gradient.shape
    assert bytes_of(found) == bytes_of(counted(lambda *given: gradient(real, *given), weights, images, labels))
    found, result = sketched(products, weights, images, labels, vector)
    assert result.images.shape == (3, *images.shape[-5:])
    assert bytes_of(found) == bytes_of(counted(lambda *given: products(real, *given), weights, images, labels, vector))


@pytest.mark.parametrize("path", list(Path))
def test_a_sketch_trains_students_with_buffers(path):
    module, batching = student("batch"), Batching(path=path, piece=4, students=2)
    weights, buffers, images, labels, _ = inputs(module, groups=1)
    ledger = Ledger()
    given = [tensor.to("meta") for tensor in (weights, images, labels)]
    state = {name: tensor.to("meta") for name, tensor in buffers.items()}
    sketch = Sketch(module, batching, ledger)
    with ledger:
        found = sketch.value_and_gradient(given[0], state, *given[1:], training=True)
        footprint = ledger.footprint
    real = Functional(module, batching)
    assert {name: tensor.shape for name, tensor in found.buffers.items()} == {
        name: tensor.shape for name, tensor in buffers.items()
    }
    expected = counted(lambda: real.value_and_gradient(weights, buffers, images, labels, training=True))
    assert bytes_of(footprint) == bytes_of(expected)


def test_a_sketch_counts_the_logits_of_every_student():
    module = student()
    weights, _, images, _, _ = inputs(module, groups=1, shared=True)
    for path in Path:
        batching = Batching(path=path, piece=5, students=2)
        ledger = Ledger()
        given, sketch = (weights.to("meta"), {}, images[0].to("meta")), Sketch(module, batching, ledger)
        with ledger:
            logits = sketch.logits(*given)
            footprint = ledger.footprint
        real = Functional(module, batching)
        assert logits.shape == (3, 7, 3)
        expected = counted(lambda real=real: real.logits(weights, {}, images[0]))
        assert footprint.peak == pytest.approx(expected.peak, rel=0.01)
        assert footprint.flops == expected.flops
