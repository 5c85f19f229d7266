from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

from bench.naive.implicit import Product, Solver, conjugate_gradients, dense, image_gradient, implicit_gradient, neumann
from bench.naive.unrolled import Sgd, Training, unrolled_loss

RIDGE = 0.1
LABELS, REAL_LABELS = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 1, 0, 2, 2])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES, REAL_IMAGES = random(6, 4, seed=0), random(7, 4, seed=1)


class Logistic(nn.Module):
    """Logistic regression: with the ridge its training loss is strongly convex."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images)
        return logits


def flat_training_loss(flat: Tensor, images: Tensor) -> Tensor:
    weight, bias = flat[:12].view(3, 4), flat[12:]
    return F.cross_entropy(images @ weight.T + bias, LABELS) + RIDGE / 2 * flat @ flat


def flat_validation_loss(flat: Tensor) -> Tensor:
    return F.cross_entropy(REAL_IMAGES @ flat[:12].view(3, 4).T + flat[12:], REAL_LABELS)


def optimum(images: Tensor) -> Tensor:
    """The minimiser of the training loss by Newton's method."""
    flat = torch.zeros(15, dtype=torch.float64)
    for _ in range(8):
        flat = flat - torch.linalg.solve(
            hessian(flat_training_loss)(flat, images), grad(flat_training_loss)(flat, images)
        )
    assert grad(flat_training_loss)(flat, images).norm() < 1e-14
    return flat


FLAT = optimum(IMAGES)
WEIGHTS = {"linear.weight": FLAT[:12].view(3, 4), "linear.bias": FLAT[12:]}
HESSIAN = hessian(flat_training_loss)(FLAT, IMAGES)
EIGENVALUES = torch.linalg.eigvalsh(HESSIAN)


def matrix_product(vector: Tensor) -> Tensor:
    return HESSIAN @ vector


def by_images(solver: Solver, damping: float = 0.0) -> Tensor:
    _, gradient = image_gradient(
        Logistic(), WEIGHTS, IMAGES, LABELS, REAL_IMAGES, REAL_LABELS, solver, weight_decay=RIDGE, damping=damping
    )
    return gradient


def truth() -> Tensor:
    """The formula with dense matrices throughout."""
    mixed = jacrev(grad(flat_training_loss), argnums=1)(FLAT, IMAGES)
    return -torch.tensordot(torch.linalg.solve(HESSIAN, grad(flat_validation_loss)(FLAT)), mixed, dims=1)


def error(found: Tensor) -> float:
    return ((found - truth()).norm() / truth().norm()).item()


def test_the_dense_solve_equals_differences_of_the_optimum_itself() -> None:
    gradient = by_images(dense)
    for seed in range(3):
        direction = 1e-3 * F.normalize(random(6, 4, seed=30 + seed), dim=(0, 1))
        at = {k: flat_validation_loss(optimum(IMAGES + k * direction)).item() for k in (-2, -1, 1, 2)}
        slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / 12
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-8)
    assert error(by_images(dense)) < 1e-12


def test_value_is_the_validation_loss() -> None:
    value, _ = image_gradient(Logistic(), WEIGHTS, IMAGES, LABELS, REAL_IMAGES, REAL_LABELS, dense)
    assert value.item() == pytest.approx(flat_validation_loss(FLAT).item(), rel=1e-14)
    assert not value.requires_grad


def test_neumann_series_converges_at_the_rate_of_its_slowest_eigenvalue() -> None:
    alpha = 1 / EIGENVALUES[-1].item()
    counts = (5, 10, 20, 40, 80)
    errors = [error(by_images(partial(neumann, steps=steps, alpha=alpha))) for steps in counts]
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-4
    slowest = torch.linalg.eigh(HESSIAN).eigenvectors[:, 0]
    for steps in counts:
        left = 1 - EIGENVALUES[0] * (neumann(matrix_product, slowest, steps, alpha) @ slowest)
        assert left.item() == pytest.approx((1 - alpha * EIGENVALUES[0].item()) ** (steps + 1), rel=1e-11)


