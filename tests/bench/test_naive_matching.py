from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from bench.naive.augmentation import siamese
from bench.naive.convnet import ConvNet
from bench.naive.matching import (
    DistanceKind,
    dc_step,
    distance,
    image_gradient,
    image_optimizer,
    matching_loss,
    train_network,
)

KINDS: list[DistanceKind] = ["ours", "mse", "l1", "cos"]


def random_gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2, 3, 3), (3,), (2, 5, 4), (4, 6), (4,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def loop_cosine_distance(a: list[float], b: list[float]) -> float:
    return 1 - dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)) + 1e-6)


def loop_distance(syn: list[Tensor], real: list[Tensor], kind: DistanceKind) -> float:
    if kind == "ours":
        return math.fsum(
            loop_cosine_distance(a.flatten().tolist(), b.flatten().tolist())
            for tensor_a, tensor_b in zip(syn, real, strict=True)
            if tensor_a.ndim > 1
            for a, b in zip(tensor_a, tensor_b, strict=True)
        )
    a = [number for tensor in syn for number in tensor.flatten().tolist()]
    b = [number for tensor in real for number in tensor.flatten().tolist()]
    if kind == "cos":
        return loop_cosine_distance(a, b)
    return math.fsum(abs(x - y) ** (2 if kind == "mse" else 1) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_distance_equals_loops_over_numbers(kind: DistanceKind) -> None:
    syn, real = random_gradients(0), random_gradients(1)
    assert distance(syn, real, kind).item() == pytest.approx(loop_distance(syn, real, kind), rel=1e-13)


def test_distance_ours_by_hand() -> None:
    syn = [torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([7.0, 8.0], dtype=torch.float64)]
    real = [torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)]
    assert distance(syn, real, "ours").item() == pytest.approx(2 - 24 / (25 + 1e-6), rel=1e-14)


def test_distance_adds_epsilon_to_the_product_of_norms() -> None:
    tiny = [torch.full((1, 1), 1e-3, dtype=torch.float64)]
    assert distance(tiny, tiny, "ours").item() == pytest.approx(0.5, rel=1e-12)
    assert distance(tiny, tiny, "cos").item() == pytest.approx(0.5, rel=1e-12)


def test_distance_of_a_dead_row_is_one_with_a_finite_gradient() -> None:
    syn = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    value = distance([syn], [real], "ours")
    (gradient,) = torch.autograd.grad(value, syn)
    assert value.item() == 2
    torch.testing.assert_close(gradient, -real / 1e-6, rtol=1e-12, atol=0)


def test_distance_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'ours', 'mse', 'l1', 'l1_mean' or 'cos', got 'l2'"):
        distance([torch.ones(1, 1)], [torch.ones(1, 1)], "l2")  # type: ignore[arg-type]


