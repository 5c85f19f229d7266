"""Both implementations of the primitive against double backward and dense Hessians in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd
from torch.utils._python_dispatch import TorchDispatchMode

from fastdistill.derivatives.functional import Functional, cross_entropy_sum
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.draws import Purpose
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import initial_buffers, initial_weights
from tests import gtn

SHAPES = {"mnist": (1, 28, 28), "cifar": (3, 32, 32), "digits": (1, 8, 8)}
FUNCTIONAL = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=2, students=2),
    "loop": Batching(path=Path.LOOP, piece=100, students=1),
    "loop-split": Batching(path=Path.LOOP, piece=2, students=1),
}
DUAL = {
    "dual": Batching(path=Path.DUAL, piece=100, students=100, groups=100),
    "dual-split": Batching(path=Path.DUAL, piece=2, students=2, groups=1),
}
BATCHINGS = {**FUNCTIONAL, **DUAL}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(architecture, shape, students, groups, images, *, soft, shared, **options):
    channels, height, width = shape
    module = build_student(architecture, channels=channels, height=height, width=width, num_classes=10, **options)
    weights = initial_weights(
        module, "default", seed=3, step=0, students=torch.arange(students), purpose=Purpose.WEIGHTS
    ).double()
    buffers = initial_buffers(module, students, dtype=torch.float64, device=torch.device("cpu"))
    for index, name in enumerate(buffers):
        if buffers[name].is_floating_point():
            buffers[name] = buffers[name] + 0.3 * random(*buffers[name].shape, seed=50 + index).abs()
    lead = (groups, images) if shared else (students, groups, images)
    x = random(*lead, *shape, seed=1)
    if soft:
        y = random(*lead, 10, seed=2).abs()  # rows of any sum
    else:
        y = torch.randint(0, 10, lead, generator=torch.Generator().manual_seed(2))
    return module, weights, buffers, x, y, random(students, groups, Layout.of(module).size, seed=4)


def double_backward(module, layout, weights, buffers, x, y, v):
    """Textbook: one pair, a graph of the gradient, differentiated again."""
    parameters = {name: view.clone().requires_grad_() for name, view in layout.views(weights).items()}
    x = x.clone().requires_grad_()
    y = y.clone().requires_grad_() if y.is_floating_point() else y
    logits = functional_call(module.eval(), {**parameters, **buffers}, (x,))
    loss = cross_entropy_sum(logits, y) / len(x)
    gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    inner = sum((g * d).sum() for g, d in zip(gradient, layout.views(v).values(), strict=True))
    wanted = [*parameters.values(), x, *([y] if y.is_floating_point() else [])]
    second = torch.autograd.grad(inner, wanted)
    named = dict(zip(parameters, second, strict=False))
    return {
        "loss": loss.detach(),
        "gradient": layout.flatten({n: g.detach() for n, g in zip(parameters, gradient, strict=True)}),
        "loss_tangent": inner.detach(),
        "weights": layout.flatten(named),
        "images": second[len(parameters)],
        **({"labels": second[-1]} if y.is_floating_point() else {}),
    }


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def check(case, batching, tolerance=1e-10):
    module, weights, buffers, x, y, v = case
    primitive = make_primitive(module, batching)
    layout = primitive.layout
    students, groups = v.shape[:2]
    gradients = primitive.value_and_gradient(weights, buffers, x, y)
    products = primitive.products(weights, buffers, x, y, v)
    for s in range(students):
        for g in range(groups):
            one_x = x[s, g] if x.ndim == 6 else x[g]
            one_y = y[g] if x.ndim == 5 else y[s, g]
            own = {name: tensor[s] for name, tensor in buffers.items()}
            truth = double_backward(module, layout, weights[s], own, one_x, one_y, v[s, g])
            found = {
                "loss": gradients.loss[s, g],
                "gradient": gradients.gradient[s, g],
                "loss_tangent": products.loss_tangent[s, g],
                "weights": products.weights[s, g],
                "images": products.images[s, g],
                **({"labels": products.labels[s, g]} if y.is_floating_point() else {}),
            }
            for name, expected in truth.items():
                assert relative(found[name], expected) <= tolerance, (name, s, g)


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_products_equal_double_backward_for_every_batching(batching, soft, shared):
    case = problem("convnet", SHAPES["digits"], 3, 2, 5, soft=soft, shared=shared, net_width=8)
    check(case, batching)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("convnet", "cifar"), ("mlp", "mnist"), ("lenet", "mnist"), ("alexnet", "mnist"), ("resnet18", "cifar")],
)
@pytest.mark.parametrize("path", ["vmap", "loop", "dual"])
def test_products_equal_double_backward_at_real_size(architecture, shape, path):
    groups = 1 if architecture == "resnet18" else 2
    check(problem(architecture, SHAPES[shape], 1, groups, 2, soft=True, shared=False), BATCHINGS[path])


@pytest.mark.parametrize("norm", ["none", "instance", "group", "layer", "batch"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("activation", ["relu", "softplus"])
@pytest.mark.parametrize("path", ["vmap", "dual"])
def test_products_equal_double_backward_for_every_layer(norm, pooling, activation, path):
    options = {"norm": norm, "pooling": pooling, "activation": activation, "net_width": 8}
    check(problem("convnet", SHAPES["digits"], 2, 2, 3, soft=True, shared=False, **options), BATCHINGS[path])


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 12)
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x.flatten(1))))


@pytest.mark.parametrize("kind", ["toy", "convnet"])
def test_products_equal_the_dense_hessian(kind):
    if kind == "toy":
        module, shape = Toy().to("meta"), (1, 2, 3)
    else:
        shape = SHAPES["digits"]
        module = build_student(
            "convnet", channels=1, height=8, width=8, num_classes=10, net_width=8, activation="softplus"
        )
    layout = Layout.of(module)
    assert layout.count <= 3000
    weights = 0.3 * random(1, layout.size)
    for start, end in zip(
        [o + s for o, s in zip(layout.offsets.values(), _counts(layout), strict=True)],
        [*list(layout.offsets.values())[1:], layout.size],
        strict=True,
    ):
        weights[:, start:end] = 0
    x, y, v = random(1, 4, *shape, seed=5), random(1, 4, 10, seed=6).abs(), random(1, 1, layout.size, seed=7)

    def loss(flat, images, labels):
        return cross_entropy_sum(functional_call(module, layout.views(flat), (images,)), labels) / 4

    dense = hessian(loss)(weights[0], x[0], y[0])
    assert relative(dense, dense.T) <= 1e-10
    mixed = [jacfwd(grad(loss), argnums=index)(weights[0], x[0], y[0]) for index in (1, 2)]  # [P, n, ...]
    for batching in (FUNCTIONAL if kind == "toy" else BATCHINGS).values():  # there is no dual layer for tanh
        primitive = make_primitive(module, batching)
        product = primitive.products(weights, {}, x, y, v)
        assert relative(product.weights[0, 0], dense @ v[0, 0]) <= 1e-10
        for found, matrix in zip((product.images, product.labels), mixed, strict=True):
            assert relative(found[0, 0], torch.tensordot(v[0, 0], matrix, dims=1)) <= 1e-10
        gradient = primitive.value_and_gradient(weights, {}, x, y).gradient
        assert relative(gradient[0, 0], grad(loss)(weights[0], x[0], y[0])) <= 1e-10


def _counts(layout):
    return [torch.Size(shape).numel() for shape in layout.shapes.values()]


@pytest.mark.parametrize("path", ["vmap", "dual"])
def test_hessian_vector_product_is_symmetric_and_linear(path):
    module, weights, buffers, x, y, v = problem(
        "convnet", SHAPES["digits"], 1, 1, 4, soft=True, shared=True, net_width=8
    )
    primitive = make_primitive(module, BATCHINGS[path])

    def product(vector):
        return primitive.products(weights, buffers, x, y, vector, wanted=("weights",)).weights

    pad = torch.ones(primitive.layout.size, dtype=torch.float64)
    pad = primitive.layout.flatten(primitive.layout.views(pad))  # zero in the padding
    u, w = v * pad, random(*v.shape, seed=9) * pad
    assert torch.allclose((u * product(w)).sum(), (w * product(u)).sum(), rtol=1e-10)
    assert relative(product(2 * u - 3 * w), 2 * product(u) - 3 * product(w)) <= 1e-10


@pytest.mark.parametrize("students", [2, 3, 8])
@pytest.mark.parametrize("name", BATCHINGS)
def test_students_at_once_equal_students_alone(students, name):
    module, weights, buffers, x, y, v = problem(
        "convnet", SHAPES["digits"], students, 2, 3, soft=False, shared=False, net_width=8, norm="batch"
    )
    primitive = make_primitive(module, BATCHINGS[name])
    together = primitive.value_and_gradient(weights, buffers, x, y).gradient
    products = primitive.products(weights, buffers, x, y, v, wanted=("images",)).images
    for s in range(students):
        own = {key: tensor[s : s + 1] for key, tensor in buffers.items()}
        alone = primitive.value_and_gradient(weights[s : s + 1], own, x[s : s + 1], y[s : s + 1]).gradient
        assert relative(together[s], alone[0]) <= 1e-12
        pulled = primitive.products(
            weights[s : s + 1], own, x[s : s + 1], y[s : s + 1], v[s : s + 1], wanted=("images",)
        ).images
        assert relative(products[s], pulled[0]) <= 1e-12


def test_train_mode_returns_new_buffers_and_leaves_the_old_ones():
    module, weights, buffers, x, y, _ = problem(
        "convnet", SHAPES["digits"], 2, 1, 6, soft=False, shared=False, net_width=8, norm="batch"
    )
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    for name in ("vmap", "loop", "dual"):
        result = make_primitive(module, BATCHINGS[name]).value_and_gradient(weights, buffers, x, y, training=True)
        for key, tensor in buffers.items():
            assert torch.equal(tensor, before[key])
        for s in range(2):
            real = build_student(
                "convnet", channels=1, height=8, width=8, num_classes=10, net_width=8, norm="batch", device="cpu"
            ).double()
            real.load_state_dict(
                {**Layout.of(module).views(weights[s]), **{key: tensor[s] for key, tensor in buffers.items()}}
            )
            real.train()(x[s, 0])
            for key, tensor in real.named_buffers():
                assert torch.allclose(result.buffers[key][s].to(tensor.dtype), tensor, rtol=1e-12, atol=1e-14), key


def in_train_mode(case, student):
    """One student of a case with leaves to differentiate, its loss in train mode and its new buffers."""
    module, weights, buffers, x, y, _ = case
    parameters = {n: view[student].clone().requires_grad_() for n, view in Layout.of(module).views(weights).items()}
    own = x.ndim == 6
    x, y = (x[student, 0], y[student, 0]) if own else (x[0], y[0])
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    state = {name: tensor[student].clone() for name, tensor in buffers.items()}
    logits = functional_call(module.train(), {**parameters, **state}, (x,))
    return parameters, x, y, cross_entropy_sum(logits, y) / len(x), state


TRAINED = {"batch norm": ("convnet", {"net_width": 4, "depth": 2, "norm": "batch"}), "gtn": ("gtn", {})}


@pytest.mark.parametrize(
    ("student", "name"),  # weight norm has no dual layer, so no plan of the GTN student is dual
    [("batch norm", name) for name in BATCHINGS] + [("gtn", name) for name in FUNCTIONAL],
)
def test_products_in_train_mode_pass_through_the_batchs_statistics(student, name, monkeypatch):
    gtn.narrow(monkeypatch)
    architecture, options = TRAINED[student]
    case = problem(architecture, SHAPES["digits"], 3, 1, 5, soft=True, shared=False, **options)
    module, weights, buffers, x, y, v = case
    primitive = make_primitive(module, BATCHINGS[name])
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    found = primitive.products(weights, buffers, x, y, v, training=True)
    frozen = primitive.products(weights, buffers, x, y, v)
    assert all(torch.equal(tensor, before[name]) for name, tensor in buffers.items())
    for s in range(3):
        parameters, own, labels, loss, _ = in_train_mode(case, s)
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        along = sum((g * d).sum() for g, d in zip(slopes, primitive.layout.views(v[s, 0]).values(), strict=True))
        second = torch.autograd.grad(along, [*parameters.values(), own, labels])
        truth = {
            "loss_tangent": along.detach(),
            "weights": primitive.layout.flatten(dict(zip(parameters, second, strict=False))),
            "images": second[-2],
            "labels": second[-1],
        }
        for name, expected in truth.items():
            assert relative(getattr(found, name)[s, 0], expected) <= 1e-10, name
        assert relative(frozen.images[s, 0], truth["images"]) > 1e-2


@pytest.mark.parametrize("batching", FUNCTIONAL.values(), ids=FUNCTIONAL)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_cotangents_of_buffers_are_pulled_back(shared, batching, monkeypatch):
    gtn.narrow(monkeypatch)
    case = problem("gtn", SHAPES["digits"], 3, 1, 5, soft=True, shared=shared)
    module, weights, buffers, x, _, _ = case
    primitive = Functional(module, batching)
    along = {name: random(*tensor.shape, seed=8 + seed) for seed, (name, tensor) in enumerate(buffers.items())}
    of_weights, of_images = primitive.pull_buffers(weights, buffers, x, along)
    for s in range(3):
        parameters, own, _, _, new = in_train_mode(case, s)
        total = sum((new[name] * along[name][s]).sum() for name in new)
        *expected, images = torch.autograd.grad(total, [*parameters.values(), own], materialize_grads=True)
        assert relative(of_weights[s], primitive.layout.flatten(dict(zip(parameters, expected, strict=True)))) <= 1e-12
        assert relative(of_images[s], images) <= 1e-12
    with pytest.raises(ValueError, match="one group in train mode"):
        primitive.pull_buffers(weights, buffers, torch.cat([x, x], dim=-5), along)


@pytest.mark.parametrize("batching", FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_losses_have_derivatives_in_frozen_buffers(batching, monkeypatch):
    gtn.narrow(monkeypatch)
    module, weights, buffers, x, y, _ = problem("gtn", SHAPES["digits"], 3, 2, 5, soft=False, shared=False)
    primitive = Functional(module, batching)
    found = primitive.value_and_gradient(weights, buffers, x, y, of_buffers=True)
    plain = primitive.value_and_gradient(weights, buffers, x, y)
    assert plain.of_buffers == {}
    assert relative(found.gradient, plain.gradient) <= 1e-14 and torch.equal(found.loss, plain.loss)
    for s in range(3):
        for g in range(2):
            own = {name: tensor[s].clone().requires_grad_() for name, tensor in buffers.items()}
            logits = functional_call(module.eval(), {**primitive.layout.views(weights[s]), **own}, (x[s, g],))
            slopes = torch.autograd.grad(cross_entropy_sum(logits, y[s, g]) / 5, list(own.values()))
            for name, slope in zip(own, slopes, strict=True):
                assert relative(found.of_buffers[name][s, g], slope) <= 1e-12


def test_logits_equal_the_module():
    for name, batching in BATCHINGS.items():
        module, weights, buffers, x, _, _ = problem(
            "convnet", SHAPES["digits"], 3, 1, 5, soft=False, shared=True, net_width=8
        )
        found = make_primitive(module, batching).logits(weights, buffers, x[0])
        for s in range(3):
            expected = functional_call(module, Layout.of(module).views(weights[s]), (x[0],))
            assert relative(found[s], expected) <= 1e-12, name


def test_float32_error_is_not_above_twice_the_textbooks():
    module, weights, _, x, y, v = problem("convnet", SHAPES["mnist"], 1, 1, 8, soft=True, shared=False, net_width=32)
    layout = Layout.of(module)
    truth = double_backward(module, layout, weights[0], {}, x[0, 0], y[0, 0], v[0, 0])
    single = [tensor.float() for tensor in (weights, x, y, v)]
    textbook = double_backward(module, layout, single[0][0], {}, single[1][0, 0], single[2][0, 0], single[3][0, 0])
    for name in ("vmap", "loop", "dual"):
        primitive = make_primitive(module, BATCHINGS[name])
        products = primitive.products(single[0], {}, single[1], single[2], single[3])
        gradient = primitive.value_and_gradient(single[0], {}, single[1], single[2]).gradient
        for key, found in (("images", products.images), ("weights", products.weights), ("gradient", gradient)):
            error = relative(found[0, 0].double(), truth[key])
            assert error <= 2 * relative(textbook[key].double(), truth[key]), (name, key)


class Dispatches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["vmap", "dual"])
def test_dispatches_do_not_depend_on_the_number_of_students(path):
    counts = {}
    for students in (2, 4, 16):  # one student alone needs a few copies less
        module, weights, buffers, x, y, v = problem(
            "convnet", SHAPES["digits"], students, 2, 3, soft=False, shared=False, net_width=8
        )
        primitive = make_primitive(module, BATCHINGS[path])
        primitive.products(weights, buffers, x, y, v)  # the first call imports what later ones only use
        with Dispatches() as seen:
            primitive.value_and_gradient(weights, buffers, x, y)
            primitive.products(weights, buffers, x, y, v)
        counts[students] = seen.count
    assert len(set(counts.values())) == 1, counts


@pytest.mark.parametrize("path", ["vmap", "dual"])
def test_wrong_shapes_are_named(path):
    module, weights, buffers, x, y, v = problem(
        "convnet", SHAPES["digits"], 2, 2, 3, soft=False, shared=False, net_width=8
    )
    primitive = make_primitive(module, BATCHINGS[path])
    for arguments in (
        (weights[:, :-1], buffers, x, y),
        (weights, buffers, x[0, 0], y),
        (weights, buffers, x[:1], y),
        (weights, buffers, x, y[:, :, :1]),
    ):
        with pytest.raises(ValueError, match="expected"):
            primitive.value_and_gradient(*arguments)
    with pytest.raises(ValueError, match="one direction per"):
        primitive.products(weights, buffers, x, y, v[:1])
    with pytest.raises(ValueError, match="soft labels"):
        primitive.products(weights, buffers, x, y, v, wanted=("labels",))
    with pytest.raises(ValueError, match="one group in train mode"):
        batch_norm = problem("convnet", SHAPES["digits"], 1, 2, 3, soft=False, shared=False, net_width=8, norm="batch")
        make_primitive(batch_norm[0], BATCHINGS[path]).value_and_gradient(*batch_norm[1:5], training=True)
    with pytest.raises(ValueError, match="one group in train mode"):
        make_primitive(batch_norm[0], BATCHINGS[path]).products(*batch_norm[1:], training=True)
