import itertools

import pytest
import torch
from torch.func import vjp
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.derivatives.inner import SGD, Adam, Cotangents, Momentum, Setting
from fastdistill_kernels import inner_adjoints
from fastdistill_kernels.gpu import inner_adjoints as gpu
from fastdistill_kernels.gpu import partial_sums
from fastdistill_kernels.reference import inner_adjoints as reference
from fastdistill_kernels.reference import inner_steps as reference_steps
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import LIMITS, error
from tests.kernels.devices import on_kernel_device

SHAPES = ((1, 1), (3, 1), (2, 0), (0, 5), (5, 37), (1, 1024), (3, 1025), (2, 3001))
ADAM = {"beta2": 0.95, "epsilon": 1e-3}
ADJOINTS = ("sgd_adjoint", "momentum_adjoint", "adam_adjoint")
OPTIONAL = {
    "sgd_adjoint": (3, 4, 5),
    "momentum_adjoint": (2, 3, 4, 5, 6),
    "adam_adjoint": (1, 2, 3),
}  # places of the tensors that may be left out


def random(*shape, seed=0, dtype=torch.float64, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def arguments(name, students, size, decay=0.05, dtype=torch.float64, device="cpu", number=3):
    """Of an operator's reference, in its order, with everything that may be left out."""
    like = {"dtype": dtype, "device": device}
    cotangent, product, extra, first, second = (random(students, size, seed=seed, **like) for seed in range(5))
    rate, momentum = random(students, seed=5, **like).abs(), random(students, seed=6, **like).sigmoid()
    if name == "sgd_adjoint":
        return [cotangent, product, rate, first, second, extra, decay]
    if name == "momentum_adjoint":
        state = random(students, size, seed=7, **like)
        return [cotangent, state, momentum, product, extra, first, second, rate, decay]
    state = random(2, students, size, seed=7, **like)
    moments = random(2, students, size, seed=8, **like)
    moments[1].square_()
    numbers = number + torch.arange(students, device=device)
    weights = random(students, size, seed=9, **like)
    settings = (ADAM["beta2"], ADAM["epsilon"], decay)
    _, new_moments = reference_steps.adam_step(weights, moments, first, rate, momentum, numbers, *settings)
    return [cotangent, state, product, extra, moments, new_moments, rate, momentum, numbers, *settings]


def without(values, places):
    return [None if place in places else value for place, value in enumerate(values)]


def public(name, values):
    """Calls the public function, whose optional tensors and settings go by name."""
    if name == "sgd_adjoint":
        cotangent, product, rate, weights, gradient, extra, decay = values
        given = {"weights": weights, "gradient": gradient, "extra": extra}
        return inner_adjoints.sgd_adjoint(cotangent, product, rate, decay=decay, **given)
    if name == "momentum_adjoint":
        cotangent, state, scale, product, extra, velocity, new_velocity, rate, decay = values
        given = {"state_scale": scale, "product": product, "extra": extra, "velocity": velocity}
        return inner_adjoints.momentum_adjoint(cotangent, state, rate, decay=decay, new_velocity=new_velocity, **given)
    cotangent, state, product, extra, *plain, beta2, epsilon, decay = values
    scalars = {"beta2": beta2, "epsilon": epsilon, "decay": decay}
    return inner_adjoints.adam_adjoint(cotangent, state, *plain, product=product, extra=extra, **scalars)


def wide(values):
    """The same numbers in float64."""
    tensors = (isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)
    return [value.double() if tensor else value for value, tensor in zip(values, tensors, strict=True)]


@pytest.fixture
def problem():
    """Inputs of one step of three students, and cotangents of its results, in float64."""
    weights, gradient, cotangent = (random(3, 11, seed=seed) for seed in range(3))
    state, state_cotangent = random(2, 3, 11, seed=4), random(2, 3, 11, seed=5)
    state[1].square_()
    rate = torch.tensor([0.1, 0.0, 2.0], dtype=torch.float64)
    return weights, gradient, state, Cotangents(cotangent, state_cotangent), rate


MOMENTA = torch.tensor([0.9, 0.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_sgd_is_the_unrolled_backward_step(problem, decay, monkeypatch):
    monkeypatch.setattr(reference_steps, "_PIECE", 16)
    weights, gradient, _, cotangents, rate = problem
    hessian = random(3, 11, 11, seed=6)
    optimizer = SGD(decay=decay)
    nothing = Cotangents(cotangents.weights, weights[:0, None])
    back = optimizer.adjoint(nothing, weights, weights[:0, None], weights[:0, None], Setting(rate, MOMENTA, 0))
    product = torch.einsum("spq,sq->sp", hessian, back.direction)
    # along λ itself: the optimiser's direction is −λ
    found = inner_adjoints.sgd_adjoint(
        cotangents.weights, -product, rate, decay=decay, weights=weights, gradient=gradient
    )
    assert error(found.weights, back.weights + back.scale[:, None] * product) <= 1e-12
    assert error(found.rate, back.rate + (gradient * back.direction).sum(-1)) <= 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_momentum_is_the_inner_optimisers_adjoint(problem, decay, monkeypatch):
    monkeypatch.setattr(reference_steps, "_PIECE", 16)
    weights, gradient, state, cotangents, rate = problem
    optimizer, setting = Momentum(decay=decay), Setting(rate, MOMENTA, 0)
    _, new_state = optimizer.step(weights, state[:1], gradient, setting)
    cotangents = Cotangents(cotangents.weights, cotangents.state[:1])
    back = optimizer.adjoint(cotangents, weights, state[:1], new_state, setting)
    found = inner_adjoints.momentum_adjoint(
        cotangents.weights, cotangents.state[0], rate, decay=decay, velocity=state[0], new_velocity=new_state[0]
    )
    assert error(MOMENTA[:, None] * found.direction, back.state[0]) <= 1e-12
    for name in ("weights", "direction", "rate", "momentum"):
        assert error(getattr(found, name), getattr(back, name)) <= 1e-12


@pytest.mark.parametrize("number", [0, 1, 9])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_adam_is_the_inner_optimisers_adjoint(problem, decay, number, monkeypatch):
    monkeypatch.setattr(reference_steps, "_PIECE", 16)
    weights, gradient, state, cotangents, rate = problem
    if number == 0:
        state = torch.zeros_like(state)
        gradient[:, :2] = 0  # never a gradient: the root's slope is infinite
    setting = Setting(rate, MOMENTA, number)
    optimizer = Adam(decay=decay, **ADAM)
    _, new_state = optimizer.step(weights, state, gradient, setting)
    back = optimizer.adjoint(cotangents, weights, state, new_state, setting)
    count = torch.tensor(number)
    found = inner_adjoints.adam_adjoint(
        cotangents.weights, cotangents.state, state, new_state, rate, MOMENTA, count, decay=decay, **ADAM
    )
    for name in ("weights", "direction", "state", "rate"):
        assert error(getattr(found, name), getattr(back, name)) <= 1e-12
    assert error(found.beta1, back.momentum) <= 1e-12


def test_nothing_is_zero(problem):
    # behind the last step the state has no cotangent; what was added before is as good as what is added here
    for name in ("momentum_adjoint", "adam_adjoint"):
        values = arguments(name, 3, 11)
        zeros = [torch.zeros_like(value) if place == 1 else value for place, value in enumerate(values)]
        plain = without(values, (1, 2) if name == "momentum_adjoint" else (1,))
        for mine, other in zip(public(name, plain), public(name, zeros), strict=True):
            assert torch.equal(mine, other)
        product = values[3 if name == "momentum_adjoint" else 2]
        whole = [values[0] + product, *values[1:]]
        added = without(whole, (3,) if name == "momentum_adjoint" else (2,))
        for mine, other in zip(public(name, added), public(name, values), strict=True):
            assert error(mine, other) <= 1e-12


def unrolled(name, start, rates, momenta, hessian, decay):
    """Weights after some steps on ``θᵀ A θ / 2``, and those before every one, with what the adjoints need."""
    weights, state, kept = start, None, []
    for number, (rate, momentum) in enumerate(zip(rates, momenta, strict=True)):
        gradient = torch.einsum("spq,sq->sp", hessian, weights)
        if name == "sgd_adjoint":
            kept.append((weights, gradient))
            weights = weights - rate[:, None] * (gradient + decay * weights)
            continue
        adam = name == "adam_adjoint"
        state = torch.zeros(2 if adam else 1, *start.shape).double() if state is None else state
        optimizer = Adam(decay=decay, **ADAM) if adam else Momentum(decay=decay)
        old = weights, state
        weights, state = optimizer.step(weights, state, gradient, Setting(rate, momentum, number))
        kept.append((*old, state))
    return weights, kept


@pytest.mark.parametrize("name", ADJOINTS)
def test_a_chain_of_adjoints_is_reverse_mode_through_training(name):
    """Sum and adjoint in one pass, with a further outer loss ``Σ θ_2 · c`` on the way."""
    steps, decay = 4, 0.05
    start, further, slope = random(3, 7), random(3, 7, seed=1), random(3, 7, seed=2)
    rates, momenta = 0.1 * random(steps, 3, seed=3).abs(), random(steps, 3, seed=4).sigmoid()
    hessian = random(3, 7, 7, seed=5)
    hessian = hessian + hessian.mT

    def outer(start, rates, momenta):
        weights, kept = unrolled(name, start, rates, momenta, hessian, decay)
        return (weights * slope).sum() + (kept[2][0] * further).sum()

    _, pull = vjp(outer, start, rates, momenta)
    truth = pull(torch.ones((), dtype=torch.float64))
    _, kept = unrolled(name, start, rates, momenta, hessian, decay)
    cotangent, state, scale, product, in_rates, in_momenta = slope, None, None, None, [], []
    for number in reversed(range(steps)):
        rate, extra = rates[number], further if number == 1 else None  # λ of θ_2 is made behind step 1
        weights, before, *after = kept[number]
        if name == "sgd_adjoint":
            product = torch.einsum("spq,sq->sp", hessian, cotangent)
            extra = further if number == 2 else None  # here λ of θ_2 is the result of step 2
            given = {"weights": weights, "gradient": before, "extra": extra}
            found = inner_adjoints.sgd_adjoint(cotangent, product, rate, decay=decay, **given)
            in_momenta.append(torch.zeros(3).double())
        elif name == "momentum_adjoint":
            given = {"state_scale": scale, "product": product, "extra": extra}
            found = inner_adjoints.momentum_adjoint(
                cotangent, state, rate, decay=decay, velocity=before[0], new_velocity=after[0][0], **given
            )
            state, scale = found.direction, momenta[number]
            in_momenta.append(found.momentum)
        else:
            settings = {**ADAM, "decay": decay, "product": product, "extra": extra}
            found = inner_adjoints.adam_adjoint(
                cotangent, state, before, after[0], rate, momenta[number], torch.tensor(number), **settings
            )
            state = found.state
            in_momenta.append(found.beta1)
        cotangent = found.weights
        in_rates.append(found.rate)
        if name != "sgd_adjoint":
            product = torch.einsum("spq,sq->sp", hessian, found.direction)
    if name != "sgd_adjoint":
        cotangent = cotangent + product
    assert error(cotangent, truth[0]) <= 1e-12
    assert error(torch.stack(in_rates[::-1]), truth[1]) <= 1e-12
    assert error(torch.stack(in_momenta[::-1]), truth[2]) <= 1e-12


def check_kernel(name, values):
    found = getattr(gpu, name)(*values)
    truth = getattr(reference, name)(*wide_or_none(values))
    for mine, exact in zip(found, truth, strict=True):
        assert mine.dtype == torch.float32
        assert mine.is_contiguous()
        assert error(mine, exact) <= LIMITS["float32"]
    return found


def wide_or_none(values):
    return [None if value is None else wide([value])[0] for value in values]


@on_kernel_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ADJOINTS)
def test_kernels_equal_the_reference(name, shape, device, poisoned):
    check_kernel(name, arguments(name, *shape, dtype=torch.float32, device=device))


@on_kernel_device
@pytest.mark.parametrize("name", ADJOINTS)
def test_kernels_do_without_what_may_be_left_out(name, device, poisoned):
    values = arguments(name, 2, 1030, dtype=torch.float32, device=device)
    for count in range(1, len(OPTIONAL[name]) + 1):
        for places in itertools.combinations(OPTIONAL[name], count):
            check_kernel(name, without(values, places))
    if name == "momentum_adjoint":
        check_kernel(name, without(values, (1, 2)))


@on_kernel_device
@settings(max_examples=10, deadline=None, derandomize=True)
@given(name=st.sampled_from(ADJOINTS), students=st.integers(1, 4), size=st.integers(1, 2500), decay=st.floats(0, 1))
def test_kernels_equal_the_reference_at_any_size(device, name, students, size, decay):
    check_kernel(name, arguments(name, students, size, decay, torch.float32, device))


@on_kernel_device
@pytest.mark.parametrize("name", ADJOINTS)
def test_more_partial_sums_than_one_step_adds_up(name, device, poisoned, monkeypatch):
    monkeypatch.setattr(partial_sums, "_LONGEST", 2)
    values = arguments(name, 2, 5 * 1024 - 3, dtype=torch.float32, device=device)
    check_kernel(name, values)
    if name == "momentum_adjoint":  # one derivative alone takes another way
        check_kernel(name, without(values, (5,)))
        check_kernel(name, without(values, (6,)))


@on_kernel_device
@pytest.mark.parametrize("number", [0, 1, 1000, 10**6])
def test_adams_corrections_keep_their_digits(number, device, poisoned):
    values = arguments("adam_adjoint", 3, 50, 0.0, torch.float32, device, number)
    values[7] = torch.tensor([0.0, 0.9, 0.9999], device=device)
    values[9] = 0.9999
    check_kernel("adam_adjoint", values)


@on_kernel_device
def test_an_epsilon_of_zero_spoils_no_sum(device, poisoned):
    # 37 weights leave most of a program's lanes empty, where the root is that of nothing
    values = arguments("adam_adjoint", 2, 37, 0.0, torch.float32, device)
    values[10] = 0.0
    check_kernel("adam_adjoint", values)


@on_kernel_device
def test_a_weight_without_a_gradient_is_finite(device, poisoned):
    values = arguments("adam_adjoint", 2, 40, 0.0, torch.float32, device, number=0)
    values[4], values[5] = torch.zeros_like(values[4]), values[5].clone()
    values[5][..., :7] = 0
    values[8] = torch.zeros_like(values[8])
    values[10] = 1e-8
    found = check_kernel("adam_adjoint", values)
    # at g = 0 the change is η g/ε, so its slope is η/ε, beside what the state's own cotangent passes on
    after = values[0] + values[2] + values[3]
    expected = -values[6][:, None] / 1e-8 * after + (1 - values[7])[:, None] * values[1][0]
    assert torch.allclose(found[1][:, :7], expected[:, :7], rtol=1e-4)


@pytest.mark.parametrize("name", ADJOINTS)
def test_operators_are_registered_whole(name):
    for size in (0, 5):
        values = arguments(name, 3, size, dtype=torch.float32)
        operator = getattr(torch.ops.fastdistill, name).default
        torch.library.opcheck(operator, values)
        torch.library.opcheck(operator, without(values, OPTIONAL[name]))


@pytest.mark.parametrize("name", ADJOINTS)
def test_compiled_functions_equal_eager_ones_without_a_second_compilation(name):
    torch.compiler.reset()
    compiled = torch.compile(lambda values: public(name, values), fullgraph=True, backend="aot_eager")
    first, second = (arguments(name, 3, 20, dtype=torch.float32, number=number) for number in (0, 5))
    compiled(first)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled(second)
    for mine, eager in zip(found, public(name, second), strict=True):
        assert torch.equal(mine, eager)


@pytest.mark.parametrize(
    ("name", "everything", "least"),
    [
        ("sgd_adjoint", 9, 4),  # λ − η (p + d λ); extra 1, and two dots of 2 each
        ("momentum_adjoint", 11, 4),  # −η λ + κ, λ + d v; a scale, two sums, and two dots of 2 each
        ("adam_adjoint", 32, 30),  # product and extra, 1 each; two dots of 2, the formulas' 24, κ added to two
    ],
)
def test_operations_are_counted(name, everything, least):
    values = arguments(name, 3, 20)
    fewest = {"sgd_adjoint": (3, 4, 5), "momentum_adjoint": (2, 3, 4, 5, 6), "adam_adjoint": (2, 3)}[name]
    for some, expected in ((values, everything), (without(values, fewest), least)):
        with FlopCounterMode(display=False) as counter:
            public(name, some)
        assert counter.get_total_flops() == expected * 60


def test_the_least_traffic_is_counted():
    matrix = 3 * 20 * 4
    assert inner_adjoints.cost_sgd_adjoint(3, 20, 4).bytes == 3 * matrix
    assert inner_adjoints.cost_sgd_adjoint(3, 20, 4, weights=True).bytes == 4 * matrix
    assert inner_adjoints.cost_momentum_adjoint(3, 20, 4).bytes == 7 * matrix
    assert inner_adjoints.cost_adam_adjoint(3, 20, 4).bytes == 11 * matrix
    assert inner_adjoints.cost_adam_adjoint(3, 20, 4, state_cotangent=False, product=False).bytes == 8 * matrix


def test_derivatives_that_are_not_wanted_are_none():
    found = public("sgd_adjoint", without(arguments("sgd_adjoint", 3, 5), (3, 4)))
    assert found.rate is None
    assert public("sgd_adjoint", without(arguments("sgd_adjoint", 3, 5), (3,))).rate.shape == (3,)
    found = public("momentum_adjoint", without(arguments("momentum_adjoint", 3, 5), (5, 6)))
    assert found.rate is None
    assert found.momentum is None


def test_what_cannot_be_taken_is_named():
    sgd, momentum, adam = (arguments(name, 3, 20, dtype=torch.float32) for name in ADJOINTS)
    with pytest.raises(ValueError, match=r"expected product \[S, P\] = \[3, 20\], got \[3, 19\]"):
        public("sgd_adjoint", [sgd[0], sgd[1][:, 1:], *sgd[2:]])
    with pytest.raises(ValueError, match=r"expected extra like cotangent in torch.float32"):
        public("sgd_adjoint", [*sgd[:5], sgd[5].double(), sgd[6]])
    with pytest.raises(ValueError, match=r"in float32 or float64, got torch.bfloat16"):
        public("sgd_adjoint", [value.bfloat16() for value in sgd[:-1]] + sgd[-1:])
    with pytest.raises(ValueError, match=r"expected weights like cotangent in torch.float32 on cpu, got .* on meta"):
        public("sgd_adjoint", [*sgd[:3], sgd[3].to("meta"), *sgd[4:]])
    with pytest.raises(ValueError, match="expected no state_scale without a state_cotangent"):
        public("momentum_adjoint", without(momentum, (1,)))
    with pytest.raises(ValueError, match=r"expected state_scale \[S\] = \[3\], got \[2\]"):
        public("momentum_adjoint", [*momentum[:2], momentum[2][1:], *momentum[3:]])
    with pytest.raises(ValueError, match=r"expected state_cotangent \[2, S, P\] = \[2, 3, 20\], got \[1, 3, 20\]"):
        public("adam_adjoint", [adam[0], adam[1][:1], *adam[2:]])
    with pytest.raises(ValueError, match="expected number in int64"):
        public("adam_adjoint", [*adam[:8], adam[8].float(), *adam[9:]])
    with pytest.raises(TypeError, match="requires grad"):
        public("momentum_adjoint", [*momentum[:3], momentum[3].clone().requires_grad_(), *momentum[4:]])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="dual tensor"):
        public("adam_adjoint", [*adam[:2], torch.autograd.forward_ad.make_dual(adam[2], adam[2]), *adam[3:]])
