"""The GTN student against its layers written out, and what training makes of its means."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.students.architectures import build_student
from fastdistill.students.gtn import GTNStudent, MeanNormed, has_only_means
from fastdistill.students.training import Training, count_correct, image_fetch, train_students
from fastdistill.students.weights import DISTRIBUTIONS, initial_buffers, initial_weights
from tests import gtn

CLASSES, SHAPE = 4, (2, 9, 6)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=2, students=2),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}


@pytest.fixture
def narrow(monkeypatch):
    gtn.narrow(monkeypatch)


def build(channels, height, width, num_classes=10):
    with torch.device("meta"):
        return GTNStudent(channels=channels, height=height, width=width, num_classes=num_classes)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def drawn(student, students, *, moved=0.1):
    """Weights whose gains and biases are not those that they begin with."""
    weights = initial_weights(student, "default", seed=3, step=0, students=torch.arange(students)).double()
    layout = Layout.of(student)
    way = moved * random(*weights.shape, seed=4)
    return weights + layout.flatten(layout.views(way))


def fresh(student, students):
    return initial_buffers(student, students, dtype=torch.float64, device=torch.device("cpu"))


def counted(channels, pixels, classes):
    convolutions = 64 * channels * 9 + 64 + 128 * 64 * 9 + 128
    linears = 128 * pixels * 256 + 256 + 256 * classes + classes + classes
    return convolutions + linears + 64 + 128 + 256


@pytest.mark.parametrize(
    ("shape", "pixels"), [((1, 28, 28), 49), ((3, 32, 32), 64), ((3, 33, 20), 45), ((2, 4, 5), 2), ((1, 1, 1), 1)]
)
def test_maps_and_count(shape, pixels):
    student = build(*shape, 7)
    images = torch.empty(2, *shape, device="meta")
    assert student.body(images).flatten(1).shape == (2, 128 * pixels)
    assert student.features(images).shape == (2, 256)
    assert student(images).shape == (2, 7)
    assert sum(parameter.numel() for parameter in student.parameters()) == counted(shape[0], pixels, 7)


def test_the_linear_layer_on_mnist_is_the_published_one():
    student = build(1, 28, 28)
    assert student.head[0].weight.shape == (256, 6272)
    assert {name: tuple(buffer.shape) for name, buffer in student.named_buffers()} == {
        "body.2.running_mean": (64,),
        "body.6.running_mean": (128,),
        "head.1.running_mean": (256,),
    }


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_the_layers_written_out(training):
    student = build(*SHAPE).train(training)
    weights, images = drawn(student, 1)[0], random(5, *SHAPE, seed=5)
    parameters = Layout.of(student).views(weights)
    before = {name: random(*buffer.shape, seed=6) for name, buffer in student.named_buffers()}
    buffers = {name: buffer.clone() for name, buffer in before.items()}
    found = functional_call(student, {**parameters, **buffers}, (images,))
    expected, means = gtn.forward(parameters, images, None if training else list(before.values()))
    assert relative(found, expected) <= 1e-12
    # the batch's means and nothing of what was before, or what was before and nothing of the batch
    for new, old, mean in zip(buffers.values(), before.values(), means, strict=True):
        assert relative(new, mean) <= 1e-12 if training else torch.equal(new, old)


@pytest.mark.parametrize("training", [True, False])
def test_a_shift_of_its_inputs_is_seen_in_eval_mode_alone(training):
    norm = MeanNormed(3).double().train(training)
    images = random(4, 3, 2, 2)
    close = torch.allclose(norm(images), norm(images + 1), rtol=1e-12)
    assert close == training


def test_its_mean_has_a_derivative():
    norm, images = MeanNormed(3, flat=True).double(), random(4, 3).requires_grad_()
    copy = norm.running_mean.clone()
    functional_call(norm, {"running_mean": copy}, (images,))
    (found,) = torch.autograd.grad((copy * torch.arange(3)).sum(), images)
    torch.testing.assert_close(found, torch.arange(3).expand(4, 3) / 4.0, rtol=1e-12, atol=0, check_dtype=False)


def test_only_means_are_told_from_other_statistics():
    shape = {"channels": 1, "height": 8, "width": 8, "num_classes": 3}
    assert has_only_means(build_student("gtn", **shape))
    assert has_only_means(build_student("convnet", **shape))  # which has none
    assert not has_only_means(build_student("convnet", **shape, norm="batch"))


@pytest.mark.parametrize("batching", BATCHINGS)
def test_students_train_by_their_batches_and_are_tested_by_the_last_one(batching, narrow):
    student = build(*SHAPE, CLASSES)
    weights, images, labels = drawn(student, 3), random(6, *SHAPE, seed=5), torch.arange(6) % CLASSES
    primitive = Functional(student, BATCHINGS[batching])
    trained, buffers = train_students(
        primitive,
        weights,
        fresh(student, 3),
        image_fetch(images, labels),
        6,
        Training(epochs=3, learning_rate=0.1),
        seed=0,
        students=torch.arange(3),
    )
    tests, answers = random(20, *SHAPE, seed=6), torch.arange(20) % CLASSES
    correct = count_correct(primitive, trained, buffers, tests, answers)
    logits = primitive.logits(trained, buffers, tests)
    for k in range(3):
        p = {name: view[k] for name, view in primitive.layout.views(weights).items()}
        for _ in range(3):
            values = {name: value.detach().requires_grad_() for name, value in p.items()}
            found, means = gtn.forward(values, images)
            loss = torch.nn.functional.cross_entropy(found, labels)
            slopes = torch.autograd.grad(loss, list(values.values()))
            p = {name: value - 0.1 * slope for (name, value), slope in zip(values.items(), slopes, strict=True)}
        expected = gtn.forward(p, tests, means)[0].detach()
        assert relative(logits[k], expected) <= 1e-10
        assert int(correct[k]) == int((expected.argmax(1) == answers).sum())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gains_begin_as_the_norms_of_whatever_weights_are_drawn(distribution, narrow):
    student = build(*SHAPE, CLASSES)
    layout = Layout.of(student)
    weights = initial_weights(student, distribution, seed=0, step=0, students=torch.arange(3))
    views = layout.views(weights)
    assert torch.equal(layout.flatten(views), weights)  # nothing in the padding
    for name, view in views.items():
        if name.endswith("gain"):
            weight = views[f"{name.removesuffix('gain')}weight"]
            torch.testing.assert_close(view, weight.flatten(2).square().sum(2).sqrt(), rtol=1e-6, atol=0)
        else:
            assert view.ne(0).all() == name.endswith("weight"), name
    if distribution == "default":
        other = initial_weights(student, "kaiming_fan_in", seed=0, step=0, students=torch.arange(3))
        assert torch.equal(weights, other)


def test_the_default_is_kaiming_normal():
    student = build(1, 12, 12)
    views = Layout.of(student).views(
        initial_weights(student, "default", seed=1, step=0, students=torch.arange(4)).double()
    )
    for name, view in views.items():
        if name.endswith("weight"):
            fan_in = view[0, 0].numel()
            assert abs(float(view.var()) * fan_in / 2 - 1) < 0.1
            assert float((view.abs() > 2 * (2 / fan_in) ** 0.5).double().mean()) == pytest.approx(0.0455, abs=0.012)
