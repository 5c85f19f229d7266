"""The unrolled recursion against plain reverse mode through the whole differentiable program, in float64."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fastdistill.derivatives.functional import Functional, cross_entropy_sum
from fastdistill.derivatives.inner import SGD, Adam, Momentum
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.trajectory import Steps, trajectory_bytes
from fastdistill.derivatives.unroll import Slope, adjoint, advance, first_order, unroll
from fastdistill.draws import Purpose
from fastdistill.students.architectures import build_student
from fastdistill.students.gtn import GTNStudent
from fastdistill.students.weights import initial_buffers, initial_weights
from tests import gtn

CLASSES, IMAGES, SHAPE = 3, 5, (1, 6, 6)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=2, students=2),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}
OPTIMIZERS = {
    "sgd": SGD(),
    "sgd-decay": SGD(decay=0.02),
    "momentum": Momentum(decay=0.02),
    "adam": Adam(decay=0.02, epsilon=1e-4),
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@dataclass
class Problem:
    """Everything that a hypergradient can be taken in; ``images[k]`` are used in steps ``k``, ``k + 2``, …"""

    module: torch.nn.Module
    optimizer: object
    weights: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    rates: torch.Tensor
    momenta: torch.Tensor
    real: tuple

    def batch(self, number):
        return self.images[number % 2], self.labels[number % 2]

    @property
    def layout(self):
        return Layout.of(self.module)

    def steps(self, first=0):
        momenta = self.momenta if self.optimizer.slots else None
        return Steps(optimizer=self.optimizer, rates=self.rates, momenta=momenta, first=first)

    def leaves(self):
        """A copy whose tensors collect gradients."""
        names = ["weights", "images", "rates", "momenta"] + ["labels"] * self.labels.is_floating_point()
        fields = {name: getattr(self, name).clone().requires_grad_() for name in names}
        return Problem(**{**vars(self), **fields}), fields

    def some(self, students):
        own = {"images": 6, "labels": 4 if self.labels.is_floating_point() else 3}
        picked = {
            name: getattr(self, name)[:, students] if getattr(self, name).ndim == axes else getattr(self, name)
            for name, axes in own.items()
        }
        return Problem(
            **{
                **vars(self),
                **picked,
                "weights": self.weights[students],
                "rates": self.rates[:, students],
                "momenta": self.momenta[:, students],
            }
        )


def problem(name, students, length, *, soft=True, shared=True, smooth=False, depth=1, width=3, student="convnet"):
    # without a norm no weight has the exactly zero gradient in which Adam's root has no derivative
    smooth = smooth or name == "adam"
    options = {"norm": "none" if name == "adam" else "instance", "activation": "softplus" if smooth else "relu"}
    module = build_student(
        student,
        channels=SHAPE[0],
        height=SHAPE[1],
        width=SHAPE[2],
        num_classes=CLASSES,
        depth=depth,
        net_width=width,
        **options,
    )
    weights = initial_weights(
        module, "default", seed=3, step=0, students=torch.arange(students), purpose=Purpose.WEIGHTS
    ).double()
    lead = (2, IMAGES) if shared else (2, students, IMAGES)
    if soft:
        labels = random(*lead, CLASSES, seed=2).abs()  # rows of any sum
    else:
        labels = torch.randint(0, CLASSES, lead, generator=torch.Generator().manual_seed(2))
    scale = 0.02 if name == "adam" else 0.1
    return Problem(
        module=module,
        optimizer=OPTIMIZERS[name],
        weights=weights,
        images=random(*lead, *SHAPE, seed=1),
        labels=labels,
        rates=scale * (1 + random(length, students, seed=4).abs()),
        momenta=0.5 + 0.4 * random(length, students, seed=5).sigmoid(),
        real=(random(7, *SHAPE, seed=6), torch.randint(0, CLASSES, (7,), generator=torch.Generator().manual_seed(7))),
    )


def textbook_step(case, parameters, state, number, rate, momentum, loss):
    """One step of one student, as the papers write it, differentiable."""
    optimizer, beta2 = case.optimizer, getattr(case.optimizer, "beta2", None)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    new, behind = {}, {}
    for (name, theta), g in zip(parameters.items(), gradients, strict=True):
        g = g + optimizer.decay * theta
        if optimizer.slots == 0:
            new[name], behind[name] = theta - rate * g, ()
        elif optimizer.slots == 1:
            m = momentum * (0 if state is None else state[name][0]) + g
            new[name], behind[name] = theta - rate * m, (m,)
        else:
            m, v = (0, 0) if state is None else state[name]
            m, v = momentum * m + (1 - momentum) * g, beta2 * v + (1 - beta2) * g**2
            root = (v / (1 - beta2 ** (number + 1))).sqrt() + optimizer.epsilon
            new[name], behind[name] = theta - rate * m / (1 - momentum ** (number + 1)) / root, (m, v)
    return new, behind


def textbook(case, *, before=0, every=0):
    """Outer losses ``[S]`` after all steps, of which the first ``before`` are constants; one student at a time.

    With ``every``, the outer loss of the weights before each step whose number it divides is added.
    """
    losses = []
    for s in range(len(case.weights)):
        parameters, state, means, extra = case.layout.views(case.weights[s]), None, None, 0
        for number in range(len(case.rates)):
            if every and number and number % every == 0:
                extra = extra + outer(case, parameters, means)
            images, labels = case.batch(number)
            images = images[s] if images.ndim == 5 else images
            labels = labels[s] if labels.ndim == (3 if labels.is_floating_point() else 2) else labels
            logits, means = predicted(case, parameters, images)
            loss = cross_entropy_sum(logits, labels) / IMAGES
            rate, momentum = case.rates[number, s], case.momenta[number, s]
            parameters, state = textbook_step(case, parameters, state, number, rate, momentum, loss)
            if number + 1 == before:
                parameters = {name: theta.detach().requires_grad_() for name, theta in parameters.items()}
                state = {name: tuple(part.detach() for part in parts) for name, parts in state.items()}
        losses.append(outer(case, parameters, means) + extra)
    return torch.stack(losses)


def predicted(case, parameters, images, means=None):
    """Logits, and the batch's means where the student has such; or logits by given means."""
    if isinstance(case.module, GTNStudent):
        return gtn.forward(parameters, images, means)
    return functional_call(case.module, parameters, (images,)), None


