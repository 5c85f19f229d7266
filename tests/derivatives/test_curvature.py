"""Curvature operators against dense matrices, in float64, and the solvers on them."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from fastdistill.derivatives.curvature import gauss_newton_product, hessian_product
from fastdistill.derivatives.functional import Functional, cross_entropy_sum
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.solve import conjugate_gradients, largest_eigenvalue, neumann, relative_residual
from fastdistill.students.architectures import build_student


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(matrices, b, damping=0.0):
    eye = torch.eye(b.shape[-1], dtype=b.dtype)
    return torch.linalg.solve(matrices + damping * eye, b[..., None])[..., 0]


def relative(found, expected):
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=2, students=2),
    "loop": Batching(path=Path.LOOP, piece=100, students=1),
    "loop-split": Batching(path=Path.LOOP, piece=2, students=1),
}
OPERATORS = {"hessian": hessian_product, "gauss-newton": gauss_newton_product}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x.flatten(1))))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        return self.out(nn.functional.avg_pool2d(nn.functional.softplus(self.norm(self.conv(x))), 2).flatten(1))


def case(module, students=3, *, soft, shared, images=5):
    layout = Layout.of(module)
    weights = layout.flatten(layout.views(0.5 * random(students, layout.size, seed=3)))
    buffers = {
        name: random(students, *buffer.shape, seed=4).abs() + 0.5
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }
    lead = (1, images) if shared else (students, 1, images)
    x = random(*lead, 1, 4, 4, seed=5)
    if soft:
        y = random(*lead, 4, seed=6).abs()  # rows of any sum
    else:
        y = torch.randint(0, 4, lead, generator=torch.Generator().manual_seed(6))
    vector = layout.flatten(layout.views(random(students, layout.size, seed=7)))
    return weights, buffers, x, y, vector


def one_student(weights, buffers, x, y, student):
    own = {name: tensor[student] for name, tensor in buffers.items()}
    return weights[student], own, (x[0] if x.ndim == 5 else x[student, 0]), (y[0] if x.ndim == 5 else y[student, 0])


def dense_hessian(module, flat, buffers, x, y):
    layout = Layout.of(module)

    def loss(flat):
        logits = functional_call(module, {**layout.views(flat), **buffers}, (x,))
        return cross_entropy_sum(logits, y) / len(x)

    return hessian(loss)(flat)


def dense_gauss_newton(module, flat, buffers, x, y):
    layout = Layout.of(module)

    def logits(flat):
        return functional_call(module, {**layout.views(flat), **buffers}, (x,))

    jacobian = jacrev(logits)(flat)  # [n, C, P]
    value = logits(flat)
    # the Hessian in the logits by autograd, not by its formula
    outer = hessian(lambda value: cross_entropy_sum(value, y) / len(x))(value)
    return torch.einsum("acp,acbd,bdq->pq", jacobian, outer, jacobian)


DENSE = {"hessian": dense_hessian, "gauss-newton": dense_gauss_newton}


@pytest.mark.parametrize("module", [Mlp, ConvNet])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_equal_the_dense_matrix(kind, shared, soft, module):
    module = module().eval()
    weights, buffers, x, y, vector = case(module, soft=soft, shared=shared)
    matrices = torch.stack([DENSE[kind](module, *one_student(weights, buffers, x, y, s)) for s in range(3)])
    for name, batching in BATCHINGS.items():
        primitive = Functional(module, batching)
        with torch.no_grad():
            found = OPERATORS[kind](primitive, weights, buffers, x, y)(vector)
            decayed = OPERATORS[kind](primitive, weights, buffers, x, y, 0.3)(vector)
        expected = (matrices @ vector[..., None])[..., 0]
        assert relative(found, expected) <= 1e-12, name
        assert relative(decayed, expected + 0.3 * vector) <= 1e-12, name


def test_labels_may_be_shared_where_images_are_not():
    module = ConvNet().eval()
    weights, buffers, x, y, vector = case(module, soft=True, shared=False)
    for build in OPERATORS.values():
        for batching in BATCHINGS.values():
            primitive = Functional(module, batching)
            found = build(primitive, weights, buffers, x, y[0])(vector)
            assert relative(found, build(primitive, weights, buffers, x, y[:1].expand_as(y))(vector)) <= 1e-13


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_are_symmetric_and_linear_and_keep_padding_zero(kind):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10, net_width=8)
    layout = Layout.of(module)
    weights, u, w = (layout.flatten(layout.views(random(2, layout.size, seed=seed))) for seed in (1, 2, 3))
    x, y = random(1, 6, 1, 8, 8, seed=4), random(1, 6, 10, seed=5).abs()
    apply = OPERATORS[kind](Functional(module, BATCHINGS["vmap-split"]), weights, {}, x, y, 0.01)
    assert torch.allclose((u * apply(w)).sum(-1), (w * apply(u)).sum(-1), rtol=1e-10)
    assert relative(apply(2 * u - 3 * w), 2 * apply(u) - 3 * apply(w)) <= 1e-10
    dirty = apply(torch.ones_like(u))
    assert torch.equal(dirty, layout.flatten(layout.views(dirty)))


def test_gauss_newton_is_positive_where_the_hessian_is_not():
    module = ConvNet().eval()
    weights, buffers, x, y, _ = case(module, 1, soft=False, shared=True)
    size = weights.shape[1]
    copies, state = weights.expand(size, size), {key: value.expand(size, -1) for key, value in buffers.items()}
    spectra = {}
    for kind, build in OPERATORS.items():
        # as many copies of one student as directions: the whole matrix by one product
        matrix = build(Functional(module, BATCHINGS["vmap"]), copies, state, x, y)(torch.eye(size).double())
        spectra[kind] = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert float(spectra["gauss-newton"].min()) >= -1e-14 * float(spectra["gauss-newton"].max())
    assert float(spectra["hessian"].min()) < -1e-2


def test_solvers_solve_with_the_operators():
    module = ConvNet().eval()
    weights, buffers, x, y, b = case(module, soft=True, shared=False)
    primitive = Functional(module, BATCHINGS["vmap"])
    curvature = gauss_newton_product(primitive, weights, buffers, x, y, 1.0)
    matrices = torch.stack(
        [dense_gauss_newton(module, *one_student(weights, buffers, x, y, student)) for student in range(3)]
    )
    expected = dense(matrices, b, 1.0)
    found = conjugate_gradients(curvature, b, 40, tolerance=1e-12)
    assert relative(found.solution, expected) <= 1e-10 and bool((found.residual <= 1e-12).all())
    largest = largest_eigenvalue(curvature, b, 20)
    top = torch.linalg.eigvalsh(matrices)[:, -1] + 1.0
    assert relative(largest.value[:, None], top[:, None]) <= 1e-3
    series = neumann(curvature, b, 250, 1 / largest.magnitude)
    assert relative(series.solution, expected) <= 1e-10
    indefinite = conjugate_gradients(hessian_product(primitive, weights, buffers, x, y), b, 20)
    assert bool(indefinite.negative_curvature.any()) and bool(indefinite.finite.all())


def test_a_broken_students_weights_leave_the_others_bits():
    module = ConvNet().eval()
    weights, buffers, x, y, b = case(module, soft=False, shared=False)
    spoiled = weights.clone()
    spoiled[1, 0] = math.nan
    for build in OPERATORS.values():
        calm, found = (
            conjugate_gradients(
                build(Functional(module, BATCHINGS["vmap"]), each, buffers, x, y), b, 5, damping=1.0, tolerance=1e-9
            )
            for each in (weights, spoiled)
        )
        assert found.finite.tolist() == [True, False, True] and found.steps.tolist()[1] == 0
        assert torch.equal(found.solution[[0, 2]], calm.solution[[0, 2]])


def test_nothing_waits_for_the_device():
    # tensors on the meta device have no values: reading one, or branching on one, raises
    module = ConvNet().eval()
    weights, buffers, x, y, b = case(module, soft=True, shared=False)
    weights, x, y, b = (tensor.to("meta") for tensor in (weights, x, y, b))
    buffers = {name: tensor.to("meta") for name, tensor in buffers.items()}
    with pytest.raises((RuntimeError, NotImplementedError)):
        b.sum().item()
    for build in OPERATORS.values():
        apply = build(Functional(module.to("meta"), BATCHINGS["vmap"]), weights, buffers, x, y, 0.1)
        alpha = torch.empty(3, dtype=torch.float64, device="meta")
        results = (
            neumann(apply, b, 2, alpha),
            conjugate_gradients(apply, b, 2, damping=alpha, tolerance=1e-6, start=b),
        )
        for result in results:
            assert result.solution.shape == b.shape and result.solution.device.type == "meta"
            assert {tuple(getattr(result, name).shape) for name in ("residual", "steps", "finite")} == {(3,)}
        assert largest_eigenvalue(apply, b, 2).value.shape == relative_residual(apply, b, b).shape == (3,)


@pytest.mark.parametrize("build", OPERATORS.values(), ids=OPERATORS)
def test_operators_name_what_does_not_fit(build):
    module = ConvNet().eval()
    weights, buffers, x, y, vector = case(module, soft=True, shared=False)
    primitive = Functional(module, BATCHINGS["vmap"])
    for arguments in (
        (x.expand(3, 2, 5, 1, 4, 4), y),
        (x[:2], y[:2]),
        (x[0, 0], y[0, 0]),
        (x, y[:, :, :4]),
    ):
        with pytest.raises(ValueError, match="a student's images are one group"):
            build(primitive, weights, buffers, *arguments)
    with pytest.raises(ValueError, match="expected a finite decay"):
        build(primitive, weights, buffers, x, y, -0.1)
    with pytest.raises(ValueError, match="flatten with the student's layout"):
        build(primitive, weights, buffers, x, y)(vector[:1])
