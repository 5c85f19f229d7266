from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd

from bench.naive.trajectory import (
    expert_labels,
    mtt,
    shuffled_batches,
    tesla,
    train_expert,
    trajectory_loss,
)
from bench.naive.unrolled import Adam, Sgd, StepAugment, Training, Weights

Learned = dict[str, Tensor]
Method = Callable[..., tuple[Tensor, Learned]]

HARD = torch.tensor([0, 1, 2, 0, 1])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_net() -> nn.Module:
    """A student without kinks, so that differences converge."""
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3)).double()


def weights_of(seed: int) -> Weights:
    named = smooth_net().named_parameters()
    return {name: 0.5 * random(*parameter.shape, seed=seed + i) for i, (name, parameter) in enumerate(named)}


START, TARGET = weights_of(0), weights_of(10)


def flip_every_other(images: Tensor, step: int) -> Tensor:
    return images.flip(3) if step % 2 else 0.9 * images


def problem(steps: int, *, soft: bool = False, augment: StepAugment | None = None) -> tuple[Training, Learned]:
    """Minibatches of two out of five images, one of which is alone in its batch."""
    learned = {"images": random(5, 1, 3, 3, seed=30), "step_size": torch.tensor(0.2, dtype=torch.float64)}
    if soft:
        learned["labels"] = random(5, 3, seed=31).abs()
    table = shuffled_batches(5, 2, steps, generator=torch.Generator().manual_seed(7))
    return Training(net=smooth_net(), batches=table, augment=augment), learned


def call(method: Method, training: Training, learned: Learned, **options: bool) -> tuple[Tensor, Learned]:
    labels = learned.get("labels", HARD)
    return method(training, START, TARGET, learned["images"], labels, learned["step_size"], **options)


def vector(weights: Weights) -> Tensor:
    return torch.cat([weight.flatten() for weight in weights.values()])


def loss_by_torch_optim(training: Training, learned: Learned) -> float:
    """The normalised distance after an ordinary training loop."""
    net = smooth_net()
    net.load_state_dict(START)
    optimizer = torch.optim.SGD(net.parameters(), lr=learned["step_size"].item())
    for step, index in enumerate(training.batches):
        inputs = learned["images"][index]
        if training.augment is not None:
            inputs = training.augment(inputs, step)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), learned.get("labels", HARD)[index]).backward()
        optimizer.step()
    final = vector({name: parameter.detach() for name, parameter in net.named_parameters()})
    far = vector(START) - vector(TARGET)
    return (((final - vector(TARGET)) ** 2).sum() / (far**2).sum()).item()


def differences(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-3) -> Tensor:
    """Central differences of the fourth order."""
    result = torch.zeros_like(at)
    for position in range(at.numel()):
        for distance, factor in ((1, 2 / 3), (2, -1 / 12)):
            for sign in (1, -1):
                moved = at.clone()
                moved.view(-1)[position] += sign * distance * step
                result.view(-1)[position] += sign * factor * function(moved) / step
    return result


@pytest.mark.parametrize("augment", [None, flip_every_other])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_mtt_equals_differences_of_a_loop_with_torch_optim(steps: int, soft: bool, augment: StepAugment | None) -> None:
    training, learned = problem(steps, soft=soft, augment=augment)
    value, gradients = call(mtt, training, learned)
    assert value.item() == pytest.approx(loss_by_torch_optim(training, learned), rel=1e-13)
    assert gradients.keys() == learned.keys()
    for name, gradient in gradients.items():
        numeric = differences(
            lambda moved, name=name: loss_by_torch_optim(training, {**learned, name: moved}), learned[name]
        )
        assert (gradient - numeric).norm() <= 1e-8 * numeric.norm(), name


def test_mtt_trains_with_momentum_too() -> None:
    training, learned = problem(4)
    training = Training(net=training.net, batches=training.batches, inner=Sgd(momentum=0.9))
    value, gradients = call(mtt, training, learned)

    def loss(moved: Tensor) -> float:
        return trajectory_loss(training, START, TARGET, moved, HARD, learned["step_size"]).item()

    assert value.item() == pytest.approx(loss(learned["images"]), rel=1e-14)
    numeric = differences(loss, learned["images"])
    assert (gradients["images"] - numeric).norm() < 1e-8 * numeric.norm()


