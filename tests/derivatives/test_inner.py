"""The inner optimisers against torch.optim, and their adjoints against reverse mode, in float64."""

import pytest
import torch
from torch.func import vjp

from fastdistill.derivatives.inner import SGD, Adam, Cotangents, Momentum, Setting

OPTIMIZERS = {
    "sgd": SGD(),
    "sgd-decay": SGD(decay=0.05),
    "momentum": Momentum(),
    "momentum-decay": Momentum(decay=0.05),
    "adam": Adam(),
    "adam-decay": Adam(decay=0.05, beta2=0.9, epsilon=1e-3),
}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def torch_optimizer(name, parameters, rate, momentum, optimizer):
    if name.startswith("adam"):
        betas = (momentum, optimizer.beta2)
        return torch.optim.Adam(parameters, rate, betas=betas, eps=optimizer.epsilon, weight_decay=optimizer.decay)
    momentum = momentum if name.startswith("momentum") else 0.0
    return torch.optim.SGD(parameters, rate, momentum=momentum, weight_decay=optimizer.decay)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name):
    optimizer, students, size = OPTIMIZERS[name], 3, 11
    rates, momenta = [0.1, 0.02, 0.5], [0.9, 0.0, 0.5]
    weights = random(students, size)
    state = torch.zeros(optimizer.slots, students, size, dtype=torch.float64)
    rows = [torch.nn.Parameter(row.clone()) for row in weights]
    theirs = [torch_optimizer(name, [row], *pair, optimizer) for row, *pair in zip(rows, rates, momenta, strict=True)]
    for number in range(6):
        gradient = random(students, size, seed=number + 1)
        setting = Setting(torch.tensor(rates, dtype=weights.dtype), torch.tensor(momenta, dtype=weights.dtype), number)
        weights, state = optimizer.step(weights, state, gradient, setting)
        for row, own, its in zip(rows, gradient, theirs, strict=True):
            row.grad = own
            its.step()
        assert relative(weights, torch.stack([row.detach() for row in rows])) <= 1e-14


def reverse_mode(optimizer, weights, state, gradient, rate, momentum, number, cotangents):
    """Cotangents of everything that goes into a step."""

    def step(weights, state, gradient, rate, momentum):
        return optimizer.step(weights, state, gradient, Setting(rate, momentum, number))

    results, pull = vjp(step, weights, state, gradient, rate, momentum)
    return results, pull(cotangents)


def check_adjoint(optimizer, weights, state, gradient, rate, momentum, number, tolerance):
    cotangents = Cotangents(random(*weights.shape, seed=5), random(*state.shape, seed=6))
    (_, new_state), truth = reverse_mode(optimizer, weights, state, gradient, rate, momentum, number, tuple(cotangents))
    found = optimizer.adjoint(cotangents, weights, state, new_state, Setting(rate, momentum, number))
    of_gradient = found.direction if found.scale is None else found.scale[:, None] * found.direction
    of_rate = found.rate if found.scale is None else found.rate + (gradient * found.direction).sum(-1)
    for name, mine, expected in zip(
        ("weights", "state", "gradient", "rate", "momentum"),
        (found.weights, found.state, of_gradient, of_rate, found.momentum),
        truth,
        strict=True,
    ):
        assert mine.shape == expected.shape, name
        assert relative(mine, expected) <= tolerance, (name, relative(mine, expected))


@pytest.mark.parametrize("number", [0, 1, 9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adjoint_is_reverse_mode(name, number):
    optimizer, students, size = OPTIMIZERS[name], 3, 11
    state = random(optimizer.slots, students, size, seed=2)
    if optimizer.slots == 2:
        state[1] = state[1].square()
    if number == 0:
        state = torch.zeros_like(state)
    rate, momentum = torch.tensor([0.1, 0.0, 2.0]).double(), torch.tensor([0.9, 0.0, 0.5]).double()
    check_adjoint(
        optimizer, random(students, size), state, random(students, size, seed=3), rate, momentum, number, 1e-12
    )


def adam_without_gradients(dtype, tiny=0.0):
    optimizer = Adam()
    gradient = random(2, 8, seed=3, dtype=dtype)
    gradient[:, :3] = tiny
    gradient[:, 3] = 0
    weights, state = random(2, 8, dtype=dtype), torch.zeros(2, 2, 8, dtype=dtype)
    setting = Setting(torch.full((2,), 0.1, dtype=dtype), torch.full((2,), 0.9, dtype=dtype), 0)
    _, new_state = optimizer.step(weights, state, gradient, setting)
    cotangents = Cotangents(random(2, 8, seed=5, dtype=dtype), random(2, 2, 8, seed=6, dtype=dtype))
    return optimizer.adjoint(cotangents, weights, state, new_state, setting), cotangents, setting, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tiny", [0.0, 1e-12, 1e-20, 1e-21, 1e-30])
def test_adam_without_a_gradient_has_the_cotangent_of_the_limit(dtype, tiny):
    found, cotangents, setting, optimizer = adam_without_gradients(dtype, tiny)
    for tensor in (found.weights, found.state, found.direction, found.rate, found.momentum):
        assert tensor.isfinite().all()
    # at g = 0 the update is η g/ε, so its slope is η/ε, beside what the first moment's own cotangent passes on
    expected = -setting.rate[:, None] * cotangents.weights / optimizer.epsilon + 0.1 * cotangents.state[0]
    assert torch.allclose(found.direction[:, 3], expected[:, 3], rtol=1e-5)


@pytest.mark.parametrize("ratio", [1, 10, 100, 1000])
def test_adam_in_float32_loses_little_by_recovering_the_gradient(ratio):
    # first moments far above the gradient are the worst case of recovering it from them
    inputs = [random(2, 4096), None, random(2, 4096, seed=3), torch.full((2,), 0.001), torch.full((2,), 0.9)]
    inputs[1] = torch.stack([ratio * random(2, 4096, seed=7), random(2, 4096, seed=8).square() + ratio**2])
    inputs = [tensor.float() for tensor in inputs]
    cotangents = [random(2, 4096, seed=5).float(), random(2, 2, 4096, seed=6).float()]
    _, truth = reverse_mode(Adam(), *(t.double() for t in inputs), 30, tuple(t.double() for t in cotangents))
    (_, new_state), textbook = reverse_mode(Adam(), *inputs, 30, tuple(cotangents))
    weights, state, _, rate, momentum = inputs
    found = Adam().adjoint(Cotangents(*cotangents), weights, state, new_state, Setting(rate, momentum, 30))
    mine = (found.weights, found.state, found.direction, found.rate, found.momentum)
    for name, own, its, exact in zip(
        ("weights", "state", "gradient", "rate", "momentum"), mine, textbook, truth, strict=True
    ):
        error, theirs = relative(own.double(), exact), relative(its.double(), exact)
        assert error <= 2 * theirs + 1e-8 * ratio, (name, error, theirs)


@pytest.mark.parametrize("make", [SGD, Momentum, Adam])
def test_a_negative_decay_is_refused(make):
    with pytest.raises(ValueError, match=r"expected a weight decay of at least 0, got -0\.1"):
        make(decay=-0.1)


@pytest.mark.parametrize("options", [{"beta2": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}, {"epsilon": float("nan")}])
def test_settings_that_adam_cannot_run_with_are_refused(options):
    with pytest.raises(ValueError, match="expected 0 <= beta2 < 1 and a positive epsilon"):
        Adam(**options)