def outer(case, parameters, means):
    images, labels = case.real
    return cross_entropy(predicted(case, parameters, images, means)[0], labels)


def outer_gradient(primitive, case, weights):
    return outer_slope(primitive, case, weights, {}).weights


def outer_slope(primitive, case, weights, buffers):
    images, labels = case.real
    found = primitive.value_and_gradient(weights, buffers, images[None], labels[None], of_buffers=bool(buffers))
    return Slope(found.gradient[:, 0], {name: slope[:, 0] for name, slope in found.of_buffers.items()})


def buffers_of(case):
    return initial_buffers(case.module, len(case.weights), dtype=case.weights.dtype, device=case.weights.device)


def truth(case, **options):
    """The textbook's derivatives of the summed outer loss."""
    case, leaves = case.leaves()
    found = torch.autograd.grad(textbook(case, **options).sum(), list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


class Sums:
    """A pull-back to the images and labels themselves: sums over steps, and over students where these are shared."""

    def __init__(self, case):
        self.images = torch.zeros_like(case.images)
        self.labels = torch.zeros_like(case.labels) if case.labels.is_floating_point() else None
        self.numbers = []

    def __call__(self, number, images, labels):
        self.numbers.append(number)
        self.images[number % 2] += images if self.images.ndim == 6 else images.sum(0)
        if labels is not None:
            self.labels[number % 2] += labels if self.labels.ndim == 4 else labels.sum(0)


def hypergradient(case, batching, *, before=0, every=0, means=True, **options):
    """The same derivatives by the recursion."""
    primitive, sums = Functional(case.module, batching), Sums(case)
    steps, weights, state, buffers = case.steps(), case.weights, None, buffers_of(case)
    if before:
        ahead, steps = steps.split(before)
        weights, state = advance(primitive, weights, buffers, case.batch, ahead)
    trajectory = unroll(primitive, weights, buffers, case.batch, steps, state=state, **options)
    intermediate = None

    def slope(weights, buffers):
        found = outer_slope(primitive, case, weights, buffers)
        kept = found.buffers if means else {name: torch.zeros_like(slope) for name, slope in found.buffers.items()}
        return Slope(found.weights, kept)

    if every:

        def intermediate(number, weights, buffers):
            return slope(weights, buffers) if number and number % every == 0 else None

    found = adjoint(
        primitive,
        trajectory,
        case.batch,
        slope(trajectory.weights, trajectory.buffers),
        sums,
        labels=sums.labels is not None,
        initial=before == 0,
        intermediate=intermediate,
    )
    assert sums.numbers == list(reversed(range(before, before + len(steps))))
    pad = case.rates.new_zeros(before, len(case.weights))
    entries = {
        "weights": found.weights,
        "images": sums.images,
        "labels": sums.labels,
        "rates": torch.cat([pad, found.rates]),
        "momenta": None if found.momenta is None else torch.cat([pad, found.momenta]),
    }
    return {name: tensor for name, tensor in entries.items() if tensor is not None}


def check(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name == "momenta" and len(tensor) == 1:  # a first step has no momentum, and Adam's correction undoes β₁
            assert found[name].norm() <= 1e-14
            continue
        assert tensor.norm() > 1e-6, name
        error = relative(found[name], tensor)
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize(
    ("length", "batching"), [(1, "vmap"), (1, "loop"), (3, "vmap"), (3, "vmap-split"), (3, "loop"), (7, "vmap")]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hypergradient_is_that_of_the_whole_program(name, length, batching):
    case = problem(name, 2, length)
    check(hypergradient(case, BATCHINGS[batching]), truth(case))


@pytest.mark.parametrize(("soft", "shared"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("students", [1, 2, 5])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_hypergradient_for_every_batch_and_number_of_students(name, students, soft, shared):
    case = problem(name, students, 3, soft=soft, shared=shared)
    expected = truth(case)
    check(hypergradient(case, BATCHINGS["vmap-split"]), expected)
    if students == 2:
        check(hypergradient(case, BATCHINGS["loop"]), expected)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_hypergradient_of_a_deeper_student(name):
    case = problem(name, 2, 3, depth=2, width=4)
    check(hypergradient(case, BATCHINGS["vmap"]), truth(case))


@pytest.mark.parametrize("keep", [2, 3, 100])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_steps_that_are_run_again_give_the_same_bits(name, keep):
    case = problem(name, 2, 7)
    found, expected = (hypergradient(case, BATCHINGS["vmap"], keep=number) for number in (keep, 1))
    for entry, tensor in expected.items():
        assert torch.equal(found[entry], tensor), entry
    check(found, truth(case))


@pytest.mark.parametrize(("every", "batching"), [(1, "vmap"), (2, "loop")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_intermediate_losses_are_added_where_they_arise(name, every, batching):
    case = problem(name, 2, 4)
    check(hypergradient(case, BATCHINGS[batching], every=every, keep=2), truth(case, every=every))


@pytest.fixture
def narrow(monkeypatch):
    gtn.narrow(monkeypatch)


@pytest.mark.parametrize(("length", "batching"), [(1, "vmap"), (3, "vmap"), (3, "vmap-split"), (3, "loop")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hypergradient_through_the_means_of_batches(name, length, batching, narrow):
    case = problem(name, 3, length, student="gtn")
    check(hypergradient(case, BATCHINGS[batching]), truth(case))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("soft", "shared"), [(True, False), (False, True), (False, False)])
def test_hypergradient_through_means_for_every_batch(name, soft, shared, narrow):
    case = problem(name, 2, 3, soft=soft, shared=shared, student="gtn")
    check(hypergradient(case, BATCHINGS["vmap-split"]), truth(case))


@pytest.mark.parametrize(("every", "keep"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_intermediate_losses_have_the_means_of_the_batch_before(name, every, keep, narrow):
    case = problem(name, 2, 5, student="gtn")
    check(hypergradient(case, BATCHINGS["vmap"], every=every, keep=keep), truth(case, every=every))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_window_of_students_with_means(name, narrow):
    case = problem(name, 2, 5, student="gtn")
    check(hypergradient(case, BATCHINGS["vmap"], before=2, keep=2), truth(case, before=2))


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_what_passes_through_the_means_of_an_outer_loss_is_not_nothing(name, length, narrow):
    case = problem(name, 2, length, student="gtn")
    found, without = (hypergradient(case, BATCHINGS["vmap"], means=means) for means in (True, False))
    assert relative(without["images"], found["images"]) > 1e-2


def test_students_keep_the_means_of_every_batch(narrow):
    case = problem("momentum", 2, 4, student="gtn", shared=False)
    primitive = Functional(case.module, BATCHINGS["vmap"])
    whole = unroll(primitive, case.weights, buffers_of(case), case.batch, case.steps())
    for step in range(4):
        for s in range(2):
            parameters = case.layout.views(whole.weights_at(step)[s])
            _, means = gtn.forward(parameters, case.batch(step)[0][s])
            for stored, mean in zip(whole.buffers_at(step + 1).values(), means, strict=True):
                assert relative(stored[s], mean) <= 1e-12
    assert all(torch.equal(tensor, whole.buffers_at(4)[name]) for name, tensor in whole.buffers.items())
    with pytest.raises(
        ValueError, match=r"^expected derivatives in the buffers body.2.running_mean, .* got none: pass"
    ):
        adjoint(primitive, whole, case.batch, case.weights, lambda *_: None)
    with pytest.raises(
        ValueError, match=r"^expected derivatives in the buffers body.2.running_mean, .* got none: pass"
    ):
        start = outer_slope(primitive, case, whole.weights, whole.buffers)
        further = Slope(case.weights)
        adjoint(primitive, whole, case.batch, start, lambda *_: None, intermediate=lambda *_: further)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_window_takes_what_came_before_as_constant(name, keep):
    case = problem(name, 2, 7)
    expected = truth(case, before=3)
    check(hypergradient(case, BATCHINGS["vmap"], before=3, keep=keep), expected)
    assert expected["rates"][:3].eq(0).all()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_hypergradient_is_the_central_difference(name):
    case = problem(name, 2, 3, smooth=True)
    found = hypergradient(case, BATCHINGS["vmap"])
    primitive, width = Functional(case.module, BATCHINGS["vmap"]), 1e-6
    images, labels = case.real

    def loss(name, way):
        moved = Problem(**{**vars(case), name: getattr(case, name) + way})
        weights, _ = advance(primitive, moved.weights, {}, moved.batch, moved.steps())
        return float(primitive.value_and_gradient(weights, {}, images[None], labels[None]).loss.sum())

    for entry, gradient in found.items():
        for seed in (8, 9):
            way = random(*gradient.shape, seed=seed)
            expected = float((gradient * way).sum())
            difference = (loss(entry, width * way) - loss(entry, -width * way)) / (2 * width)
            error = abs(difference - expected) / abs(expected)
            assert error <= 1e-6, (entry, error)


def test_a_rate_of_zero_has_its_derivative():
    case = problem("sgd", 2, 3)
    case.rates[1] = 0
    found = hypergradient(case, BATCHINGS["vmap"])
    check(found, truth(case))
    assert found["rates"][1].abs().min() > 1e-4


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS)
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_students_at_once_equal_students_alone(name, batching):
    case = problem(name, 3, 2, shared=name == "momentum")
    primitive = Functional(case.module, batching)

    def run(case):
        trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
        parts = []
        start = outer_gradient(primitive, case, trajectory.weights)
        found = adjoint(
            primitive, trajectory, case.batch, start, lambda *part: parts.append(part), labels=True, initial=True
        )
        pulled = [torch.stack([part[index] for part in parts], dim=1) for index in (1, 2)]
        over_steps = [trajectory.losses, found.rates, *([] if found.momenta is None else [found.momenta])]
        return [trajectory.weights, found.weights, *pulled, *(tensor.T for tensor in over_steps)]

    together = run(case)
    for s in range(3):
        for tensor, alone in zip(together, run(case.some([s])), strict=True):
            assert relative(tensor[s], alone[0]) <= 1e-12
    broken = Problem(**{**vars(case), "weights": case.weights.clone()})
    broken.weights[1] = float("nan")
    for tensor, whole in zip(run(broken), together, strict=True):
        assert tensor[1].isnan().any()
        for s in (0, 2):
            assert torch.equal(tensor[s], whole[s])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_float32_error_is_about_the_textbooks(name):
    case = problem(name, 2, 10, smooth=True)
    if name == "adam":
        case.optimizer, case.rates = Adam(), 0.1 * case.rates
    single = {key: value.float() for key, value in vars(case).items() if isinstance(value, torch.Tensor)}
    single = Problem(**{**vars(case), **single, "real": (case.real[0].float(), case.real[1])})
    found, theirs = hypergradient(single, BATCHINGS["vmap"]), truth(single)
    for entry, exact in truth(case).items():
        errors = [relative(tensors[entry].double(), exact) for tensors in (found, theirs)]
        assert errors[0] <= 4 * errors[1], (entry, errors)  # both are a few roundings, measured 0.5 to 1.8 apart


def test_adam_with_dead_weights_has_finite_derivatives():
    case = problem("momentum", 2, 4, width=4)  # relu and instance norm
    case.optimizer = Adam()
    case.rates = case.rates * 0.01
    views = case.layout.views(case.weights)
    views["body.0.norm.weight"][:, 0], views["body.0.norm.bias"][:, 0] = 0, -5.0  # a channel that relu never lets pass
    primitive = Functional(case.module, BATCHINGS["vmap"])
    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
    assert case.layout.views(trajectory.state[1])["body.0.convolution.weight"][:, 0].eq(0).all()
    for found in hypergradient(case, BATCHINGS["vmap"]).values():
        assert found.isfinite().all()
        assert found.norm() > 0


def test_tesla_is_its_formula():
    case = problem("sgd", 2, 6, shared=False)
    alpha = 0.1
    case.rates = torch.full_like(case.rates, alpha)
    primitive, sums = Functional(case.module, BATCHINGS["vmap"]), Sums(case)
    target = case.weights + case.layout.flatten(case.layout.views(0.1 * random(*case.weights.shape, seed=11)))
    distance = (case.weights - target).square().sum(-1, keepdim=True)
    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
    start = 2 * (trajectory.weights - target) / distance
    rates = first_order(primitive, trajectory, case.batch, start, sums, labels=True)
    assert sums.numbers == [5, 4, 3, 2, 1, 0]

    expected = {"images": torch.zeros_like(case.images), "labels": torch.zeros_like(case.labels)}
    for s in range(2):
        gradients, wanted, total = [], [], 0
        for number in range(6):
            theta = {
                name: view.clone().requires_grad_()
                for name, view in case.layout.views(trajectory.stored_weights[number, s]).items()
            }
            x, y = (tensor[s].clone().requires_grad_() for tensor in case.batch(number))
            loss = cross_entropy_sum(functional_call(case.module, theta, (x,)), y) / IMAGES
            parts = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            gradients.append(case.layout.flatten(dict(zip(theta, parts, strict=True))))
            wanted.append((x, y))
            total = total + gradients[-1].detach()
        vector = 2 / distance[s] * (alpha * (target[s] - case.weights[s]) + alpha**2 * total)
        for number, (gradient, (x, y)) in enumerate(zip(gradients, wanted, strict=True)):
            of_images, of_labels = torch.autograd.grad((gradient * vector).sum(), [x, y])
            expected["images"][number % 2, s] += of_images
            expected["labels"][number % 2, s] += of_labels
        # the closed form: a quadratic in the learning rate once the sum of gradients is a constant
        rate = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
        closed = (case.weights[s] - rate * total - target[s]).square().sum() / distance[s, 0]
        assert relative(rates[:, s].sum(), torch.autograd.grad(closed, rate)[0]) <= 1e-10
    check({"images": sums.images, "labels": sums.labels}, expected)

    exact = hypergradient(case, BATCHINGS["vmap"])
    assert relative(sums.images, exact["images"]) > 1e-2  # what TESLA drops is not nothing


def test_first_order_and_exact_gradients_agree_in_one_step():
    case = problem("sgd-decay", 2, 1)
    primitive, sums = Functional(case.module, BATCHINGS["vmap"]), Sums(case)
    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
    start = outer_gradient(primitive, case, trajectory.weights)
    rates = first_order(primitive, trajectory, case.batch, start, sums, labels=True)
    exact = hypergradient(case, BATCHINGS["vmap"])
    check(
        {"images": sums.images, "labels": sums.labels, "rates": rates},
        {name: exact[name] for name in ("images", "labels", "rates")},
        1e-14,
    )


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_narrow_storage_costs_a_known_error(name):
    case = problem(name, 2, 10)
    case.rates = 0.1 * case.rates
    primitive = Functional(case.module, BATCHINGS["vmap"])

    def pulled(trajectory):
        sums = Sums(case)
        start = outer_gradient(primitive, case, trajectory.weights)
        found = adjoint(primitive, trajectory, case.batch, start, sums, initial=True)
        return {"images": sums.images, "weights": found.weights, "rates": found.rates}

    wide = unroll(primitive, case.weights, {}, case.batch, case.steps())
    narrow = unroll(primitive, case.weights, {}, case.batch, case.steps(), storage=torch.bfloat16)
    assert torch.equal(narrow.weights, wide.weights)
    assert narrow.stored_weights.dtype == torch.bfloat16
    rounded = dataclasses.replace(wide, stored_weights=wide.stored_weights.bfloat16().double())
    # the way from θ_0 is short beside θ itself, and so is its rounding
    exact, found, plain = pulled(wide), pulled(narrow), pulled(rounded)
    for entry, tensor in exact.items():
        assert relative(found[entry], tensor) <= 1e-3, entry
        assert relative(found[entry], tensor) <= relative(plain[entry], tensor) / 5, entry


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_waits_for_the_device(name):
    # meta tensors have no values, so reading one would raise
    case = problem(name, 2, 4)
    fields = {key: value.to("meta") for key, value in vars(case).items() if isinstance(value, torch.Tensor)}
    case = Problem(**{**vars(case), **fields})
    primitive = Functional(case.module, BATCHINGS["vmap"])
    steps = case.steps()
    weights, state = advance(primitive, case.weights, {}, case.batch, steps)
    trajectory = unroll(primitive, weights, {}, case.batch, steps, state=state, keep=3)
    found = adjoint(primitive, trajectory, case.batch, weights, lambda *_: None, labels=True, initial=True)
    assert found.weights.shape == case.weights.shape
    assert found.rates.shape == case.rates.shape


def test_no_graph_is_built():
    case, _ = problem("momentum", 2, 3).leaves()
    primitive = Functional(case.module, BATCHINGS["vmap"])
    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
    seen = []
    found = adjoint(
        primitive, trajectory, case.batch, case.weights, lambda *part: seen.extend(part[1:]), labels=True, initial=True
    )
    kept = [getattr(trajectory, name) for name in ("weights", "state", "losses", "stored_weights", "stored_states")]
    assert len(seen) == 6
    for tensor in (*kept, *seen, found.weights, found.rates, found.momenta):
        assert not tensor.requires_grad


def test_the_first_step_needs_no_hessian_product_unless_asked():
    case = problem("sgd", 2, 3, soft=False)
    primitive = Functional(case.module, BATCHINGS["vmap"])
    asked = []

    class Spy:
        def products(self, *arguments, wanted, training):
            asked.append((wanted, training))
            return primitive.products(*arguments, wanted=wanted)

    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps())
    start = outer_gradient(primitive, case, trajectory.weights)
    assert adjoint(Spy(), trajectory, case.batch, start, lambda *_: None).weights is None
    assert asked == [(("weights", "images"), False)] * 2 + [(("images",), False)]
    asked.clear()
    first_order(Spy(), trajectory, case.batch, start, lambda *_: None)
    assert asked == [(("images",), False)] * 3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("keep", "storage"), [(1, None), (1, torch.bfloat16), (3, None), (100, None)])
def test_bytes_of_a_trajectory_are_predicted(name, keep, storage):
    case = problem(name, 2, 7)
    primitive = Functional(case.module, BATCHINGS["vmap"])
    trajectory = unroll(primitive, case.weights, {}, case.batch, case.steps(), keep=keep, storage=storage)
    fields = [value for value in vars(trajectory).values() if isinstance(value, torch.Tensor)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in fields)
    again = (min(keep, 7) - 1) * (1 + case.optimizer.slots) * case.weights.numel() * 8
    predicted = trajectory_bytes(
        case.optimizer, 7, 2, case.layout.size, dtype=torch.float64, keep=keep, storage=storage
    )
    assert predicted == held + again


def test_what_cannot_be_unrolled_is_named():
    case = problem("momentum", 2, 3, soft=False)
    primitive, steps = Functional(case.module, BATCHINGS["vmap"]), case.steps()
    for message, changed in (
        ("expected students without running statistics, got steps", {"buffers": {"steps": torch.zeros(2).long()}}),
        ("expected learning rates of 1 students", {"weights": case.weights[:1]}),
        ("expected an optimiser state", {"state": torch.zeros(2, 2, 5)}),
        ("expected at least one step", {"steps": steps.split(0)[0]}),
        ("expected at least one step", {"keep": 0}),
        ("choose one way to save memory", {"keep": 2, "storage": torch.bfloat16}),
    ):
        given = {"weights": case.weights, "buffers": {}, "steps": steps, **changed}
        weights, buffers, others = given.pop("weights"), given.pop("buffers"), given.pop("steps")
        with pytest.raises(ValueError, match=message):
            unroll(primitive, weights, buffers, case.batch, others, **given)
    trajectory = unroll(primitive, case.weights, {}, case.batch, steps)
    with pytest.raises(ValueError, match="in the trained weights"):
        adjoint(primitive, trajectory, case.batch, case.weights[:1], lambda *_: None)
    with pytest.raises(ValueError, match="expected soft labels"):
        adjoint(primitive, trajectory, case.batch, case.weights, lambda *_: None, labels=True)
    with pytest.raises(ValueError, match="expected SGD for the first-order gradient, got Momentum"):
        first_order(primitive, trajectory, case.batch, case.weights, lambda *_: None)