def tesla_by_jacobians(training: Training, learned: Learned, factor: float) -> tuple[float, Learned]:
    """The published formula with dense Jacobians of each step's gradient, at weights that a plain loop visits."""
    net, names = smooth_net(), [name for name in learned if name != "step_size"]
    rate = learned["step_size"]

    def step_gradient(weights: Weights, moved: Learned, step: int) -> Tensor:
        def loss(weights: Weights) -> Tensor:
            index = training.batches[step]
            inputs = moved["images"][index]
            if training.augment is not None:
                inputs = training.augment(inputs, step)
            return F.cross_entropy(functional_call(net, weights, (inputs,)), moved.get("labels", HARD)[index])

        return vector(grad(loss)(weights))

    def named(flat: Tensor) -> Weights:
        parts = flat.split([weight.numel() for weight in START.values()])
        return {name: part.view_as(START[name]) for name, part in zip(START, parts, strict=True)}

    visited, grads = [vector(START)], []
    for step in range(len(training.batches)):
        grads.append(step_gradient(named(visited[-1]), learned, step))
        visited.append(visited[-1] - rate * grads[-1])
    total, far = torch.stack(grads).sum(0), vector(TARGET) - vector(START)
    cotangent = rate * far + rate**2 * total
    result = {}
    for name in names:
        result[name] = torch.zeros_like(learned[name])
        for step, flat in enumerate(visited[:-1]):
            jacobian = jacfwd(
                lambda moved, name=name, flat=flat, step=step: step_gradient(
                    named(flat), {**learned, name: moved}, step
                )
            )(learned[name])
            result[name] += factor * torch.tensordot(cotangent, jacobian, dims=1) / (far @ far)
    result["step_size"] = 2 * (total @ far + rate * total @ total) / (far @ far)
    return (((visited[-1] - vector(TARGET)) ** 2).sum() / (far @ far)).item(), result


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_tesla_equals_its_formula_by_dense_jacobians(soft: bool, halved: bool) -> None:
    training, learned = problem(5, soft=soft, augment=flip_every_other)
    value, gradients = call(tesla, training, learned, halved=halved)
    expected_value, expected = tesla_by_jacobians(training, learned, factor=1 if halved else 2)
    assert value.item() == pytest.approx(expected_value, rel=1e-13)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("soft", [False, True])
def test_tesla_of_one_step_is_mtt_and_the_published_images_gradient_its_half(soft: bool) -> None:
    training, learned = problem(1, soft=soft)
    value, exact = call(mtt, training, learned)
    for halved in (False, True):
        found, gradients = call(tesla, training, learned, halved=halved)
        assert found.item() == pytest.approx(value.item(), rel=1e-14)
        for name, gradient in gradients.items():
            factor = 0.5 if halved and name != "step_size" else 1.0
            torch.testing.assert_close(gradient, factor * exact[name], rtol=1e-12, atol=1e-15)


def test_tesla_of_several_steps_drops_terms_that_mtt_has() -> None:
    training, learned = problem(5)
    value, exact = call(mtt, training, learned)
    found, gradients = call(tesla, training, learned)
    assert found.item() == pytest.approx(value.item(), rel=1e-13)
    for name, gradient in gradients.items():
        assert 1e-3 < (gradient - exact[name]).norm() / exact[name].norm() < 1, name


