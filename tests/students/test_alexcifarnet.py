from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastdistill.derivatives.functional import Functional, cross_entropy_sum
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.students.alexcifarnet import AlexCifarNet, LocalResponseNorm, local_response_norm
from fastdistill.students.weights import DISTRIBUTIONS, initial_weights

CLASSES = 4
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=2, students=2),
    "loop": Batching(path=Path.LOOP, piece=100, students=1),
    "loop-split": Batching(path=Path.LOOP, piece=2, students=1),
}


def build(channels, height, width, num_classes=10):
    with torch.device("meta"):
        return AlexCifarNet(channels=channels, height=height, width=width, num_classes=num_classes)


def parameter_count(student):
    return sum(parameter.numel() for parameter in student.parameters())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, expected):
    found, expected = found.detach(), expected.detach()
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def textbook(student, norm=None):
    """The same network, under the same parameter names, of torch's layers alone."""
    norm = norm or nn.LocalResponseNorm(4, alpha=0.001 / 9.0, beta=0.75, k=1)
    twin = nn.Module()
    twin.body = nn.Sequential(*[norm if isinstance(layer, LocalResponseNorm) else layer for layer in student.body])
    twin.head, twin.classifier = student.head, student.classifier
    twin.forward = lambda images: twin.classifier(twin.head(twin.body(images).flatten(1)))
    return twin


@pytest.fixture
def narrow(monkeypatch):
    """The published widths would only make the same layers slow."""
    monkeypatch.setattr("fastdistill.students.alexcifarnet.CHANNELS", 6)
    monkeypatch.setattr("fastdistill.students.alexcifarnet.HIDDEN", (10, 8))


def problem(students, groups, images, *, shape=(3, 9, 6)):
    module = build(*shape, CLASSES)
    weights = initial_weights(module, "kaiming_fan_in", seed=3, step=0, students=torch.arange(students)).double()
    x = 3 * random(students, groups, images, *shape, seed=1)
    y = random(students, groups, images, CLASSES, seed=2).abs()  # rows of any sum
    return module, weights, x, y, random(students, groups, Layout.of(module).size, seed=4)


def double_backward(module, weights, x, y, v):
    """Textbook: one pair, a graph of the gradient, differentiated again."""
    layout = Layout.of(module)
    parameters = {name: view.clone().requires_grad_() for name, view in layout.views(weights).items()}
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    loss = cross_entropy_sum(functional_call(module, parameters, (x,)), y) / len(x)
    gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    slope = sum((g * d).sum() for g, d in zip(gradient, layout.views(v).values(), strict=True))
    *hessian, images, labels = torch.autograd.grad(slope, [*parameters.values(), x, y])
    return {
        "loss": loss.detach(),
        "gradient": layout.flatten({name: g.detach() for name, g in zip(parameters, gradient, strict=True)}),
        "loss_tangent": slope.detach(),
        "weights": layout.flatten(dict(zip(parameters, hessian, strict=True))),
        "images": images,
        "labels": labels,
    }


def derivatives(primitive, weights, x, y, v):
    gradients, products = primitive.value_and_gradient(weights, {}, x, y), primitive.products(weights, {}, x, y, v)
    return {
        "loss": gradients.loss,
        "gradient": gradients.gradient,
        "loss_tangent": products.loss_tangent,
        "weights": products.weights,
        "images": products.images,
        "labels": products.labels,
    }


def test_published_parameter_count_on_cifar():
    assert parameter_count(build(3, 32, 32)) == 1_756_426


@pytest.mark.parametrize(
    ("channels", "height", "width", "map_height", "map_width"),
    [(3, 32, 32, 8, 8), (1, 28, 28, 7, 7), (3, 33, 64, 9, 16), (2, 4, 5, 1, 2), (1, 1, 1, 1, 1)],
)
def test_maps_and_count(channels, height, width, map_height, map_width):
    student = build(channels, height, width, 7)
    images = torch.empty(2, channels, height, width, device="meta")
    assert student.body(images).shape == (2, 64, map_height, map_width)
    assert student.features(images).shape == (2, 192)
    assert student(images).shape == (2, 7)
    convolutions = (64 * channels * 25 + 64) + (64 * 64 * 25 + 64)
    linears = (64 * map_height * map_width * 384 + 384) + (384 * 192 + 192) + (192 * 7 + 7)
    assert parameter_count(student) == convolutions + linears


