"""The solvers against dense linear algebra in float64, and the operators against dense matrices of the loss."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdistill.derivatives.solve import (
    alpha_warning,
    conjugate_gradients,
    largest_eigenvalue,
    neumann,
    relative_residual,
)

SPECTRA = {
    "flat": (1.0, 2.0),
    "wide": (0.05, 5.0),
    "steep": (1e-3, 1.0),
}
SIZE = 12


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(eigenvalues, seed=0):
    """Matrices ``[S, P, P]`` of given eigenvalues ``[S, P]``, each with its own random eigenvectors."""
    basis = torch.linalg.qr(random(*eigenvalues.shape, eigenvalues.shape[-1], seed=seed))[0]
    product = basis * eigenvalues[:, None, :] @ basis.mT
    return (product + product.mT) / 2  # rounding must not break the symmetry


def positive(spectrum, students=3, size=SIZE, seed=0):
    low, high = SPECTRA[spectrum]
    one = torch.logspace(math.log10(low), math.log10(high), size, dtype=torch.float64)
    # every student's spectrum is another multiple
    return symmetric(one * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:students, None], seed)


def operator(matrices):
    # not a batched matrix product, whose bits for one student could depend on the others
    return lambda vector: (matrices * vector[:, None, :]).sum(-1)


def dense(matrices, b, damping=0.0):
    eye = torch.eye(b.shape[-1], dtype=b.dtype)
    return torch.linalg.solve(matrices + damping * eye, b[..., None])[..., 0]


def relative(found, expected):
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def taken(solution):
    return solution.steps.tolist()


# Neumann series


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize(("spectrum", "steps"), [("flat", 100), ("wide", 4000)])
def test_neumann_tends_to_the_dense_solution(spectrum, steps, students):
    matrices, b = positive(spectrum, students), random(students, SIZE, seed=1)
    alpha = 1 / torch.linalg.eigvalsh(matrices)[:, -1]
    found = neumann(operator(matrices), b, steps, alpha)
    assert relative(found.solution, dense(matrices, b)) <= 1e-10
    assert float(found.residual.max()) <= 1e-10
    assert taken(found) == [steps] * students
    assert bool(found.finite.all()) and not bool(found.negative_curvature.any())


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
@pytest.mark.parametrize(
    "alpha",
    [0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3, 0.1, 0.02], dtype=torch.float64)],
    ids=["number", "scalar", "per-student"],
)
def test_neumann_equals_its_explicit_sum_for_an_indefinite_matrix(alpha, steps, scaled):
    matrices, b = symmetric(torch.linspace(-1, 4, SIZE, dtype=torch.float64).repeat(3, 1)), random(3, SIZE, seed=1)
    factor = torch.as_tensor(alpha, dtype=torch.float64).expand(3)[:, None, None]
    step = torch.eye(SIZE, dtype=torch.float64) - factor * matrices
    powers = [torch.linalg.matrix_power(step, j) @ b[..., None] for j in range(steps + 2)]
    expected = sum(powers[:-1])[..., 0] * (factor[:, 0] if scaled else 1)
    found = neumann(operator(matrices), b, steps, alpha, scaled=scaled)
    assert relative(found.solution, expected) <= 1e-12
    assert relative(found.residual[:, None], (powers[-1][..., 0].norm(dim=-1) / b.norm(dim=-1))[:, None]) <= 1e-12
    cheap = neumann(operator(matrices), b, steps, alpha, scaled=scaled, exact_residual=False)
    assert torch.equal(cheap.solution, found.solution)
    shorter = powers[-2][..., 0].norm(dim=-1) / b.norm(dim=-1)
    assert relative(cheap.residual[:, None], shorter[:, None]) <= 1e-12
    if scaled:
        true = relative_residual(operator(matrices), found.solution, b)
        assert torch.allclose(found.residual, true, rtol=1e-10, atol=1e-12)


def test_neumann_computes_one_product_per_term_and_one_for_the_residual():
    matrices, b, calls = positive("flat"), random(3, SIZE, seed=1), []

    def counted(vector):
        calls.append(vector)
        return operator(matrices)(vector)

    neumann(counted, b, 3, 0.1, exact_residual=False)
    assert len(calls) == 3
    neumann(counted, b, 3, 0.1)
    assert len(calls) == 7


def test_neumann_diverges_just_beyond_two_over_the_largest_eigenvalue():
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    bound = 2 / torch.linalg.eigvalsh(matrices)[:, -1]
    inside, outside = (neumann(operator(matrices), b, 400, factor * bound).residual for factor in (0.95, 1.05))
    assert bool((inside < 1e-3).all()) and bool((outside > 1e3).all())


def test_neumann_reports_negative_curvature_and_goes_on():
    eigenvalues = torch.stack([torch.linspace(low, 1, SIZE, dtype=torch.float64) for low in (0.1, -0.9, 0.2)])
    eigenvalues[1, :-1] = -0.9
    found = neumann(operator(symmetric(eigenvalues)), random(3, SIZE, seed=1), 5, 0.5)
    assert found.negative_curvature.tolist() == [False, True, False]
    assert taken(found) == [5, 5, 5]


def test_neumann_keeps_the_last_finite_sum_of_a_student_that_overflows():
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    wild = matrices.clone()
    wild[1] *= 1e40
    found, calm = (neumann(operator(each), b, 20, 0.5) for each in (wild, matrices))
    assert found.finite.tolist() == [True, False, True]
    assert taken(found) == [20, 3, 20] and bool(found.solution.isfinite().all())
    assert torch.equal(found.solution[[0, 2]], calm.solution[[0, 2]])
    step = torch.eye(SIZE, dtype=torch.float64) - 0.5 * wild[1]
    last = (step @ (step @ (step @ b[1]))).norm() / b[1].norm()  # of the last term that is finite
    assert torch.allclose(found.residual[1], last, rtol=1e-12)


# conjugate gradients


@pytest.mark.parametrize("students", [1, 3])
# in exact arithmetic P steps are enough; rounding costs conjugacy, and so a few more where the spectrum is wide
# (textbook loops in float64 have errors of the same size after P steps, 1e-8 and 2e-2; one in 60 digits has none)
@pytest.mark.parametrize(("spectrum", "steps"), [("flat", SIZE), ("wide", SIZE + 4), ("steep", SIZE + 8)])
def test_conjugate_gradients_reach_the_dense_solution(spectrum, steps, students):
    matrices, b = positive(spectrum, students), random(students, SIZE, seed=1)
    found = conjugate_gradients(operator(matrices), b, steps)
    assert relative(found.solution, dense(matrices, b)) <= 1e-10
    assert bool((found.residual <= 1e-10).all()) and bool(found.finite.all())
    assert not bool(found.negative_curvature.any())


@pytest.mark.parametrize("distinct", [1, 2, 3, 6])
def test_conjugate_gradients_are_exact_after_as_many_steps_as_distinct_eigenvalues(distinct):
    values = torch.logspace(-1, 1, distinct, dtype=torch.float64).repeat(SIZE // distinct)
    matrices, b = symmetric(values.repeat(3, 1)), random(3, SIZE, seed=1)
    found = conjugate_gradients(operator(matrices), b, distinct)
    assert relative(found.solution, dense(matrices, b)) <= 1e-10
    if distinct > 1:
        early = conjugate_gradients(operator(matrices), b, distinct - 1)
        assert float(early.residual.min()) > 1e-6


@pytest.mark.parametrize("damping", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.25, 2.0], dtype=torch.float64)])
def test_damping_is_added_to_the_matrix(damping):
    matrices, b = symmetric(torch.linspace(-0.2, 3, SIZE, dtype=torch.float64).repeat(3, 1)), random(3, SIZE, seed=1)
    each = torch.as_tensor(damping, dtype=torch.float64).expand(3)
    expected = dense(matrices, b, each[:, None, None])
    found = conjugate_gradients(operator(matrices), b, SIZE, damping=damping)
    assert relative(found.solution, expected) <= 1e-10
    true = relative_residual(operator(matrices), found.solution, b, damping=damping)
    assert bool((true <= 1e-10).all())


def test_conjugate_gradients_minimise_the_error_over_the_krylov_space():
    matrices, b = positive("wide"), random(3, SIZE, seed=1)
    found = conjugate_gradients(operator(matrices), b, 4)
    for student in range(3):
        krylov = torch.stack([torch.linalg.matrix_power(matrices[student], j) @ b[student] for j in range(4)], dim=1)
        basis = torch.linalg.qr(krylov)[0]
        best = basis @ torch.linalg.solve(basis.T @ matrices[student] @ basis, basis.T @ b[student])
        assert relative(found.solution[student], best) <= 1e-10
    true = relative_residual(operator(matrices), found.solution, b)
    assert torch.allclose(found.residual, true, rtol=1e-10)


def test_a_converged_student_keeps_its_bits_while_others_go_on():
    eigenvalues = torch.logspace(-2, 0, SIZE, dtype=torch.float64).repeat(3, 1)
    eigenvalues[1] = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(SIZE // 2)  # two values: exact in two steps
    matrices, b = symmetric(eigenvalues), random(3, SIZE, seed=1)
    runs = {steps: conjugate_gradients(operator(matrices), b, steps, tolerance=1e-8) for steps in (2, 3, 12, 40)}
    assert [taken(run)[1] for run in runs.values()] == [2, 2, 2, 2]
    assert taken(runs[12])[0] > 3 and float(runs[40].residual.max()) <= 1e-8
    for run in runs.values():
        assert torch.equal(run.solution[1], runs[2].solution[1]) and run.residual[1] == runs[2].residual[1]
    assert not torch.equal(runs[3].solution[0], runs[12].solution[0])


def test_zero_tolerance_stops_at_rounding_and_not_at_underflow():
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    found = conjugate_gradients(operator(matrices), b, 400)
    assert bool((found.residual <= torch.finfo(torch.float64).eps).all())
    assert bool(found.finite.all()) and not bool(found.negative_curvature.any()) and max(taken(found)) < 40


def test_negative_curvature_returns_the_iterate_before():
    spectrum = torch.linspace(0.5, 3, SIZE, dtype=torch.float64).repeat(3, 1)
    spectrum[1, 0] = -1.0
    matrices, b = symmetric(spectrum), random(3, SIZE, seed=1)
    apply = operator(matrices)
    found = conjugate_gradients(apply, b, SIZE)
    assert found.negative_curvature.tolist() == [False, True, False] and bool(found.finite.all())
    stop = taken(found)[1]
    assert 0 < stop < SIZE
    before = conjugate_gradients(apply, b, stop)
    assert not bool(before.negative_curvature.any())  # the next direction is the one that is flagged
    assert torch.equal(found.solution[1], before.solution[1]) and found.residual[1] == before.residual[1]
    assert bool(conjugate_gradients(apply, b, stop + 1).negative_curvature[1])
    assert relative(found.solution[[0, 2]], dense(matrices, b)[[0, 2]]) <= 1e-10


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_non_positive_curvature_at_the_first_direction_returns_the_start(value):
    matrices, b = symmetric(torch.full((2, SIZE), value, dtype=torch.float64)), random(2, SIZE, seed=1)
    matrices = torch.zeros_like(matrices) if value == 0 else matrices
    found = conjugate_gradients(operator(matrices), b, 5)
    assert bool(found.negative_curvature.all()) and bool((found.solution == 0).all()) and taken(found) == [0, 0]
    assert found.residual.tolist() == [1.0, 1.0]
    start = random(2, SIZE, seed=2)
    assert torch.equal(conjugate_gradients(operator(matrices), b, 5, start=start).solution, start)


def test_a_warm_start_at_the_solution_takes_no_step():
    matrices, b = positive("wide"), random(3, SIZE, seed=1)
    first = conjugate_gradients(operator(matrices), b, 30, tolerance=1e-12)
    again = conjugate_gradients(operator(matrices), b, 30, tolerance=1e-9, start=first.solution)
    assert taken(again) == [0, 0, 0] and torch.equal(again.solution, first.solution)
    assert float(again.residual.max()) <= 1e-9
    damped = conjugate_gradients(operator(matrices), b, 30, damping=0.7, tolerance=1e-12).solution
    assert taken(conjugate_gradients(operator(matrices), b, 5, damping=0.7, tolerance=1e-9, start=damped)) == [0, 0, 0]
    near = first.solution + 1e-6 * random(3, SIZE, seed=2)
    cold, warm = (conjugate_gradients(operator(matrices), b, 30, tolerance=1e-9, start=each) for each in (None, near))
    assert bool((warm.steps < cold.steps).all()) and relative(warm.solution, dense(matrices, b)) <= 1e-7


@pytest.mark.parametrize("start", [None, random(3, SIZE, seed=2)])
def test_zero_right_hand_side_has_a_zero_solution(start):
    b = random(3, SIZE, seed=1)
    b[1] = 0
    matrices = positive("flat")
    found = conjugate_gradients(operator(matrices), b, SIZE, start=start)
    assert bool((found.solution[1] == 0).all()) and found.residual[1] == 0 and taken(found)[1] == 0
    assert not bool(found.negative_curvature.any()) and bool(found.finite.all())
    series = neumann(operator(matrices), b, 3, 0.1)
    assert bool((series.solution[1] == 0).all()) and series.residual[1] == 0


SOLVERS = {
    "neumann": lambda apply, b: neumann(apply, b, 10, 0.2),
    "conjugate gradients": lambda apply, b: conjugate_gradients(apply, b, 6),
}


@pytest.mark.parametrize("where", ["matrix", "right-hand side", "later product"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_student_without_finite_numbers_leaves_the_others_bits(solver, bad, where):
    matrices, b = positive("wide"), random(3, SIZE, seed=1)
    calm = solver(operator(matrices), b)
    spoiled, right, calls = matrices.clone(), b.clone(), []
    if where == "matrix":
        spoiled[1, 0, 0] = bad
    elif where == "right-hand side":
        right[1, 3] = bad

    def apply(vector):
        calls.append(None)
        product = operator(spoiled)(vector)
        if where == "later product" and len(calls) == 4:
            product[1, 2] = bad
        return product

    found = solver(apply, right)
    assert found.finite.tolist() == [True, False, True]
    for name in ("solution", "residual", "steps", "negative_curvature"):
        assert torch.equal(getattr(found, name)[[0, 2]], getattr(calm, name)[[0, 2]]), name
    assert not bool(found.negative_curvature.any())
    assert taken(found)[1] == (3 if where == "later product" else 0)
    if where != "right-hand side":
        assert bool(found.solution[1].isfinite().all())


@pytest.mark.parametrize(("matrix", "side"), [(1e-310, 1.0), (1e100, 1e120)], ids=["step", "curvature"])
def test_conjugate_gradients_stop_before_an_overflow(matrix, side):
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    calm = conjugate_gradients(operator(matrices), b, 6)
    matrices[1] *= matrix
    b[1] *= side
    found = conjugate_gradients(operator(matrices), b, 6)
    assert found.finite.tolist() == [True, False, True] and taken(found)[1] == 0
    assert bool((found.solution[1] == 0).all()) and not bool(found.negative_curvature.any())
    assert torch.equal(found.solution[[0, 2]], calm.solution[[0, 2]])


def test_an_overflow_of_the_right_hand_sides_norm_is_reported():
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    b[1] *= 1e160
    found = conjugate_gradients(operator(matrices), b, 6, start=dense(matrices, b))
    assert found.finite.tolist() == [True, False, True]


def test_an_overflow_of_the_solution_itself_is_reported():
    b = random(3, SIZE, seed=1)
    b[1] *= 100
    found = neumann(lambda vector: 0 * vector, b, 0, 2e307)
    assert found.finite.tolist() == [True, False, True]


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_students_at_once_equal_students_alone(solver):
    matrices, b = positive("steep"), random(3, SIZE, seed=1)
    together = solver(operator(matrices), b)
    for student in range(3):
        some = slice(student, student + 1)
        alone = solver(operator(matrices[some]), b[some])
        assert torch.equal(alone.solution, together.solution[some]) and alone.residual == together.residual[student]


def test_float32_reaches_its_own_rounding():
    matrices, b = positive("wide"), random(3, SIZE, seed=1)
    single = operator(matrices.float())
    expected = dense(matrices, b)
    found = conjugate_gradients(single, b.float(), 30, tolerance=1e-6)
    assert found.solution.dtype == torch.float32
    # condition number 100, of the residual that was asked for
    assert relative(found.solution.double(), expected) <= 100 * 1e-6


# the largest eigenvalue


def test_power_iteration_finds_the_eigenvalue_of_largest_magnitude_with_its_sign():
    spectrum = torch.linspace(-1, 2, SIZE, dtype=torch.float64).repeat(3, 1)
    spectrum[1, 0], spectrum[2] = -3.0, spectrum[2] * 5
    matrices = symmetric(spectrum)
    truth = torch.linalg.eigvalsh(matrices)
    truth = torch.where(truth[:, 0].abs() > truth[:, -1], truth[:, 0], truth[:, -1])
    found = largest_eigenvalue(operator(matrices), random(3, SIZE, seed=1), 200)
    assert torch.allclose(found.value, truth, rtol=1e-10) and torch.allclose(found.magnitude, truth.abs(), rtol=1e-10)
    assert found.value[1] < 0 and float(found.residual.max()) <= 1e-5
    product = operator(matrices)(found.vector)
    assert torch.allclose(found.vector.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    assert relative(product, truth[:, None] * found.vector) <= 1e-5


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_power_iteration_bounds_hold_before_it_has_converged(steps):
    matrices = symmetric(torch.linspace(-1, 2, SIZE, dtype=torch.float64).repeat(3, 1))
    values = torch.linalg.eigvalsh(matrices)
    found = largest_eigenvalue(operator(matrices), random(3, SIZE, seed=1), steps)
    assert bool((found.value.abs() <= found.magnitude).all()) and bool((found.magnitude <= values.abs().amax(1)).all())
    distance = (values - found.value[:, None]).abs().amin(1)
    assert bool((distance <= found.residual * found.magnitude).all())


def test_power_iteration_continues_from_its_vector():
    apply, start = operator(positive("flat")), random(3, SIZE, seed=1)
    once = largest_eigenvalue(apply, start, 7)
    halves = largest_eigenvalue(apply, largest_eigenvalue(apply, start, 3).vector, 4)
    assert torch.allclose(once.value, halves.value, rtol=1e-14, atol=0)
    nothing = largest_eigenvalue(lambda vector: 0 * vector, start, 3)
    assert nothing.value.tolist() == nothing.magnitude.tolist() == nothing.residual.tolist() == [0.0, 0.0, 0.0]


def test_the_warning_says_which_alpha_to_choose():
    assert alpha_warning(0.099, [20.0, 3.0]) is None and alpha_warning(1.0, []) is None
    assert alpha_warning(0.1, [math.nan, 0.0]) is None
    sentence = alpha_warning(0.1, [3.0, 40.0, math.nan])
    assert "below 2 / largest eigenvalue = 0.05, got 0.1" in sentence and "choose 0.025 or less" in sentence
    negative = alpha_warning(0.1, [3.0, -5.0])
    assert "got -5" in negative and "grows by 1.5 per term" in negative


# no host synchronisation, no dependence on values


class Dispatches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_operations_depend_neither_on_values_nor_on_the_number_of_students():
    seen = {}
    for students in (1, 3):
        for spectrum in ("flat", "steep"):
            matrices, b = positive(spectrum, students), random(students, SIZE, seed=1)
            apply = operator(matrices)
            with Dispatches() as dispatches:
                conjugate_gradients(apply, b, 15, damping=0.1, tolerance=1e-3, start=b)
                neumann(apply, b, 5, 0.1)
                largest_eigenvalue(apply, b, 5)
            seen[students, spectrum] = dispatches.names
    assert all(names == seen[1, "flat"] for names in seen.values())
    assert not any("_local_scalar_dense" in name or "nonzero" in name for name in seen[1, "flat"])


# errors


def test_bad_numbers_and_shapes_are_named():
    matrices, b = positive("flat"), random(3, SIZE, seed=1)
    apply = operator(matrices)
    for call in (
        lambda: neumann(apply, b, -1, 0.1),
        lambda: neumann(apply, b, 1, 0.0),
        lambda: neumann(apply, b, 1, math.nan),
        lambda: neumann(apply, b, 1, torch.ones(2)),
        lambda: neumann(apply, b[0], 1, 0.1),
        lambda: neumann(apply, b.bfloat16(), 1, 0.1),
        lambda: conjugate_gradients(apply, b, 1, damping=-1.0),
        lambda: conjugate_gradients(apply, b, 1, tolerance=-1.0),
        lambda: conjugate_gradients(apply, b, 1, start=b[:1]),
        lambda: largest_eigenvalue(apply, b, 0),
    ):
        with pytest.raises(ValueError, match=r"^expected .*, got .*: "):
            call()
