import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.derivatives.inner import SGD, Adam, Momentum, Setting
from fastdistill_kernels import inner_steps
from fastdistill_kernels.gpu import inner_steps as gpu
from fastdistill_kernels.reference import inner_steps as reference
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import LIMITS, error
from tests.kernels.devices import on_kernel_device

SHAPES = ((1, 1), (3, 1), (2, 0), (0, 5), (5, 37), (1, 1024), (3, 1025), (2, 3001))
SETTINGS = {"beta2": 0.95, "epsilon": 1e-3, "decay": 0.05}
STEPS = ("sgd_step", "momentum_step", "adam_step")


def random(*shape, seed=0, dtype=torch.float64, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def arguments(name, students, size, decay=SETTINGS["decay"], dtype=torch.float64, device="cpu", number=3):
    """Of an operator's reference, in its order."""
    like = {"dtype": dtype, "device": device}
    weights, gradient = random(students, size, **like), random(students, size, seed=1, **like)
    rate, momentum = random(students, seed=2, **like).abs(), random(students, seed=3, **like).sigmoid()
    if name == "sgd_step":
        return weights, gradient, rate, decay
    if name == "momentum_step":
        return weights, random(students, size, seed=4, **like), gradient, rate, momentum, decay
    moments = random(2, students, size, seed=4, **like)
    moments[1].square_()
    numbers = number + torch.arange(students, device=device)
    return weights, moments, gradient, rate, momentum, numbers, SETTINGS["beta2"], SETTINGS["epsilon"], decay


def public(name, values):
    """Calls the public function, whose settings go by name."""
    names = ("beta2", "epsilon", "decay") if name == "adam_step" else ("decay",)
    plain = values[: -len(names)]
    return getattr(inner_steps, name)(*plain, **dict(zip(names, values[-len(names) :], strict=True)))


def wide(values):
    """The same numbers in float64."""
    tensors = (isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)
    return [value.double() if tensor else value for value, tensor in zip(values, tensors, strict=True)]


def results(found):
    return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def optimizer_step(name, values):
    """The same by the optimisers of unrolled training, one student at a time: their number is one for all."""
    found = []
    for student in range(len(values[0])):
        one = slice(student, student + 1)
        weights, rate = values[0][one], values[-2 if name == "sgd_step" else 3][one]
        decay = values[-1]
        if name == "sgd_step":
            setting = Setting(rate, torch.zeros_like(rate), 0)
            new, state = SGD(decay=decay).step(weights, weights[:0, None], values[1][one], setting)
        elif name == "momentum_step":
            setting = Setting(rate, values[4][one], 0)
            new, state = Momentum(decay=decay).step(weights, values[1][one][None], values[2][one], setting)
        else:
            setting = Setting(rate, values[4][one], int(values[5][student]))
            adam = Adam(decay=decay, beta2=values[6], epsilon=values[7])
            new, state = adam.step(weights, values[1][:, one], values[2][one], setting)
        found.append((new, state[0] if name == "momentum_step" else state))
    weights = torch.cat([one for one, _ in found])
    return (weights,) if name == "sgd_step" else (weights, torch.cat([state for _, state in found], dim=-2))


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", STEPS)
def test_the_reference_is_the_inner_optimisers_step(name, decay, monkeypatch):
    monkeypatch.setattr(reference, "_PIECE", 16)  # several students in one piece, and a student in several
    for students, size in ((3, 7), (2, 37)):
        values = arguments(name, students, size, decay)
        found = results(getattr(reference, name)(*values))
        for mine, theirs in zip(found, optimizer_step(name, values), strict=True):
            assert error(mine, theirs) <= 1e-12


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_those_of_torch(name):
    decay, rates, momenta = 0.05, [0.1, 0.02, 0.5], [0.9, 0.0, 0.5]
    weights = random(3, 11)
    rows = [torch.nn.Parameter(row.clone()) for row in weights]
    theirs = [
        torch.optim.Adam([row], rate, betas=(momentum, 0.95), eps=1e-3, weight_decay=decay)
        if name == "adam_step"
        else torch.optim.SGD([row], rate, momentum * (name == "momentum_step"), weight_decay=decay)
        for row, rate, momentum in zip(rows, rates, momenta, strict=True)
    ]
    rate, momentum = torch.tensor(rates, dtype=torch.float64), torch.tensor(momenta, dtype=torch.float64)
    state = torch.zeros(2, 3, 11).double() if name == "adam_step" else torch.zeros(3, 11).double()
    for number in range(6):
        gradient = random(3, 11, seed=number + 1)
        if name == "sgd_step":
            weights = inner_steps.sgd_step(weights, gradient, rate, decay=decay)
        elif name == "momentum_step":
            weights, state = inner_steps.momentum_step(weights, state, gradient, rate, momentum, decay=decay)
        else:
            count = torch.tensor(number)
            weights, state = inner_steps.adam_step(weights, state, gradient, rate, momentum, count, **SETTINGS)
        for row, own, its in zip(rows, gradient, theirs, strict=True):
            row.grad = own
            its.step()
        assert error(weights, torch.stack([row.detach() for row in rows])) <= 1e-12


def check_kernel(name, students, size, device, **options):
    values = arguments(name, students, size, dtype=torch.float32, device=device, **options)
    found = results(getattr(gpu, name)(*values))
    truth = results(getattr(reference, name)(*wide(values)))
    for mine, exact in zip(found, truth, strict=True):
        assert mine.dtype == torch.float32
        assert mine.is_contiguous()
        assert error(mine, exact) <= LIMITS["float32"]
    return found, truth, values


@on_kernel_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_kernels_equal_the_reference(name, shape, device, poisoned):
    check_kernel(name, *shape, device)


@on_kernel_device
@settings(max_examples=10, deadline=None, derandomize=True)
@given(name=st.sampled_from(STEPS), students=st.integers(1, 4), size=st.integers(1, 2500), decay=st.floats(0, 1))
def test_kernels_equal_the_reference_at_any_size(device, name, students, size, decay):
    check_kernel(name, students, size, device, decay=decay)


@on_kernel_device
@pytest.mark.parametrize("number", [0, 1, 6, 1000, 10**6])
def test_adams_corrections_keep_their_digits(number, device, poisoned):
    # where a beta is close to 1, 1 − βᵏ in float32 would lose three digits: the change itself must have them all
    weights, moments, gradient, rate, _, numbers, *_ = arguments(
        "adam_step", 3, 50, dtype=torch.float32, device=device, number=number
    )
    beta1 = torch.tensor([0.0, 0.9, 0.9999], device=device)
    values = [torch.zeros_like(weights), moments, gradient, rate, beta1, numbers, 0.9999, 1e-8, 0.0]
    found, _ = gpu.adam_step(*values)
    for student in range(3):
        truth, _ = reference.adam_step(*wide(values))
        assert error(found[student], truth[student]) <= LIMITS["float32"]


@on_kernel_device
def test_one_number_serves_all_students(device):
    values = list(arguments("adam_step", 3, 40, dtype=torch.float32, device=device))
    values[5] = torch.tensor(7, device=device).expand(3)
    single = gpu.adam_step(*values)
    values[5] = torch.full((3,), 7, device=device)
    for one, other in zip(single, gpu.adam_step(*values), strict=True):
        assert torch.equal(one, other)


@on_kernel_device
def test_other_strides_are_copied(device):
    weights, gradient, rate, decay = arguments("sgd_step", 3, 40, dtype=torch.float32, device=device)
    groups = gradient[:, None].expand(3, 2, 40).contiguous()
    for other in (groups[:, 1], gradient.t().contiguous().t()):
        assert torch.equal(gpu.sgd_step(weights, other, rate, decay), gpu.sgd_step(weights, gradient, rate, decay))
        assert inner_steps.sgd_step(other, other, rate, decay=0.0).is_contiguous()


@pytest.mark.parametrize("name", STEPS)
def test_operators_are_registered_whole(name):
    for size in (0, 5):
        values = arguments(name, 3, size, dtype=torch.float32)
        torch.library.opcheck(getattr(torch.ops.fastdistill, name).default, values)


@pytest.mark.parametrize("name", STEPS)
def test_compiled_functions_equal_eager_ones_without_a_second_compilation(name):
    torch.compiler.reset()
    compiled = torch.compile(lambda values: public(name, values), fullgraph=True, backend="aot_eager")
    first, second = (arguments(name, 3, 20, dtype=torch.float32, number=number) for number in (0, 5))
    compiled(first)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = results(compiled(second))
    for mine, eager in zip(found, results(public(name, second)), strict=True):
        assert torch.equal(mine, eager)


@pytest.mark.parametrize(("name", "expected"), [("sgd_step", 240), ("momentum_step", 360), ("adam_step", 960)])
def test_operations_are_counted(name, expected):
    with FlopCounterMode(display=False) as counter:
        public(name, arguments(name, 3, 20))
    assert counter.get_total_flops() == expected  # 4, 6 and 16 for each of 60 weights


def test_the_least_traffic_is_counted():
    assert inner_steps.cost_sgd_step(3, 20, 4).bytes == 720
    assert inner_steps.cost_momentum_step(3, 20, 4).bytes == 1200
    assert inner_steps.cost_adam_step(3, 20, 4).bytes == 1680


def test_what_cannot_be_taken_is_named():
    weights, gradient, rate, decay = arguments("sgd_step", 3, 20, dtype=torch.float32)
    step = inner_steps.sgd_step
    with pytest.raises(ValueError, match=r"expected weights \[S, P\], got \[3, 1, 20\]"):
        step(weights[:, None], gradient, rate, decay=decay)
    with pytest.raises(ValueError, match=r"expected gradient \[S, P\] = \[3, 20\], got \[3, 19\]"):
        step(weights, gradient[:, 1:], rate, decay=decay)
    with pytest.raises(ValueError, match=r"expected rate \[S\] = \[3\], got \[2\]"):
        step(weights, gradient, rate[1:], decay=decay)
    with pytest.raises(ValueError, match=r"in float32 or float64, got torch.bfloat16"):
        step(weights.bfloat16(), gradient.bfloat16(), rate.bfloat16(), decay=decay)
    with pytest.raises(ValueError, match=r"expected gradient like weights in torch.float32"):
        step(weights, gradient.double(), rate, decay=decay)
    with pytest.raises(ValueError, match=r"expected rate like weights in torch.float32 on cpu, got .* on meta"):
        step(weights, gradient, rate.to("meta"), decay=decay)
    with pytest.raises(TypeError, match="requires grad"):
        step(weights.clone().requires_grad_(), gradient, rate, decay=decay)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="dual tensor"):
        step(weights, torch.autograd.forward_ad.make_dual(gradient, gradient), rate, decay=decay)
    values = list(arguments("adam_step", 3, 20, dtype=torch.float32))
    for number in (values[5].int(), values[5][1:], values[5].to("meta")):
        with pytest.raises(ValueError, match=r"expected number in int64 on cpu, \[\] or \[3\]"):
            public("adam_step", [*values[:5], number, *values[6:]])
    with pytest.raises(ValueError, match=r"expected moments \[2, S, P\] = \[2, 3, 20\], got \[1, 3, 20\]"):
        public("adam_step", [values[0], values[1][:1], *values[2:]])
