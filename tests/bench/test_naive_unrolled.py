from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from bench.naive.convnet import ConvNet
from bench.naive.unrolled import (
    Adam,
    Sgd,
    Training,
    Weights,
    cycled,
    hypergradient,
    inverse_softplus,
    linear_distillation,
    trajectory,
    unrolled_loss,
)

Learned = dict[str, Tensor]

INNERS: dict[str, Sgd | Adam] = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.7),
    "momentum with decay": Sgd(momentum=0.7, weight_decay=0.1),
    "learned momentum": Sgd(momentum=torch.linspace(0.3, 0.9, 7, dtype=torch.float64), weight_decay=0.1),
    "adam": Adam(),
    "adam with learned momentum": Adam(momentum=torch.linspace(0.3, 0.9, 7, dtype=torch.float64), epsilon=1e-3),
    "adam with decay": Adam(momentum=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.1),
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_net() -> nn.Module:
    """A student without kinks, so that differences converge."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    return net


def problem(steps: int, *, soft: bool = False) -> tuple[nn.Module, Learned, Tensor, list[Tensor | slice]]:
    """A net, what is learned, hard labels, and batches: three of two images, cycled."""
    learned = {"images": random(6, 3, seed=10), "rho": random(steps, seed=11) - 1}
    if soft:
        learned["labels"] = random(6, 3, seed=12).abs()
    return smooth_net(), learned, torch.tensor([0, 1, 2, 0, 1, 2]), cycled(3, 2, 3)[:steps]


REAL_IMAGES, REAL_LABELS = random(5, 3, seed=20), torch.tensor([0, 1, 2, 1, 0])


def weights_of(net: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def loss_by_torch_optim(
    inner: Sgd | Adam,
    batches: Sequence[Tensor | slice],
    labels: Tensor,
    fixed: Learned,
    moved: Learned,
    skip: int,
    outer_weights: Sequence[float],
) -> float:
    """The outer loss of an ordinary training loop, whose first `skip` steps do not see the moved values."""
    net = smooth_net()
    decay, optimizer, total = inner.weight_decay, None, 0.0
    for step, index in enumerate(batches):
        learned = fixed if step < skip else moved
        momentum = learned["momentum"][step].item() if "momentum" in learned else inner.momentum
        settings = {"lr": F.softplus(learned["rho"])[step].item()}
        if isinstance(inner, Sgd):
            settings |= {"momentum": momentum}
            optimizer = optimizer or torch.optim.SGD(net.parameters(), **settings, weight_decay=decay)
        else:
            settings |= {"betas": (momentum, inner.beta2)}
            optimizer = optimizer or torch.optim.Adam(
                net.parameters(), **settings, eps=inner.epsilon, weight_decay=decay
            )
        optimizer.param_groups[0].update(settings)
        optimizer.zero_grad()
        F.cross_entropy(net(learned["images"][index]), learned.get("labels", labels)[index]).backward()
        optimizer.step()
        if outer_weights[step]:
            total += outer_weights[step] * F.cross_entropy(net(REAL_IMAGES), REAL_LABELS).item()
    return total


def differences(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-3) -> Tensor:
    """Central differences of the fourth order: wide enough to drown rounding, and an error far below 1e-8."""
    result = torch.zeros_like(at)
    for position in range(at.numel()):
        for distance, factor in ((1, 2 / 3), (2, -1 / 12)):
            for sign in (1, -1):
                moved = at.clone()
                moved.view(-1)[position] += sign * distance * step
                result.view(-1)[position] += sign * factor * function(moved) / step
    return result


def check_against_torch_optim(
    inner: Sgd | Adam, steps: int, *, soft: bool = False, skip: int = 0, outer_weights: Sequence[float] | None = None
) -> None:
    net, learned, labels, batches = problem(steps, soft=soft)
    value, gradients = hypergradient(
        Training(net=net, batches=batches, inner=inner, skip=skip),
        weights_of(net),
        learned["images"],
        learned.get("labels", labels),
        learned["rho"],
        REAL_IMAGES,
        REAL_LABELS,
        outer_weights,
    )
    if isinstance(inner.momentum, Tensor):
        learned["momentum"] = inner.momentum
    factors = [0.0] * (steps - 1) + [1.0] if outer_weights is None else outer_weights

    def loss(name: str, moved: Tensor) -> float:
        return loss_by_torch_optim(inner, batches, labels, learned, {**learned, name: moved}, skip, factors)

    assert value.item() == pytest.approx(loss("images", learned["images"]), rel=1e-13)
    assert gradients.keys() == learned.keys()
    # Adam's step bends sharply where a gradient is small, so there the truth needs a narrower difference
    width = 1e-3 if isinstance(inner, Sgd) else 3e-5
    for name, gradient in gradients.items():
        numeric = differences(lambda moved, name=name: loss(name, moved), learned[name], width)
        assert (gradient - numeric).norm() <= 1e-8 * max(numeric.norm().item(), 1e-2), name


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("name", INNERS)
def test_hypergradient_equals_differences_of_a_loop_with_torch_optim(name: str, steps: int) -> None:
    check_against_torch_optim(INNERS[name], steps)


@pytest.mark.parametrize("name", ["sgd", "learned momentum", "adam"])
def test_soft_labels_whose_rows_do_not_sum_to_one_have_their_gradient(name: str) -> None:
    check_against_torch_optim(INNERS[name], 3, soft=True)


@pytest.mark.parametrize("name", ["sgd", "learned momentum", "adam"])
def test_a_window_takes_weights_and_state_before_it_as_constants(name: str) -> None:
    check_against_torch_optim(INNERS[name], 5, soft=True, skip=2)


@pytest.mark.parametrize("name", ["momentum with decay", "adam"])
def test_intermediate_losses_are_weighted_and_summed(name: str) -> None:
    check_against_torch_optim(INNERS[name], 4, skip=1, outer_weights=[0.0, 0.5, 0.0, 2.0])


def test_a_window_leaves_no_gradient_to_what_lies_before_it() -> None:
    net, learned, labels, batches = problem(4)
    training = Training(net=net, batches=[*batches[:3], slice(0, 2)], skip=3)
    _, gradients = hypergradient(
        training, weights_of(net), learned["images"], labels, learned["rho"], REAL_IMAGES, REAL_LABELS
    )
    assert gradients["rho"][:3].tolist() == [0, 0, 0]
    assert gradients["rho"][3] != 0
    assert gradients["images"][2:].count_nonzero() == 0
    assert gradients["images"][:2].count_nonzero() == 6


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_one_step_on_a_linear_model_by_hand(kind: str) -> None:
    net = nn.Linear(3, 3, bias=False).double()
    start = random(3, 3, seed=0)
    images, rho = random(4, 3, seed=1), random(1, seed=2)
    labels = torch.tensor([0, 1, 2, 1]) if kind == "hard" else random(4, 3, seed=3).abs()
    _, gradients = hypergradient(
        Training(net=net, batches=[slice(None)]), {"weight": start}, images, labels, rho, REAL_IMAGES, REAL_LABELS
    )

    targets = F.one_hot(labels, 3).double() if kind == "hard" else labels
    p = (images @ start.T).softmax(1)
    errors = targets.sum(1, keepdim=True) * p - targets
    g = errors.T @ images / 4
    rate = math.log(1 + math.exp(rho.item()))
    after = start - rate * g
    a = ((REAL_IMAGES @ after.T).softmax(1) - F.one_hot(REAL_LABELS, 3)).T @ REAL_IMAGES / 5
    # <a, g> is the mean of z.e, with z = a x and e the errors; p moves with x through the softmax's derivative
    z = images @ a.T
    through_p = targets.sum(1, keepdim=True) * (p * z - p * (p * z).sum(1, keepdim=True))
    expected = -rate * (errors @ a + through_p @ start) / 4
    torch.testing.assert_close(gradients["images"], expected, rtol=1e-12, atol=1e-14)
    by_rho = -(a * g).sum() / (1 + math.exp(-rho.item()))
    torch.testing.assert_close(gradients["rho"][0], by_rho, rtol=1e-12, atol=1e-14)
    if kind == "soft":
        by_labels = -rate * ((p * z).sum(1, keepdim=True) - z) / 4
        torch.testing.assert_close(gradients["labels"], by_labels, rtol=1e-12, atol=1e-14)


def test_hypergradient_of_the_convnet_equals_a_tangent_through_the_whole_training() -> None:
    net = ConvNet(1, 3, width=4, depth=2, image_size=8).double()
    weights = {
        name: 0.5 * random(*parameter.shape, seed=seed) for seed, (name, parameter) in enumerate(net.named_parameters())
    }
    images, rho, labels = random(6, 1, 8, 8, seed=30), random(4, seed=31) - 2, torch.tensor([0, 1, 2, 0, 1, 2])
    real_images, real_labels = random(5, 1, 8, 8, seed=32), torch.tensor([0, 1, 2, 1, 0])

    def loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (images,)), labels)

    def run(images: Tensor, rho: Tensor) -> Tensor:
        current = weights
        velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for step in range(4):
            batch = slice(3 * (step % 2), 3 * (step % 2) + 3)
            grads = grad(loss)(current, images[batch], labels[batch])
            velocity = {name: 0.9 * velocity[name] + grads[name] for name in grads}
            current = {name: weight - F.softplus(rho)[step] * velocity[name] for name, weight in current.items()}
        return loss(current, real_images, real_labels)

    directions = random(6, 1, 8, 8, seed=33), random(4, seed=34)
    value, tangent = jvp(run, (images, rho), directions)
    training = Training(net=net, batches=cycled(2, 3, 2), inner=Sgd(momentum=0.9))
    found, gradients = hypergradient(training, weights, images, labels, rho, real_images, real_labels)
    assert found.item() == pytest.approx(value.item(), rel=1e-13)
    slope = (gradients["images"] * directions[0]).sum() + (gradients["rho"] * directions[1]).sum()
    assert slope.item() == pytest.approx(tangent.item(), rel=1e-11)


def test_adam_is_differentiable_where_a_gradient_is_zero() -> None:
    net = nn.Linear(2, 2, bias=False).double()
    images = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    start = {"weight": random(2, 2, seed=0)}
    labels, rho = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.float64)
    training = Training(net=net, batches=[slice(None)] * 2, inner=Adam(epsilon=1e-2))
    real = REAL_IMAGES[:, :2], REAL_LABELS.clamp(max=1)
    _, gradients = hypergradient(training, start, images, labels, rho, *real)

    def loss(moved: Tensor) -> float:
        return unrolled_loss(training, start, moved, labels, F.softplus(rho), *real).item()

    # a dead pixel's weight has the gradient zero; moving the pixel wakes it, at the slope of the first moment alone
    # the step's second derivative jumps there, so differences err by their width, which twice the width reveals
    numeric = 2 * differences(loss, images, 1e-6) - differences(loss, images, 2e-6)
    assert (gradients["images"] - numeric).norm() / numeric.norm() < 1e-6
    assert gradients["images"][:, 1].abs().min() > 0


def test_augmentation_sees_every_batch_and_its_step() -> None:
    net, learned, labels, batches = problem(4)
    training = Training(net=net, batches=batches, augment=lambda x, step: x * (step + 1))
    rates = F.softplus(learned["rho"])
    found = unrolled_loss(training, weights_of(net), learned["images"], labels, rates, REAL_IMAGES, REAL_LABELS)
    scaled = torch.cat([learned["images"][index] * (step + 1) for step, index in enumerate(batches)])
    plain = Training(net=net, batches=cycled(4, 2, 1))
    expected = unrolled_loss(
        plain, weights_of(net), scaled, labels[[0, 1, 2, 3, 4, 5, 0, 1]], rates, REAL_IMAGES, REAL_LABELS
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_training_leaves_the_net_and_its_weights_alone() -> None:
    net, learned, labels, batches = problem(3)
    weights, before = weights_of(net), weights_of(net)
    training = Training(net=net, batches=batches, inner=Adam())
    hypergradient(training, weights, learned["images"], labels, learned["rho"], REAL_IMAGES, REAL_LABELS)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(weights[name], before[name])
        assert parameter.grad is None
        assert not weights[name].requires_grad


def test_skipped_steps_hold_no_graph_and_later_ones_do() -> None:
    net, learned, labels, batches = problem(4)
    images = learned["images"].requires_grad_()
    training = Training(net=net, batches=batches, inner=Sgd(momentum=0.5), skip=2)
    visited = list(trajectory(training, weights_of(net), images, labels, F.softplus(learned["rho"])))
    assert [weights["0.weight"].grad_fn is not None for weights in visited] == [False, False, True, True]
    assert len(visited) == 4


def test_cycled_and_inverse_softplus_by_hand() -> None:
    assert cycled(2, 3, 2) == [slice(0, 3), slice(3, 6), slice(0, 3), slice(3, 6)]
    assert F.softplus(torch.tensor(inverse_softplus(0.02), dtype=torch.float64)).item() == pytest.approx(0.02)


def test_bad_windows_and_outer_weights_are_refused() -> None:
    net, learned, labels, batches = problem(3)
    with pytest.raises(ValueError, match="fewer than all 3 steps, got 3"):
        Training(net=net, batches=batches, skip=3)
    for factors in ([0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="expected 3 outer weights, zero in the first 2 steps"):
            hypergradient(
                Training(net=net, batches=batches, skip=2),
                weights_of(net),
                learned["images"],
                labels,
                learned["rho"],
                REAL_IMAGES,
                REAL_LABELS,
                factors,
            )


def least_squares(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of a regression: half the squared error, averaged over the images."""
    return ((logits - targets) ** 2).sum() / (2 * len(targets))