class SmoothNet(nn.Module):
    """A student without kinks, so that central differences converge."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(4, 4)
        self.linear = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.softplus(self.norm(self.convolution(images)))
        logits: Tensor = self.linear(F.avg_pool2d(hidden, 2).flatten(1))
        return logits


def smooth_problem() -> tuple[SmoothNet, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = SmoothNet().double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    real = torch.randn(3, 5, 2, 4, 4, generator=generator, dtype=torch.float64)
    synthetic = torch.randn(3, 2, 2, 4, 4, generator=generator, dtype=torch.float64)
    return net, real, synthetic


def convnet_problem() -> tuple[ConvNet, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = ConvNet(1, 3, width=4, depth=2, image_size=8).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    real = torch.randn(3, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    synthetic = torch.randn(3, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    return net, real, synthetic


@pytest.mark.parametrize("kind", KINDS)
def test_image_gradient_equals_central_differences(kind: DistanceKind) -> None:
    net, real, synthetic = smooth_problem()
    gradient = image_gradient(net, real, synthetic, kind)
    step = 1e-5
    numeric = torch.empty_like(synthetic)
    for position in range(synthetic.numel()):
        values = []
        for sign in (1, -1):
            moved = synthetic.clone()
            moved.view(-1)[position] += sign * step
            values.append(matching_loss(net, real, moved, kind).item())
        numeric.view(-1)[position] = (values[0] - values[1]) / (2 * step)
    assert (gradient - numeric).norm() / gradient.norm() < 1e-8


def forward_over_reverse_gradient(net: nn.Module, real: Tensor, synthetic: Tensor, kind: DistanceKind) -> Tensor:
    """Independent of any graph of a graph: K v by a tangent along the cotangent of the distance."""
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def class_loss(weights: dict[str, Tensor], images: Tensor, label: int) -> Tensor:
        return -functional_call(net, weights, (images,)).log_softmax(1)[:, label].mean()

    def cotangent_of(syn: Tensor, target: Tensor) -> Tensor:
        if kind == "mse":
            return 2 * (syn - target)
        if syn.ndim == 1:
            return torch.zeros_like(syn)
        a, b = syn.flatten(1), target.flatten(1)
        norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        product = norm_a * norm_b + 1e-6
        # a dead row has no direction of its own
        direction = torch.where(norm_a > 0, a / norm_a, 0)
        return ((a * b).sum(1, keepdim=True) * norm_b * direction / product**2 - b / product).view_as(syn)

    result = []
    for label in range(len(synthetic)):
        grads_real = grad(class_loss)(weights, real[label], label)
        grads_syn = grad(class_loss)(weights, synthetic[label], label)
        cotangent = {name: cotangent_of(grads_syn[name], grads_real[name]) for name in weights}

        def image_grad(weights: dict[str, Tensor], label: int = label) -> Tensor:
            return grad(class_loss, argnums=1)(weights, synthetic[label], label)

        result.append(jvp(image_grad, (weights,), (cotangent,))[1])
    return torch.stack(result)


@pytest.mark.parametrize("kind", ["ours", "mse"])
def test_image_gradient_equals_forward_over_reverse_on_the_convnet(kind: DistanceKind) -> None:
    net, real, synthetic = convnet_problem()
    expected = forward_over_reverse_gradient(net, real, synthetic, kind)
    error = (image_gradient(net, real, synthetic, kind) - expected).norm() / expected.norm()
    assert error < 1e-12


def test_matching_loss_vanishes_where_the_images_agree_and_sums_over_classes() -> None:
    net, real, synthetic = convnet_problem()
    assert matching_loss(net, synthetic, synthetic, "mse").item() == pytest.approx(0, abs=1e-25)
    parts = []
    for label in range(3):
        images = real.clone()
        images[label] = synthetic[label].repeat(3, 1, 1, 1)
        # classes whose real batch repeats the synthetic images add nothing
        parts.append(matching_loss(net, real, synthetic, "mse") - matching_loss(net, images, synthetic, "mse"))
    torch.testing.assert_close(sum(parts), matching_loss(net, real, synthetic, "mse"), rtol=1e-12, atol=1e-12)


def test_matching_loss_accepts_real_batches_of_different_sizes() -> None:
    net, real, synthetic = convnet_problem()
    ragged = [real[0], real[1, :3].repeat(2, 1, 1, 1), real[2]]
    cut = [real[0], real[1, :3], real[2]]
    torch.testing.assert_close(matching_loss(net, cut, synthetic), matching_loss(net, ragged, synthetic))


def test_matching_loss_refuses_unequal_numbers_of_classes() -> None:
    net, real, synthetic = convnet_problem()
    with pytest.raises(ValueError, match="got 2 batches for 3 classes"):
        matching_loss(net, real[:2], synthetic)


def test_augmentation_meets_real_and_synthetic_images_of_its_class() -> None:
    net, real, synthetic = convnet_problem()
    augment = siamese(["flip", "flip", "flip"], torch.tensor([[0.1], [0.9], [0.4]], dtype=torch.float64))
    flipped_real, flipped_synthetic = real.clone(), synthetic.clone()
    for label in (0, 2):
        flipped_real[label] = real[label].flip(-1)
        flipped_synthetic[label] = synthetic[label].flip(-1)
    expected = image_gradient(net, flipped_real, flipped_synthetic)
    expected[[0, 2]] = expected[[0, 2]].flip(-1)
    torch.testing.assert_close(image_gradient(net, real, synthetic, "ours", augment), expected, rtol=1e-12, atol=1e-14)


def test_dc_step_is_sgd_with_momentum_and_leaves_the_net_alone() -> None:
    net, real, synthetic = convnet_problem()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    learned = synthetic.clone().requires_grad_()
    optimizer = image_optimizer(learned)
    expected, velocity = synthetic.clone(), torch.zeros_like(synthetic)
    for _ in range(3):
        expected_loss = matching_loss(net, real, expected).item()
        velocity = 0.5 * velocity + image_gradient(net, real, expected)
        expected = expected - 0.1 * velocity
        assert dc_step(net, real, learned, optimizer).item() == pytest.approx(expected_loss, rel=1e-13)
    torch.testing.assert_close(learned.detach(), expected, rtol=1e-12, atol=1e-12)
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


def test_dc_steps_lower_the_loss() -> None:
    net, real, synthetic = convnet_problem()
    learned = synthetic.clone().requires_grad_()
    optimizer = image_optimizer(learned)
    losses = [dc_step(net, real, learned, optimizer).item() for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


def test_train_network_is_plain_gradient_descent_on_a_whole_batch() -> None:
    net, _, synthetic = convnet_problem()
    labels = torch.arange(3).repeat_interleave(2).view(3, 2)
    weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits = functional_call(net, weights, (synthetic.flatten(0, 1),))
        return F.cross_entropy(logits, labels.flatten())

    for _ in range(4):
        gradient = grad(loss)(weights)
        weights = {name: weights[name] - 0.01 * gradient[name] for name in weights}
    learned = synthetic.clone().requires_grad_()
    train_network(net, learned, labels, epochs=4, generator=torch.Generator().manual_seed(0))
    assert learned.grad is None
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-12)


def test_train_network_visits_every_image_once_per_epoch_in_shuffled_batches() -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.seen: list[list[int]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(images[:, 0, 0, 0].long().tolist())
            return images.flatten(1) * self.weight

    net = Recorder()
    images = torch.arange(10.0).view(5, 2, 1, 1, 1).expand(5, 2, 1, 1, 2)
    train_network(net, images, torch.zeros(10).long(), epochs=2, batch=4, generator=torch.Generator().manual_seed(3))
    assert [len(batch) for batch in net.seen] == [4, 4, 2, 4, 4, 2]
    first = [image for batch in net.seen[:3] for image in batch]
    second = [image for batch in net.seen[3:] for image in batch]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


@pytest.mark.parametrize(
    ("channels", "num_classes", "depth", "image_size", "parameters"),
    [
        (3, 10, 3, 32, 320_010),
        (1, 10, 3, 28, 317_706),
        (3, 100, 3, 32, 504_420),
        (3, 200, 3, 64, 1_938_120),
        (3, 200, 4, (64, 64), 857_160),
    ],
)
def test_convnet_has_the_published_number_of_parameters(
    channels: int, num_classes: int, depth: int, image_size: int | tuple[int, int], parameters: int
) -> None:
    net = ConvNet(channels, num_classes, depth=depth, image_size=image_size)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert net(torch.zeros(2, channels, *size)).shape == (2, num_classes)


def test_convnet_orders_its_parameters_block_by_block() -> None:
    net = ConvNet(1, 10, width=5, depth=2, image_size=(8, 12))
    shapes = [tuple(parameter.shape) for parameter in net.parameters()]
    assert shapes == [(5, 1, 3, 3), (5,), (5,), (5,), (5, 5, 3, 3), (5,), (5,), (5,), (10, 5 * 3 * 4), (10,)]


def test_convnet_refuses_images_that_pooling_would_empty() -> None:
    with pytest.raises(ValueError, match="survive 3 poolings, got 4"):
        ConvNet(3, 10, depth=3, image_size=4)
