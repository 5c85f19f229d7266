"""The fused vector work of the solvers: its formulas, and loops of it against the solvers that it is made for."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.derivatives import solve
from fastdistill_kernels.gpu import solvers as gpu
from fastdistill_kernels.reference import solvers as reference
from fastdistill_kernels.solvers import (
    cg_dots,
    cg_update,
    cost_cg_dots,
    cost_cg_update,
    cost_neumann_update,
    neumann_update,
)
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import LIMITS, error
from tests.kernels.devices import on_kernel_device

# students, parameters: one, none, primes, around a block's and a piece's end
SHAPES = [(1, 1), (3, 0), (0, 5), (2, 17), (1, 1024), (3, 1025), (2, 4096), (2, 4097), (5, 9973), (1, 70_001)]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def vectors(count, students, size, dtype=torch.float64):
    return [random(students, size, seed=seed, dtype=dtype) for seed in range(count)]


def mixed(students, seed=0):
    return torch.randn(students, generator=torch.Generator().manual_seed(seed)) > -0.5


def neumann_arguments(students, size, dtype=torch.float64):
    return [*vectors(3, students, size, dtype), random(students, seed=7, dtype=dtype), mixed(students)]


def dots_arguments(students, size, dtype=torch.float64):
    return [*vectors(3, students, size, dtype), random(students, seed=7, dtype=dtype)]


def update_arguments(students, size, dtype=torch.float64):
    """Sums that belong to the vectors, so that the residual's new norm cancels as it does in a solver."""
    x, r, d, product = vectors(4, students, size)
    product = product + 2 * d  # positive curvature, mostly
    damping = random(students, seed=7).abs()
    sums = reference.cg_dots(d, product, r, damping)
    sums[0] *= torch.where(mixed(students, 1), 1, -1)
    target = torch.where(mixed(students, 2), 0.0, sums[3])
    return [x.to(dtype) for x in (x, r, d, product, sums, damping, target)] + [mixed(students, 3)]


MAKERS = {"neumann_update": neumann_arguments, "cg_dots": dots_arguments, "cg_update": update_arguments}
PUBLIC = {"neumann_update": neumann_update, "cg_dots": cg_dots, "cg_update": cg_update}


def outputs(found):
    return list(found) if isinstance(found, tuple) else [found]


# the formulas


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_references_equal_the_textbook(shape):
    term, total, product, alpha, alive = neumann_arguments(*shape)
    new_total, new_term, sums = reference.neumann_update(term, total, product, alpha, alive)
    expected = term - alpha[:, None] * product
    assert torch.equal(new_total, torch.where(alive[:, None], total + term, total))
    assert error(new_term, expected) <= 1e-10
    assert error(sums, torch.stack([(term * product).sum(1), (expected * expected).sum(1)])) <= 1e-10

    d, product, r, damping = dots_arguments(*shape)
    q = product + damping[:, None] * d
    expected = torch.stack([(left * right).sum(1) for left, right in ((d, q), (q, q), (r, q), (r, r))])
    assert error(reference.cg_dots(d, product, r, damping), expected) <= 1e-10

    x, r, d, product, sums, damping, target, active = update_arguments(*shape)
    found = reference.cg_update(x, r, d, product, sums, damping, target, active)
    for student in range(shape[0]):
        if active[student] and sums[0, student] > 0 and sums[3, student] > target[student]:
            q = product[student] + damping[student] * d[student]
            length = r[student].dot(r[student]) / d[student].dot(q)
            rest = r[student] - length * q
            ratio = rest.dot(rest) / r[student].dot(r[student])
            textbook = x[student] + length * d[student], rest, rest + ratio * d[student], torch.tensor(True)
        else:
            textbook = x[student], r[student], d[student], torch.tensor(False)
        for one, expected in zip(found, textbook, strict=True):
            assert error(one[student], expected) <= 1e-10


def test_the_mixture_of_students_has_every_kind():
    *_, sums, _, target, active = update_arguments(12, 50)
    going = reference.cg_scalars(sums, target, active)[2]
    kinds = going, ~active, active & (sums[0] < 0), active & (sums[3] <= target)
    assert all(bool(kind.any()) for kind in kinds)
    assert torch.equal(going, active & (sums[0] > 0) & (sums[3] > target))