def one_linear_step(start: Tensor, inputs: Tensor, targets: Tensor, rate: float) -> Tensor:
    net = nn.Linear(inputs.shape[1], targets.shape[1], bias=False).double()
    training = Training(net=net, batches=[slice(None)], loss=least_squares)
    rates = torch.tensor(rate, dtype=torch.float64)
    (after,) = trajectory(training, {"weight": start.T}, inputs, targets, rates)
    return after["weight"].T


@pytest.mark.parametrize("rank", [2, 4, 5])
def test_as_many_linear_images_as_the_rank_reach_the_optimum_from_any_weights(rank: int) -> None:
    real = random(9, rank, seed=0) @ random(rank, 5, seed=1)
    targets = random(9, 2, seed=2)
    inputs, synthetic_targets = linear_distillation(real, targets, rate=0.3)
    assert inputs.shape == (rank, 5)
    optimum = torch.linalg.lstsq(real, targets, driver="gelsd").solution
    best = least_squares(real @ optimum, targets).item()
    for seed in range(3):
        start = 10 * random(5, 2, seed=100 + seed)
        after = one_linear_step(start, inputs, synthetic_targets, rate=0.3).detach()
        assert least_squares(real @ start, targets).item() > 10 * best
        assert least_squares(real @ after, targets).item() == pytest.approx(best, rel=1e-12)
        if rank == 5:  # as many as there are features: the optimum is one point
            assert (after - optimum).abs().max() <= 1e-10