@pytest.mark.parametrize(("height", "width"), [(0, 32), (32, 0), (-4, -4)])
def test_an_image_without_pixels_is_refused(height, width):
    with pytest.raises(ValueError, match=rf"expected images of at least 1 x 1 pixels .*, got {height} x {width}: give"):
        build(3, height, width)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_local_response_norm_and_its_derivatives_equal_torchs(size, channels):
    constants = {"size": size, "alpha": 0.8, "beta": 0.6, "k": 1.5}  # large enough that each of them shows
    maps, cotangent, direction = (random(2, channels, 3, 4, seed=seed) for seed in (1, 2, 3))
    found, expected = [], []
    for norm, results in (
        (lambda maps: local_response_norm(maps, **constants), found),
        (nn.LocalResponseNorm(**constants), expected),
    ):
        leaf = maps.clone().requires_grad_()
        output = norm(leaf)
        (gradient,) = torch.autograd.grad((output * cotangent).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
        results += [output, gradient, second]
    for ours, torchs in zip(found, expected, strict=True):
        assert relative(ours, torchs) <= 1e-14


def test_a_window_of_four_reaches_two_channels_down_and_one_up():
    maps = torch.tensor([1, 1, 1, 1, 3, 1, 1, 1], dtype=torch.float64).view(1, 8, 1, 1)
    mean_squares = torch.tensor([2, 3, 4, 12, 12, 12, 12, 3], dtype=torch.float64) / 4  # zeros beyond both ends
    found = local_response_norm(maps, size=4, alpha=1.0, beta=1.0, k=1.0)
    torch.testing.assert_close(found.flatten(), maps.flatten() / (1 + mean_squares), rtol=1e-15, atol=0)


def test_a_zero_map_has_finite_derivatives():
    maps = torch.zeros(1, 5, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(LocalResponseNorm()(maps).sum(), maps, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), maps)
    assert torch.equal(gradient.detach(), torch.ones_like(maps))
    assert torch.equal(second, torch.zeros_like(maps))


def test_the_published_network_equals_torchs_layers():
    student = build(3, 32, 32)
    weights = initial_weights(student, "xavier_normal", seed=0, step=0, students=torch.arange(1)).double()
    parameters, images = Layout.of(student).views(weights[0]), 10 * random(3, 3, 32, 32)
    found, expected, without = (
        functional_call(module, parameters, (images,))
        for module in (student, textbook(student), textbook(student, nn.Identity()))
    )
    assert relative(found, expected) <= 1e-13
    assert relative(without, expected) > 1e-4  # the norm is seen at these weights


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS)
def test_products_equal_double_backward_through_torchs_layers(batching, narrow):
    module, weights, x, y, v = problem(3, 2, 3)
    found = derivatives(Functional(module, batching), weights, x, y, v)
    for s, g in ((s, g) for s in range(3) for g in range(2)):
        truth = double_backward(textbook(module), weights[s], x[s, g], y[s, g], v[s, g])
        plain = double_backward(textbook(module, nn.Identity()), weights[s], x[s, g], y[s, g], v[s, g])
        for name, expected in truth.items():
            assert relative(found[name][s, g], expected) <= 1e-12, (name, s, g)
            assert relative(plain[name], expected) > 1e-6, name


@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_products_equal_double_backward_at_real_size(path):
    module, weights, x, y, v = problem(1, 1, 1, shape=(3, 32, 32))
    found = derivatives(Functional(module, BATCHINGS[path]), weights, x, y, v)
    truth = double_backward(textbook(module), weights[0], x[0, 0], y[0, 0], v[0, 0])
    for name, expected in truth.items():
        assert relative(found[name][0, 0], expected) <= 1e-12, name


@pytest.mark.parametrize("name", BATCHINGS)
def test_students_at_once_equal_students_alone(name, narrow):
    module, weights, x, y, v = problem(3, 2, 3)
    primitive = Functional(module, BATCHINGS[name])
    together, logits = derivatives(primitive, weights, x, y, v), primitive.logits(weights, {}, x[:, 0])
    for s in range(3):
        own = slice(s, s + 1)
        alone = derivatives(primitive, weights[own], x[own], y[own], v[own])
        for key, expected in alone.items():
            assert relative(together[key][s], expected[0]) <= 1e-13, key
        expected = functional_call(module, primitive.layout.views(weights[s]), (x[s, 0],))
        assert relative(logits[s], expected) <= 1e-13


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_weights_of_every_distribution(distribution, narrow):
    student = build(3, 8, 8)
    layout = Layout.of(student)
    weights = initial_weights(student, distribution, seed=0, step=0, students=torch.arange(2))
    views = layout.views(weights)
    assert set(views) == {name for name, _ in student.named_parameters()}
    assert all(view.ne(0).all() == (view.ndim > 2 or distribution == "default") for view in views.values())
    rows = Functional(student, BATCHINGS["vmap"]).logits(weights, {}, random(3, 3, 8, 8).float())
    assert rows.isfinite().all()
    assert not torch.equal(rows[0], rows[1])