def test_conjugate_gradients_converge_within_as_many_steps_as_weights() -> None:
    errors = [error(by_images(partial(conjugate_gradients, steps=steps))) for steps in (1, 3, 6, 15)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-8


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_neumann_series_is_the_unrolling_of_steps_from_the_optimum(steps: int) -> None:
    """Gradient descent from a stationary point stays there, so its hypergradient is the truncated series."""
    alpha = 0.3
    images = IMAGES.clone().requires_grad_()
    training = Training(net=Logistic(), batches=[slice(None)] * (steps + 1), inner=Sgd(weight_decay=RIDGE))
    rates = torch.tensor(alpha, dtype=torch.float64)
    loss = unrolled_loss(training, WEIGHTS, images, LABELS, rates, REAL_IMAGES, REAL_LABELS)
    (expected,) = torch.autograd.grad(loss, images)
    found = by_images(partial(neumann, steps=steps, alpha=alpha))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_long_unrolling_from_anywhere_agrees_better_the_longer_it_is() -> None:
    start = {name: random(*weight.shape, seed=9) for name, weight in WEIGHTS.items()}
    errors = []
    for steps in (20, 80, 320):
        images = IMAGES.clone().requires_grad_()
        training = Training(net=Logistic(), batches=[slice(None)] * steps, inner=Sgd(weight_decay=RIDGE))
        rates = torch.tensor(1 / EIGENVALUES[-1].item(), dtype=torch.float64)
        loss = unrolled_loss(training, start, images, LABELS, rates, REAL_IMAGES, REAL_LABELS)
        errors.append(error(torch.autograd.grad(loss, images)[0]))
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 1e-5


def test_the_series_diverges_where_alpha_is_too_large() -> None:
    alpha = 2.2 / EIGENVALUES[-1].item()
    few, many = (error(by_images(partial(neumann, steps=steps, alpha=alpha))) for steps in (20, 100))
    assert many > 100 * few > 1


def test_unscaled_series_is_the_scaled_one_without_its_factor() -> None:
    vector = random(15, seed=3)
    scaled = neumann(matrix_product, vector, 7, 0.25)
    torch.testing.assert_close(0.25 * neumann(matrix_product, vector, 7, 0.25, scaled=False), scaled)
    powers = [
        torch.linalg.matrix_power(torch.eye(15, dtype=torch.float64) - 0.25 * HESSIAN, power) @ vector
        for power in range(8)
    ]
    torch.testing.assert_close(scaled, 0.25 * torch.stack(powers).sum(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", [dense, partial(conjugate_gradients, steps=20)])
def test_damping_is_added_to_the_hessian(solver: Solver) -> None:
    mixed = jacrev(grad(flat_training_loss), argnums=1)(FLAT, IMAGES)
    damped = torch.linalg.solve(HESSIAN + 0.7 * torch.eye(15, dtype=torch.float64), grad(flat_validation_loss)(FLAT))
    expected = -torch.tensordot(damped, mixed, dims=1)
    torch.testing.assert_close(by_images(solver, damping=0.7), expected, rtol=1e-8, atol=1e-12)


def count_products(limit: list[int]) -> Product:
    def product(vector: Tensor) -> Tensor:
        limit.append(1)
        return matrix_product(vector)

    return product


def test_conjugate_gradients_stop_at_the_residual_asked_for() -> None:
    vector, calls = random(15, seed=3), list[int]()
    solution = conjugate_gradients(count_products(calls), vector, 100, tolerance=1e-3)
    assert (vector - HESSIAN @ solution).norm() <= 1e-3 * vector.norm()
    before = conjugate_gradients(matrix_product, vector, len(calls) - 1)
    assert (vector - HESSIAN @ before).norm() > 1e-3 * vector.norm()
    assert conjugate_gradients(matrix_product, torch.zeros(15, dtype=torch.float64), 5).count_nonzero() == 0


def test_conjugate_gradients_stop_at_a_direction_of_negative_curvature() -> None:
    indefinite = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64).diag()
    worst = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert conjugate_gradients(lambda vector: indefinite @ vector, worst, 5).count_nonzero() == 0
    vector = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    stopped = conjugate_gradients(lambda vector: indefinite @ vector, vector, 5)
    earlier = [conjugate_gradients(lambda vector: indefinite @ vector, vector, steps) for steps in (1, 2)]
    assert any(torch.equal(stopped, solution) for solution in earlier)
    assert vector @ stopped > 0


def test_direct_term_and_tensors_that_a_loss_ignores() -> None:
    """Every tensor of phi by hand on scalars: w* = a b, L_V = (w - c)^2 / 2 + a c with c only in L_V, d nowhere."""

    def training_loss(weights: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        return (weights[0] - hyper[0] * hyper[1]).square().sum()

    def validation_loss(weights: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        return (weights[0] - hyper[2]).square().sum() / 2 + (hyper[0] * hyper[2]).sum()

    a, b, c, d = (torch.tensor([value], dtype=torch.float64) for value in (2.0, 3.0, 0.5, 7.0))
    value, gradients = implicit_gradient(training_loss, validation_loss, [a * b], [a, b, c, d], dense)
    assert value.item() == pytest.approx(5.5**2 / 2 + 1)
    assert [gradient.item() for gradient in gradients] == pytest.approx([5.5 * 3 + 0.5, 5.5 * 2, -5.5 + 2, 0])
    _, without = implicit_gradient(training_loss, validation_loss, [a * b], [a, b, c, d], dense, direct=False)
    assert [gradient.item() for gradient in without] == pytest.approx([5.5 * 3, 5.5 * 2, 0, 0])


def test_weights_that_the_gradient_does_not_reach_leave_no_error() -> None:
    def training_loss(weights: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        return (weights[0] - hyper[0]).square().sum() + weights[1].sum()

    def validation_loss(weights: Sequence[Tensor], hyper: Sequence[Tensor]) -> Tensor:
        return weights[0].sum() + weights[1].sum()

    weights = [random(2, seed=0), random(3, seed=1)]
    solver = partial(conjugate_gradients, steps=3)
    _, (gradient,) = implicit_gradient(
        training_loss, validation_loss, weights, [weights[0].clone()], solver, damping=1.0
    )
    torch.testing.assert_close(gradient, torch.full((2,), 2 / 3, dtype=torch.float64), rtol=1e-12, atol=0)


def test_hessian_products_of_a_network_equal_its_dense_hessian() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    weights = {name: random(*p.shape, seed=20 + i) for i, (name, p) in enumerate(net.named_parameters())}
    sizes = [weight.numel() for weight in weights.values()]
    flat = torch.cat([weight.flatten() for weight in weights.values()])

    def loss(flat: Tensor, images: Tensor) -> Tensor:
        parts = zip(weights.items(), flat.split(sizes), strict=True)
        named = {name: part.view_as(weight) for (name, weight), part in parts}
        return F.cross_entropy(functional_call(net, named, (images,)), LABELS)

    seen: list[Tensor] = []

    def solver(product: Product, vector: Tensor) -> Tensor:
        seen.append(vector)
        return product(product(vector))

    _, found = image_gradient(net, weights, IMAGES, LABELS, IMAGES.flip(0), LABELS, solver, damping=0.1)
    matrix = hessian(loss)(flat, IMAGES) + 0.1 * torch.eye(len(flat), dtype=torch.float64)
    mixed = jacrev(grad(loss), argnums=1)(flat, IMAGES)
    torch.testing.assert_close(seen[0], grad(loss)(flat, IMAGES.flip(0)), rtol=1e-12, atol=1e-14)
    expected = -torch.tensordot(matrix @ matrix @ seen[0], mixed, dims=1)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