@pytest.mark.parametrize("count", [1, 3, 4])
def test_one_step_on_fewer_linear_images_than_features_leaves_a_part_of_the_weights_as_it_is(count: int) -> None:
    """The rank argument: whatever the images and the rate, a step is the identity on what they do not span."""
    inputs, targets, start = random(count, 5, seed=0), random(count, 1, seed=1), random(5, 1, seed=2)
    unseen = torch.linalg.svd(inputs).Vh[count:].T
    assert unseen.shape == (5, 5 - count)
    after = one_linear_step(start, inputs, targets, rate=0.3)
    assert (after - start).norm() > 0.01
    torch.testing.assert_close(unseen.T @ after, unseen.T @ start, rtol=0, atol=1e-14)
    # so two initial weights that differ there end as far apart as they began, and one of them misses the optimum
    apart = unseen @ random(5 - count, 1, seed=3)
    other = one_linear_step(start + apart, inputs, targets, rate=0.3)
    torch.testing.assert_close(other - after, apart, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dimension", "count"), [(2, 1), (4, 1), (4, 2), (4, 3)])
def test_fewer_linear_images_reach_the_optimum_from_no_set_of_weights_that_spans(dimension: int, count: int) -> None:
    """With D dimensions and D initial weights (so two for D = 2), M < D images always leave a distance.

    A step moves the weights within the span of the M inputs. The ways to go, theta* - theta_0, span all D dimensions,
    so by Eckart and Young the squared distances left sum to at least the squares of all but the M largest singular
    values of these ways. The best images reach just that; a search over images gets no lower.
    """
    real, targets = random(9, dimension, seed=0), random(9, 1, seed=1)
    optimum = torch.linalg.lstsq(real, targets).solution
    starts = [random(dimension, 1, seed=50 + number) for number in range(dimension)]
    ways = torch.cat([optimum - start for start in starts], dim=1)
    directions, values, _ = torch.linalg.svd(ways)
    bound = (values[count:] ** 2).sum().item()
    assert bound > 1e-2

    def distance_left(inputs: Tensor, synthetic_targets: Tensor) -> Tensor:
        left = [((one_linear_step(start, inputs, synthetic_targets, 1.0) - optimum) ** 2).sum() for start in starts]
        return torch.stack(left).sum()

    lowest = math.inf
    for seed in range(3):
        learned = [
            random(count, dimension, seed=200 + seed).requires_grad_(),
            random(count, 1, seed=300).requires_grad_(),
        ]
        assert distance_left(*learned).item() >= bound
        optimizer = torch.optim.LBFGS(learned, max_iter=50, line_search_fn="strong_wolfe")

        def closure(learned: list[Tensor] = learned, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = distance_left(*learned)
            value.backward()
            return value

        optimizer.step(closure)
        lowest = min(lowest, distance_left(*learned).item())
    assert lowest >= bound
    nearest = math.sqrt(count) * directions[:, :count].T
    assert distance_left(nearest, nearest @ optimum).item() == pytest.approx(bound, rel=1e-12)
    enough = linear_distillation(real, targets, rate=1.0)
    assert len(enough[0]) == dimension
    assert distance_left(*enough).item() < 1e-24 * bound