@pytest.mark.parametrize("changed", [{"inner": Sgd(momentum=0.5)}, {"inner": Adam()}, {"skip": 1}])
def test_tesla_refuses_what_its_formula_does_not_cover(changed: dict[str, object]) -> None:
    training, learned = problem(3)
    other = Training(net=training.net, batches=training.batches, **changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain gradient descent with no step skipped"):
        call(tesla, other, learned)


@pytest.mark.parametrize("method", [mtt, tesla])
def test_a_step_against_the_gradient_lowers_the_loss_and_nothing_else_changes(method: Method) -> None:
    training, learned = problem(5, soft=True, augment=flip_every_other)
    before = vector(START).clone(), {name: tensor.clone() for name, tensor in learned.items()}
    value, gradients = call(method, training, learned)
    assert torch.equal(vector(START), before[0])
    for name, tensor in learned.items():
        assert torch.equal(tensor, before[1][name])
        assert not tensor.requires_grad
    moved = {name: tensor - 1e-2 * gradients[name] for name, tensor in learned.items()}
    lower, _ = call(method, training, moved)
    assert lower < value
    assert not value.requires_grad


def test_shuffled_batches_pop_each_order_from_its_end() -> None:
    batches = shuffled_batches(5, 2, 8, generator=torch.Generator().manual_seed(3))
    assert [len(batch) for batch in batches] == [1, 2, 2, 1, 2, 2, 1, 2]
    generator = torch.Generator().manual_seed(3)
    for start in (0, 3):
        order = torch.randperm(5, generator=generator)
        assert torch.equal(torch.cat(batches[start : start + 3][::-1]), order)


def test_expert_labels_are_the_experts_probabilities() -> None:
    net, images = smooth_net(), random(7, 1, 3, 3, seed=40)
    labels = expert_labels(net, TARGET, images, chunk=3)
    logits = functional_call(net, TARGET, (images,))
    torch.testing.assert_close(labels, logits.exp() / logits.exp().sum(1, keepdim=True), rtol=1e-12, atol=0)
    assert labels.shape == (7, 3)
    assert not labels.requires_grad


def test_expert_training_equals_momentum_and_decay_by_hand() -> None:
    net, images, labels = smooth_net(), random(5, 1, 3, 3, seed=50), HARD
    net.load_state_dict(START)
    epochs = [[torch.tensor([3, 1]), torch.tensor([0, 2, 4])], [torch.tensor([4, 0]), torch.tensor([1, 2, 3])]]
    seen: list[int] = []

    def augment(inputs: Tensor, step: int) -> Tensor:
        seen.append(step)
        return inputs * (1 + step)

    snapshots = train_expert(net, images, labels, epochs, 0.1, momentum=0.9, weight_decay=0.05, augment=augment)

    def loss(weights: Weights, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (inputs,)), targets)

    weights = START
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    expected = [weights]
    for epoch, batches in enumerate(epochs):
        for number, index in enumerate(batches):
            grads = grad(loss)(weights, images[index] * (1 + 2 * epoch + number), labels[index])
            velocity = {name: 0.9 * velocity[name] + grads[name] + 0.05 * weights[name] for name in weights}
            weights = {name: weights[name] - 0.1 * velocity[name] for name in weights}
        expected.append(weights)
    assert seen == [0, 1, 2, 3]
    assert len(snapshots) == 3
    for found, right in zip(snapshots, expected, strict=True):
        assert list(found) == list(right)
        torch.testing.assert_close(vector(found), vector(right), rtol=1e-12, atol=1e-14)


def test_snapshots_of_an_expert_share_no_memory() -> None:
    net, images = smooth_net(), random(5, 1, 3, 3, seed=50)
    snapshots = train_expert(net, images, HARD, [[torch.arange(5)]] * 3)
    first = vector(snapshots[0]).clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(vector(snapshots[0]), first)
    assert len({snapshot["0.weight"].data_ptr() for snapshot in snapshots}) == 4
    assert all(vector(snapshot).norm() > 0.1 for snapshot in snapshots)


def test_mtt_brings_images_to_an_experts_next_epoch() -> None:
    net = smooth_net()
    net.load_state_dict(START)
    real = random(30, 1, 3, 3, seed=60)
    labels = (real.flatten(1) @ random(9, 3, seed=61)).argmax(1)
    start, target = train_expert(net, real, labels, [[torch.arange(30)] * 20], lr=0.2)
    training, learned = problem(5)
    losses = []
    for _ in range(30):
        value, gradients = mtt(training, start, target, learned["images"], HARD, learned["step_size"])
        losses.append(value.item())
        learned["images"] = learned["images"] - 2.0 * gradients["images"]
        learned["step_size"] = learned["step_size"] - 0.01 * gradients["step_size"]
    assert losses[-1] < 0.5 * losses[0]