def check_kernel(name, shape, device):
    truth = outputs(getattr(reference, name)(*MAKERS[name](*shape)))
    arguments = [argument.to(device) for argument in MAKERS[name](*shape, torch.float32)]
    for found, expected in zip(outputs(getattr(gpu, name)(*arguments)), truth, strict=True):
        assert found.dtype == (torch.bool if expected.dtype == torch.bool else torch.float32)
        assert error(found.cpu(), expected) <= LIMITS["float32"]


@on_kernel_device
@pytest.mark.filterwarnings(
    "ignore:.*encountered:RuntimeWarning"
)  # numpy's, of the interpreter: 0/0 without parameters
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference(name, shape, device, poisoned):
    check_kernel(name, shape, device)


@on_kernel_device
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@settings(max_examples=15, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(MAKERS)), students=st.integers(0, 4), size=st.integers(0, 5000))
def test_kernels_equal_the_reference_at_any_size(device, name, students, size):
    check_kernel(name, (students, size), device)


@pytest.mark.parametrize("name", MAKERS)
def test_float32_references_are_as_exact(name):
    truth = outputs(getattr(reference, name)(*MAKERS[name](3, 9973)))
    for found, expected in zip(
        outputs(getattr(reference, name)(*MAKERS[name](3, 9973, torch.float32))), truth, strict=True
    ):
        assert error(found, expected) <= LIMITS["float32"]


@on_kernel_device
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
def test_a_student_has_the_same_bits_alone(name, implementation, device):
    if name == "cg_update":
        arguments = update_arguments(20, 4500, torch.float32)
    else:
        arguments = MAKERS[name](20, 4500, torch.float32)
    arguments = [argument.to(device) for argument in arguments]
    together = outputs(getattr(implementation, name)(*arguments))
    for student in (0, 7, 19):
        part = [a[:, [student]] if a.shape[0] == 4 else a[[student]] for a in arguments]
        for one, all_of_them in zip(outputs(getattr(implementation, name)(*part)), together, strict=True):
            same = all_of_them[:, [student]] if all_of_them.shape[0] != 20 else all_of_them[[student]]
            assert torch.equal(one, same)


def test_pieces_do_not_change_bits(monkeypatch):
    made = {name: maker(6, 40_000, torch.float32) for name, maker in MAKERS.items()}
    whole = {name: outputs(getattr(reference, name)(*arguments)) for name, arguments in made.items()}
    for piece in (1, 9_000, 1 << 30):
        monkeypatch.setattr(reference, "_PIECE", piece)
        for name, arguments in made.items():
            for found, expected in zip(outputs(getattr(reference, name)(*arguments)), whole[name], strict=True):
                assert torch.equal(found, expected)


@on_kernel_device
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_with_its_student(implementation, bad, device):
    def students(arguments, name, spoil=False):
        product = {"neumann_update": 2, "cg_dots": 1, "cg_update": 3}[name]
        arguments = [argument.clone() for argument in arguments]
        if spoil:
            arguments[product][1, 2100] = bad
        if name == "cg_update":
            x, r, d, q, _, damping, target, active = arguments
            arguments = [x, r, d, q, implementation.cg_dots(d, q, r, damping), damping, 0 * target, active | True]
        return outputs(getattr(implementation, name)(*arguments))

    for name in MAKERS:
        arguments = [argument.to(device) for argument in MAKERS[name](3, 2500, torch.float32)]
        calm, spoiled = students(arguments, name), students(arguments, name, spoil=True)
        for before, after in zip(calm, spoiled, strict=True):
            others = ([0, 2],) if before.shape[0] == 3 else (slice(None), [0, 2])
            assert torch.equal(before[others], after[others])
        if name == "cg_update":
            assert calm[3].tolist() == [True, True, True] and spoiled[3].tolist() == [True, False, True]
            for old, new in zip(arguments[:3], spoiled[:3], strict=True):
                assert torch.equal(old[1], new[1])
        else:
            sums = spoiled[-1]
            assert not bool(sums[0, 1].isfinite())


# active, dq, qq, rq, rr, target; whether the student takes the step
SCALARS = {
    "goes on": ((True, 2.0, 3.0, 2.0, 4.0, 1.0), True),
    "stopped before": ((False, 2.0, 3.0, 2.0, 4.0, 1.0), False),
    "is there": ((True, 2.0, 3.0, 2.0, 4.0, 4.0), False),
    "is beyond": ((True, 2.0, 3.0, 2.0, 4.0, 5.0), False),
    "is there at zero": ((True, 0.0, 0.0, 0.0, 0.0, 0.0), False),
    "has no curvature": ((True, 0.0, 3.0, 2.0, 4.0, 1.0), False),
    "has negative curvature": ((True, -2.0, 3.0, 2.0, 4.0, 1.0), False),
    "has infinite curvature": ((True, math.inf, 3.0, 2.0, 4.0, 1.0), False),
    "has an unknown curvature": ((True, math.nan, 3.0, 2.0, 4.0, 1.0), False),
    "has an infinite product": ((True, 2.0, math.inf, 2.0, 4.0, 1.0), False),
    "has an unknown overlap": ((True, 2.0, 3.0, math.nan, 4.0, 1.0), False),
    "has an infinite residual": ((True, 2.0, 3.0, 2.0, math.inf, 1.0), False),
    "has an unknown residual": ((True, 2.0, 3.0, 2.0, math.nan, 1.0), False),
    "steps too far": ((True, 1e-30, 3.0, 2.0, 1e30, 1.0), False),
    "has a square below zero": ((True, 2.0, 3.0, 6.0, 4.0, 1.0), True),
}


@on_kernel_device
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("implementation", [reference, gpu], ids=["reference", "kernel"])
def test_who_takes_a_step(implementation, device):
    rows, expected = zip(*SCALARS.values(), strict=True)
    active, *sums, target = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    x, r, d, product = (each.to(device) for each in vectors(4, len(rows), 33, torch.float32))
    given = x, r, d, product, torch.stack(sums), torch.zeros_like(target), target, active
    *found, went = implementation.cg_update(*given)
    assert dict(zip(SCALARS, went.tolist(), strict=True)) == dict(zip(SCALARS, expected, strict=True))
    for old, new in zip((x, r, d), found, strict=True):
        assert torch.equal(old[~went], new[~went])
    assert not any(torch.equal(old[0], new[0]) for old, new in zip((x, r, d), found, strict=True))
    # β is (4 − 2·2·2 + 4·3)/4 for the first, and 0 instead of −2 for the last
    assert error(found[2][0], found[1][0] + 2 * d[0]) <= LIMITS["float32"]
    assert torch.equal(found[2][-1], found[1][-1])


# loops: what a solver makes of them


def neumann_loop(apply, b, steps, alpha, update):
    """`solve.neumann` with an exact residual, made of the fused update."""
    term, total, alive = b, torch.zeros_like(b), torch.ones(len(b), dtype=torch.bool)
    start = square = (b * b).sum(1)
    finite = start.isfinite()
    taken, negative = torch.zeros(len(b), dtype=torch.int64), torch.zeros(len(b), dtype=torch.bool)
    for step in range(steps + 1):
        total, term, curvature, length = update(term, total, apply(term), alpha, alive)
        finite = alive = finite & length.isfinite()
        negative = negative | (finite & (curvature < 0))
        square = torch.where(finite, length, square)
        taken = taken + (finite if step < steps else 0)
    return solve.Solution(
        solution=alpha[:, None] * total,
        residual=torch.where(square == 0, 0.0, square.sqrt() / start.sqrt()),
        steps=taken,
        negative_curvature=negative,
        finite=finite & total.isfinite().all(1),
    )


def cg_loop(apply, b, steps, *, damping=0.0, tolerance=0.0, dots=cg_dots, update=cg_update):
    """`solve.conjugate_gradients` made of the two fused passes; what is reported comes from their sums at the end."""
    scale = (b * b).sum(1)
    damping = torch.as_tensor(damping, dtype=b.dtype).expand(len(b)).contiguous()
    target = max(tolerance, torch.finfo(b.dtype).eps) ** 2 * scale
    iterate, residual, direction = torch.zeros_like(b), b, b
    finite = active = scale.isfinite()
    history = []
    for _ in range(steps):
        product = apply(direction)
        sums, before = dots(direction, product, residual, damping), active
        iterate, residual, direction, active = update(
            iterate, residual, direction, product, sums, damping, target, before
        )
        history.append((sums, before, active))
    square = (residual * residual).sum(1)
    stopped = [(sums, before & ~after & ~(sums[3] <= target)) for sums, before, after in history]
    curved = [stop & sums[0].isfinite() & (sums[0] <= 0) for sums, stop in stopped]
    broken = [stop & ~curve for (_, stop), curve in zip(stopped, curved, strict=True)]
    none = torch.zeros_like(finite)
    return solve.Solution(
        solution=iterate,
        residual=torch.where(square == 0, 0.0, square.sqrt() / scale.sqrt()),
        steps=torch.stack([none, *(after for _, _, after in history)]).sum(0),
        negative_curvature=torch.stack([none, *curved]).any(0),
        finite=finite & ~torch.stack([none, *broken]).any(0),
    )


def spectrum_of(name, size):
    if name == "indefinite":
        return torch.linspace(-0.3, 4, size, dtype=torch.float64)
    if name == "clusters":
        near = 1 + 1e-3 * torch.linspace(-1, 1, size // 3, dtype=torch.float64)
        return torch.cat([near, 10 * near, 100 * near])
    low, high = {"flat": (1.0, 2.0), "wide": (0.05, 5.0), "steep": (1e-3, 1.0)}[name]
    return torch.logspace(math.log10(low), math.log10(high), size, dtype=torch.float64)


def symmetric(eigenvalues, seed=0):
    basis = torch.linalg.qr(random(*eigenvalues.shape, eigenvalues.shape[-1], seed=seed))[0]
    product = basis * eigenvalues[:, None, :] @ basis.mT
    return (product + product.mT) / 2


def problem(name, students=3, size=24):
    factors = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).repeat(students // 3)[:, None]
    return symmetric(spectrum_of(name, size) * factors), random(students, size, seed=1)


def operator(matrices):
    return lambda vector: (matrices * vector[:, None, :]).sum(-1)


def relative(found, expected):
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-300)).max())


def same_reports(found, expected):
    for name in ("steps", "negative_curvature", "finite"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("name", ["flat", "wide", "indefinite"])
@pytest.mark.parametrize("steps", [0, 1, 5, 40])
def test_a_neumann_loop_is_the_solver(name, steps):
    matrices, b = problem(name)
    alpha = torch.tensor([0.1, 0.05, 0.3], dtype=torch.float64)
    expected = solve.neumann(operator(matrices), b, steps, alpha)
    found = neumann_loop(operator(matrices), b, steps, alpha, neumann_update)
    assert relative(found.solution, expected.solution) <= 1e-12
    assert torch.allclose(found.residual, expected.residual, rtol=1e-12)
    same_reports(found, expected)


def test_a_neumann_loop_keeps_the_last_finite_sum():
    matrices, b = problem("flat")
    matrices[1] *= 1e40
    b[2, 3] = math.inf
    alpha = torch.full((3,), 0.5, dtype=torch.float64)
    expected = solve.neumann(operator(matrices), b, 20, alpha)
    found = neumann_loop(operator(matrices), b, 20, alpha, neumann_update)
    assert expected.steps.tolist() == [20, 3, 0]
    assert relative(found.solution[:2], expected.solution[:2]) <= 1e-12
    assert torch.equal(found.solution[2], expected.solution[2])
    same_reports(found, expected)


@pytest.mark.parametrize(("name", "damping"), [("flat", 0.0), ("wide", 0.0), ("steep", 0.01), ("indefinite", 0.7)])
@pytest.mark.parametrize("steps", [0, 1, 2, 6, 12])
def test_a_loop_of_conjugate_gradients_has_the_solvers_iterates(name, damping, steps):
    matrices, b = problem(name)
    expected = solve.conjugate_gradients(operator(matrices), b, steps, damping=damping)
    found = cg_loop(operator(matrices), b, steps, damping=damping)
    assert relative(found.solution, expected.solution) <= 1e-8
    assert torch.allclose(found.residual, expected.residual, rtol=1e-6)
    same_reports(found, expected)


@pytest.mark.parametrize(("name", "steps"), [("flat", 30), ("wide", 60), ("steep", 90)])
def test_a_loop_of_conjugate_gradients_reaches_the_dense_solution(name, steps):
    matrices, b = problem(name)
    found = cg_loop(operator(matrices), b, steps)
    assert relative(found.solution, torch.linalg.solve(matrices, b[..., None])[..., 0]) <= 1e-10
    assert not bool(found.negative_curvature.any()) and bool(found.finite.all())


def test_converged_and_curved_students_freeze_as_in_the_solver():
    eigenvalues = torch.logspace(-2, 0, 24, dtype=torch.float64).repeat(4, 1)
    eigenvalues[1] = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(12)  # converges in two steps
    eigenvalues[2, 0] = -0.5  # meets negative curvature on its way
    eigenvalues[3] = -1  # and at once
    matrices, b = symmetric(eigenvalues), random(4, 24, seed=1)
    for steps in (1, 2, 3, 8, 16):  # more than 24, and two textbook loops would differ as much by their rounding
        expected = solve.conjugate_gradients(operator(matrices), b, steps, tolerance=1e-8)
        found = cg_loop(operator(matrices), b, steps, tolerance=1e-8)
        assert relative(found.solution, expected.solution) <= 1e-8
        # two eigenvalues: the residual after two steps is rounding, in either loop
        assert torch.allclose(found.residual, expected.residual, rtol=1e-6, atol=1e-12)
        same_reports(found, expected)
    assert expected.steps[1] == 2 and 0 < expected.steps[2] < 24 and expected.steps[3] == 0
    assert expected.negative_curvature.tolist() == [False, False, True, True]


def test_a_zero_right_hand_side_takes_no_step():
    matrices, b = problem("flat")
    b[1] = 0
    found = cg_loop(operator(matrices), b, 5)
    same_reports(found, solve.conjugate_gradients(operator(matrices), b, 5))
    assert bool((found.solution[1] == 0).all()) and found.residual[1] == 0


@pytest.mark.parametrize("where", ["matrix", "right-hand side", "later product"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_student_that_breaks_keeps_its_last_iterate(where, bad):
    matrices, b = problem("wide")
    if where == "matrix":
        matrices[1, 0, 0] = bad
    elif where == "right-hand side":
        b[1, 3] = bad
    calls = []

    def apply(vector):
        calls.append(None)
        product = operator(matrices)(vector)
        if where == "later product" and len(calls) == 4:
            product[1, 2] = bad  # and finite again afterwards
        return product

    expected = solve.conjugate_gradients(apply, b, 8)
    calls.clear()
    found = cg_loop(apply, b, 8)
    assert expected.finite.tolist() == [True, False, True]
    assert relative(found.solution, expected.solution) <= 1e-8
    same_reports(found, expected)


# One student's last residual is rounding, and differs fivefold between textbook loops that number its parameters
# differently: what is compared is the root mean square over many students. Clusters make the residual fall a
# thousandfold in one step, where the difference of squares that the second pass takes cancels most.
@pytest.mark.parametrize("steps", [6, 12, 30, 100])
@pytest.mark.parametrize("name", ["flat", "wide", "steep", "clusters"])
def test_float32_reaches_a_residual_as_small(name, steps):
    residuals = true_residuals(name, 39, steps, reference)
    assert residuals[0] <= 1.5 * residuals[1]


@on_kernel_device
def test_float32_kernels_reach_a_residual_as_small(device):
    residuals = true_residuals("flat", 6, 12, gpu, device)
    assert residuals[0] <= 2 * residuals[1]
    assert residuals[0] <= 1e-6


def true_residuals(name, students, steps, implementation, device="cpu"):
    matrices, b = (each.to(device) for each in problem(name, students))
    single = matrices.float()
    expected = solve.conjugate_gradients(operator(single), b.float(), steps).solution
    loop = cg_loop(
        operator(single), b.float(), steps, dots=implementation.cg_dots, update=implementation.cg_update
    ).solution
    rest = [b - operator(single.double())(found.double()) for found in (loop, expected)]
    return [float((each.norm(dim=1) / b.norm(dim=1)).square().mean().sqrt()) for each in rest]


# operators of torch


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_operators_are_registered_soundly(name, dtype):
    torch.library.opcheck(getattr(torch.ops.fastdistill, name).default, tuple(MAKERS[name](2, 33, dtype)))


@pytest.mark.parametrize("name", MAKERS)
def test_public_functions_compile_whole(name):
    compiled = torch.compile(PUBLIC[name], fullgraph=True, backend="aot_eager")
    arguments = MAKERS[name](3, 130, torch.float32)
    for found, expected in zip(outputs(compiled(*arguments)), outputs(PUBLIC[name](*arguments)), strict=True):
        assert torch.equal(found, expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(*[argument.clone() for argument in arguments])


@pytest.mark.parametrize("name", MAKERS)
def test_fake_tensors_have_the_true_shapes(name):
    arguments = MAKERS[name](3, 130, torch.float32)
    truth = outputs(PUBLIC[name](*arguments))
    with FakeTensorMode() as mode:
        found = outputs(PUBLIC[name](*[mode.from_tensor(argument) for argument in arguments]))
    assert [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in truth]


# per number: 1 + 2 + 2·2; 2 + 4·2; 2 + 3·2
@pytest.mark.parametrize(("name", "flops"), [("neumann_update", 7_000), ("cg_dots", 10_000), ("cg_update", 8_000)])
def test_operations_are_counted(name, flops):
    with FlopCounterMode(display=False) as counter:
        PUBLIC[name](*MAKERS[name](4, 250, torch.float32))
    assert counter.get_total_flops() == flops


def test_least_traffic():
    assert cost_neumann_update(16, 1000, 4).bytes == 5 * 64_000
    assert cost_cg_dots(16, 1000, 4).bytes + cost_cg_update(16, 1000, 4).bytes == 10 * 64_000


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_are_refused(name):
    for index in range(4):
        arguments = MAKERS[name](2, 5)
        with torch.autograd.forward_ad.dual_level():
            arguments[index] = torch.autograd.forward_ad.make_dual(arguments[index], torch.ones_like(arguments[index]))
            with pytest.raises(TypeError, match=f"{name} expected a plain tensor, got a dual tensor"):
                PUBLIC[name](*arguments)
        arguments = MAKERS[name](2, 5)
        arguments[index].requires_grad_()
        with pytest.raises(TypeError, match=f"{name} expected a plain tensor, got one that requires grad"):
            PUBLIC[name](*arguments)


@pytest.mark.parametrize("name", MAKERS)
def test_wrong_arguments_are_named(name):
    call, make = PUBLIC[name], MAKERS[name]
    with pytest.raises(ValueError, match=rf"{name} expected \w+ \[S, P\] in float32 or float64, got .*bfloat16"):
        call(*[a.bfloat16() if a.is_floating_point() else a for a in make(2, 5)])
    with pytest.raises(ValueError, match=r"expected \w+ \[S, P\] in float32 or float64, got \[2, 5, 1\]"):
        call(*[a[..., None] if a.ndim == 2 and a.shape[1] == 5 else a for a in make(2, 5)])
    arguments = make(2, 5)
    with pytest.raises(ValueError, match=r"expected \w+ \[S, P\] = \[2, 5\], got \[2, 4\]"):
        call(arguments[0], arguments[1][:, :4], *arguments[2:])
    with pytest.raises(ValueError, match=r"expected \w+ like \w+ in torch.float64 on cpu, got torch.float32"):
        call(arguments[0], arguments[1].float(), *arguments[2:])
    with pytest.raises(ValueError, match=r"expected \w+ like \w+ in torch.float64 on cpu, got torch.float64 on meta"):
        call(arguments[0], arguments[1].to("meta"), *arguments[2:])
    scalar = {"neumann_update": 3, "cg_dots": 3, "cg_update": 5}[name]
    arguments[scalar] = arguments[scalar][:1]
    with pytest.raises(ValueError, match=r"expected \w+ \[S\] = \[2\], got \[1\]"):
        call(*arguments)


def test_wrong_masks_and_sums_are_named():
    arguments = neumann_arguments(2, 5)
    with pytest.raises(ValueError, match=r"expected alive in torch.bool on cpu, got torch.float32"):
        neumann_update(*arguments[:4], torch.ones(2))
    arguments = update_arguments(2, 5)
    with pytest.raises(ValueError, match=r"expected active \[S\] = \[2\], got \[3\]"):
        cg_update(*arguments[:7], torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected sums \[4, S\] = \[4, 2\], got \[2, 4\]"):
        cg_update(*arguments[:4], arguments[4].T, *arguments[5:])
