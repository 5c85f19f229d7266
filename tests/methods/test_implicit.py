"""Implicit differentiation against the textbook, dense algebra, long unrolling and finite differences, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from bench.naive.implicit import conjugate_gradients, dense, image_gradient, implicit_gradient, neumann
from fastdistill.augmentation import dsa
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional, cross_entropy_sum
from fastdistill.derivatives.inner import SGD
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.solve import relative_residual
from fastdistill.derivatives.trajectory import Steps
from fastdistill.derivatives.unroll import adjoint, unroll
from fastdistill.method_configs import ImplicitConfig
from fastdistill.methods.implicit import Implicit, curvature, hypergradient, initial_labels, solver
from fastdistill.methods.inner_training import shown
from fastdistill.methods.primitives import Primitives
from fastdistill.students.ensemble import Ensemble, Students

CLASSES, REAL, SHAPE, IPC = 3, 7, (1, 8, 8), 2
IMAGES = CLASSES * IPC
HARD = torch.arange(CLASSES).repeat_interleave(IPC)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}
RECIPE = ImplicitConfig(inner_steps=4, inner_learning_rate=0.1, terms=5, alpha=0.1, real_batch=REAL)
CONVEX = replace(RECIPE, inner_decay=0.2, optimizer="sgd", inner_learning_rate=0.4, solver="cg", terms=300)


def normal(*shape, seed, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def real(step, students):
    images = torch.stack([normal(REAL, *SHAPE, seed=1000 * step + int(k)) for k in students]).to(students.device)
    labels = (torch.arange(REAL, device=students.device) + students[:, None]) % CLASSES
    return images, labels


class Linear:
    """Students without hidden layers: with weight decay their training loss is strongly convex."""

    def __init__(self):
        with torch.device("meta"):
            self.module = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double()

    def draw(self, step, indices):
        layout = Functional(self.module, BATCHINGS["vmap"]).layout
        drawn = torch.stack([0.1 * normal(layout.size, seed=50 * step + int(k)) for k in indices])
        return Students(indices=indices, weights=layout.flatten(layout.views(drawn)), buffers={})


class Watched(Functional):
    """Keeps the images that it is given."""

    def __init__(self, module, batching):
        super().__init__(module, batching)
        self.trained, self.differentiated = [], []

    def value_and_gradient(self, weights, buffers, images, labels, **rest):
        self.trained.append(images)
        return super().value_and_gradient(weights, buffers, images, labels, **rest)

    def products(self, weights, buffers, images, labels, vector, **rest):
        self.differentiated.append(images)
        return super().products(weights, buffers, images, labels, vector, **rest)


def make(config, *, students, runs=1, chunk=100, batching="vmap", device="cpu", ensemble=None, scale=1.0, **student):
    settings = StudentConfig(width=4, depth=2, **student)
    ensemble = ensemble or Ensemble(settings, SHAPE, CLASSES, seed=5, dtype=torch.float64)
    watched = Watched(ensemble.module, BATCHINGS[batching])
    primitive = Functional(ensemble.module, BATCHINGS[batching])
    method = Implicit(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=watched, training=primitive),
        real,
        HARD.view(CLASSES, IPC).to(device),
        runs=runs,
        students=students,
        chunk=chunk,
        seed=5,
    )
    learned = {"images": scale * normal(runs, CLASSES, IPC, *SHAPE, seed=7, device=device)}
    learned |= initial_labels(config, runs, CLASSES, IPC, dtype=torch.float64, device=learned["images"].device)
    if "labels" in learned:  # every row its own, of any sum
        learned["labels"] = learned["labels"] + 0.2 * normal(*learned["labels"].shape, seed=8, device=device).abs()
    return method, learned, ensemble, watched


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def named(primitive, weights):
    return {name: view.clone() for name, view in primitive.layout.views(weights).items()}


def solved(config):
    """The textbook's solver."""
    if config.solver == "neumann":
        return lambda product, b: neumann(product, b, config.terms, config.alpha, scaled=config.scaled)
    return lambda product, b: conjugate_gradients(product, b, config.terms, config.tolerance)


def textbook(config, learned, ensemble, weights, run, batch):
    """Loss of one trained student and its derivatives by name, with one retained graph of its gradient."""
    images, own = learned["images"][run].flatten(0, 1), dict(weights)
    targets = learned["labels"][run].flatten(0, 1) if "labels" in learned else HARD

    def loss(values, inputs, labels):
        return nn.functional.cross_entropy(
            functional_call(ensemble.module, dict(zip(own, values, strict=True)), (inputs,)), labels
        )

    def training_loss(values, hyper):
        penalty = config.inner_decay / 2 * sum((value**2).sum() for value in values)
        return loss(values, hyper[0], hyper[1] if "labels" in learned else HARD) + penalty

    def validation_loss(values, hyper):
        return loss(values, *batch) + config.image_penalty / 2 * (hyper[0] ** 2).mean()

    hyper = [images, targets] if "labels" in learned else [images]
    value, found = implicit_gradient(
        training_loss, validation_loss, list(own.values()), hyper, solved(config), damping=config.damping
    )
    return value, {name: part.view_as(learned[name][run]) for name, part in zip(learned, found, strict=True)}


def compare(config, *, students, runs, chunk=100, batching="vmap", step=2, **student):
    method, learned, ensemble, primitive = make(
        config, students=students, runs=runs, chunk=chunk, batching=batching, **student
    )
    trained = method.prepare(learned, method.fresh(step), step)
    found = method.gradient(learned, trained, step)
    assert found.finite.all()
    assert found.gradients.keys() == learned.keys()
    images, labels = real(step, trained.indices)
    for run in range(runs):
        own = range(run * students, (run + 1) * students)
        each = [
            textbook(config, learned, ensemble, named(primitive, trained.weights[k]), run, (images[k], labels[k]))
            for k in own
        ]
        assert torch.allclose(found.loss[list(own)], torch.stack([loss for loss, _ in each]), rtol=1e-12)
        for name, gradient in found.gradients.items():
            expected = torch.stack([expected[name] for _, expected in each]).mean(0)
            assert relative(gradient[run], expected) <= 1e-8, (name, run)
    return found


RECIPES = {
    "neumann": RECIPE,
    "without alpha": replace(RECIPE, scaled=False),
    "no terms": replace(RECIPE, terms=0),
    "decay": replace(RECIPE, inner_decay=0.05, damping=0.01),
    "cg": replace(RECIPE, solver="cg", damping=1.0, terms=8),
    "labels": replace(RECIPE, learn_labels=True),
    "cg labels": replace(RECIPE, solver="cg", damping=2.0, inner_decay=0.1, learn_labels=True),
    "penalty": replace(RECIPE, image_penalty=0.7),
    "untrained": replace(RECIPE, inner_steps=0),
}


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_are_those_of_the_textbook(name):
    compare(RECIPES[name], students=2, runs=2, chunk=3)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_students_runs_and_chunks(chunk, batching):
    compare(replace(RECIPE, learn_labels=True, image_penalty=0.1), students=3, runs=2, chunk=chunk, batching=batching)


@pytest.mark.parametrize("name", ["neumann", "without alpha", "cg"])
def test_the_images_alone_are_those_of_the_textbook_too(name):
    """`image_gradient` is what the textbook offers for images."""
    config = replace(RECIPES[name], inner_decay=0.03)
    method, learned, ensemble, primitive = make(config, students=1)
    trained = method.prepare(learned, method.fresh(0), 0)
    found = method.gradient(learned, trained, 0)
    images, labels = real(0, trained.indices)
    value, expected = image_gradient(
        ensemble.module,
        named(primitive, trained.weights[0]),
        learned["images"][0].flatten(0, 1),
        HARD,
        images[0],
        labels[0],
        solved(config),
        weight_decay=config.inner_decay,
        damping=config.damping,
    )
    assert torch.allclose(found.loss[0], value, rtol=1e-12)
    assert relative(found.gradients["images"][0].flatten(0, 1), expected) <= 1e-8


def test_gauss_newton_is_that_of_a_dense_jacobian():
    config = replace(RECIPE, curvature="gauss_newton", solver="cg", damping=0.5, terms=400, inner_decay=0.1)
    method, learned, ensemble, primitive = make(config, students=1)
    trained = method.prepare(learned, method.fresh(0), 0)
    found = method.gradient(learned, trained, 0)
    images, layout = learned["images"][0].flatten(0, 1), primitive.layout

    def logits(weights):
        return functional_call(ensemble.module, layout.views(weights), (images,))

    jacobian = jacrev(logits)(trained.weights[0]).flatten(0, 1)
    share = logits(trained.weights[0]).softmax(-1)
    inner = torch.block_diag(*(torch.diag_embed(share) - share[:, :, None] * share[:, None, :])) / IMAGES
    matrix = jacobian.T @ inner @ jacobian + (config.inner_decay + config.damping) * torch.eye(
        layout.size, dtype=torch.float64
    )
    batch = tuple(tensor[0] for tensor in real(0, trained.indices))

    def loss(weights, images, labels):
        return cross_entropy_sum(functional_call(ensemble.module, layout.views(weights), (images,)), labels) / len(
            labels
        )

    p = torch.linalg.solve(matrix, torch.func.grad(loss)(trained.weights[0], *batch))
    mixed = jacrev(lambda images: torch.func.grad(loss)(trained.weights[0], images, HARD) @ p)(images)
    assert relative(found.gradients["images"][0].flatten(0, 1), -mixed) <= 1e-8


# trained students


def trained_by_torch(config, ensemble, primitive, weights, batches):
    """One student after plain training on batches of images, ``inner_steps`` each."""
    own = {name: nn.Parameter(view) for name, view in named(primitive, weights).items()}
    kind = {
        "sgd": lambda: torch.optim.SGD(own.values(), config.inner_learning_rate, weight_decay=config.inner_decay),
        "momentum": lambda: torch.optim.SGD(
            own.values(), config.inner_learning_rate, config.inner_momentum, weight_decay=config.inner_decay
        ),
        "adam": lambda: torch.optim.Adam(
            own.values(),
            config.inner_learning_rate,
            betas=(config.inner_momentum, 0.999),
            weight_decay=config.inner_decay,
        ),
    }
    optimizer = kind[config.optimizer]()
    for images in batches:
        for _ in range(config.inner_steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(functional_call(ensemble.module, own, (images,)), HARD).backward()
            optimizer.step()
    return torch.cat([value.detach().flatten() for value in own.values()])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("chunk", [2, 100])
def test_students_live_on_with_their_optimiser_while_the_images_move(optimizer, chunk):
    config = replace(RECIPE, optimizer=optimizer, hypersteps=3, inner_decay=0.01)
    method, learned, ensemble, primitive = make(config, students=3, runs=2, chunk=chunk)
    moving = [learned["images"] + 0.1 * step for step in range(3)]
    students = born = method.fresh(0)
    for step, images in enumerate(moving):
        students = method.prepare({"images": images}, students, step)
        found = method.gradient({"images": images}, students, step)
        students = method.advance({"images": images}, replace(students, carried=found.carried), step)
        if step == 2:
            assert students is None
            break
        layout = primitive.layout
        for k in range(6):
            seen = [image[k // 3].flatten(0, 1) for image in moving[: step + 1]]
            expected = trained_by_torch(config, ensemble, primitive, born.weights[k], seen)
            own = torch.cat([view.flatten() for view in layout.views(students.weights[k]).values()])
            assert relative(own, expected) <= 1e-12
    assert not torch.equal(method.fresh(3).weights, born.weights)


def test_nothing_is_carried_that_nobody_needs():
    for config, kept in (
        (RECIPE, []),
        (replace(RECIPE, hypersteps=2, optimizer="sgd"), []),
        (replace(RECIPE, hypersteps=2), ["optimizer"]),
        (replace(RECIPE, hypersteps=2, solver="cg", warm_start=True), ["optimizer", "solution"]),
    ):
        method, learned, _, _ = make(config, students=2)
        students = method.fresh(0)
        for step in range(config.hypersteps):
            students = method.prepare(learned, students, step)
            carried = method.gradient(learned, students, step).carried
            last = step == config.hypersteps - 1
            assert sorted(carried) == ([] if last else kept)
            students = replace(students, carried=carried)


def test_preparing_is_a_pure_function_of_what_it_is_given():
    config = replace(RECIPE, hypersteps=2, optimizer="adam", augmentation="crop_rotate")
    method, learned, _, _ = make(config, students=2)
    before = method.prepare(learned, method.fresh(0), 0)
    first, again = (method.prepare(learned, before, 1) for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, before.weights)


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_warm_start_begins_at_the_solution_before(warm_start):
    config = replace(RECIPE, solver="cg", damping=3.0, terms=2, hypersteps=3, warm_start=warm_start, inner_steps=0)
    method, learned, _, primitive = make(config, students=2)
    students, residuals = method.fresh(0), []
    method._real = lambda step, indices: real(0, indices)  # the same system at every hyperstep
    for step in range(3):
        students = method.prepare(learned, students, step)
        found = method.gradient(learned, students, step)
        students = replace(students, carried=found.carried)
        residuals.append(float(found.values["implicit/residual"]))
        if warm_start and step < 2:
            apply = curvature(config, primitive, students.weights, learned["images"][0].flatten(0, 1), HARD)
            b = primitive.value_and_gradient(
                students.weights, {}, *(tensor.unsqueeze(1) for tensor in real(0, students.indices))
            ).gradient[:, 0]
            true = relative_residual(apply, students.carried["solution"], b)
            assert residuals[-1] == pytest.approx(float(true.mean()), rel=1e-8)
    if warm_start:
        assert residuals[2] < 0.8 * residuals[1] < 0.64 * residuals[0]
    else:
        assert residuals[2] == residuals[1] == residuals[0]


# strongly convex students, where the theorem holds


def minimum(config, layout, module, images, labels):
    """Where the training loss of one linear student is least, by Newton's method ``[P]``."""

    def loss(weights):
        logits = functional_call(module, layout.views(weights), (images,))
        return cross_entropy_sum(logits, labels) / len(labels) + config.inner_decay / 2 * weights @ weights

    weights = torch.zeros(layout.size, dtype=torch.float64)
    for _ in range(20):
        weights = weights - torch.linalg.solve(hessian(loss)(weights), torch.func.grad(loss)(weights))
    return weights


def at_the_minimum(config, images, labels):
    """The pure function at the exact minimum of the loss on images ``[n, D, H, W]``."""
    linear = Linear()
    primitive = Functional(linear.module, BATCHINGS["vmap"])
    weights = minimum(config, primitive.layout, linear.module, images, labels)[None]
    apply = curvature(config, primitive, weights, images, labels)
    primitives = Primitives(real=primitive, synthetic=primitive, training=primitive)
    batch = real(0, torch.zeros(1, dtype=torch.int64))
    return hypergradient(
        primitives,
        weights,
        (images, labels),
        batch,
        solver(config, apply),
        labels=labels.is_floating_point(),
    )


def soft():
    return nn.functional.one_hot(HARD).double() + 0.1 * normal(IMAGES, CLASSES, seed=3).abs()


def test_it_is_the_slope_of_the_whole_problem_by_finite_differences():
    images, labels = 0.5 * normal(IMAGES, *SHAPE, seed=1), soft()
    found = at_the_minimum(CONVEX, images, labels)
    assert found.solution.residual.max() <= 1e-12
    assert not found.solution.negative_curvature.any()
    step = 1e-5
    for seed in range(3):
        move, turn = normal(*images.shape, seed=10 + seed), normal(*labels.shape, seed=20 + seed)
        for along_images, along_labels in ((move, 0 * turn), (0 * move, turn), (move, turn)):
            ahead, behind = (
                at_the_minimum(CONVEX, images + sign * step * along_images, labels + sign * step * along_labels).loss
                for sign in (1, -1)
            )
            slope = (found.images[0] * along_images).sum() + (found.labels[0] * along_labels).sum()
            assert float((ahead - behind) / (2 * step)) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.parametrize("decay", [0.2, 1.0])
def test_solvers_agree_with_the_dense_solution(decay):
    images = 0.5 * normal(IMAGES, *SHAPE, seed=1)
    config = replace(CONVEX, inner_decay=decay)
    layout = Functional(Linear().module, BATCHINGS["vmap"]).layout
    weights = minimum(config, layout, Linear().module, images, HARD)
    batch = tuple(tensor[0] for tensor in real(0, torch.zeros(1, dtype=torch.int64)))
    _, expected = image_gradient(
        Linear().module, layout.views(weights), images, HARD, *batch, dense, weight_decay=decay
    )
    for recipe, tolerance in (
        (config, 1e-10),
        (replace(config, curvature="gauss_newton"), 1e-10),  # of a linear student it is the Hessian
        (replace(config, solver="neumann", alpha=0.2, terms=1500), 1e-10),
        (replace(config, solver="neumann", alpha=0.2, terms=1500, curvature="gauss_newton"), 1e-10),
    ):
        assert relative(at_the_minimum(recipe, images, HARD).images[0], expected) <= tolerance


def test_without_alpha_the_gradient_is_too_large_by_its_inverse():
    images = 0.5 * normal(IMAGES, *SHAPE, seed=1)
    config = replace(CONVEX, solver="neumann", alpha=0.2)
    scaled, plain = (at_the_minimum(replace(config, scaled=scaled), images, HARD) for scaled in (True, False))
    assert torch.allclose(plain.images, 5 * scaled.images, rtol=1e-12)


@pytest.mark.parametrize("steps", [100, 200, 400])
def test_it_is_what_unrolling_tends_to(steps):
    """Both are off by what the training has not converged, ``(1 − η λ)^T`` with ``λ`` the weight decay at least."""
    config = replace(CONVEX, inner_steps=steps)
    method, learned, _, primitive = make(config, students=2, ensemble=Linear(), scale=0.5)
    begun = method.fresh(0)
    found = method.gradient(learned, method.prepare(learned, begun, 0), 0)

    images = learned["images"][0].flatten(0, 1)
    pulled = torch.zeros(2, *images.shape, dtype=torch.float64)

    def pull(number, cotangent, labels):
        pulled.add_(cotangent)

    optimizer = SGD(decay=config.inner_decay)
    rates = torch.full((steps, 2), config.inner_learning_rate, dtype=torch.float64)
    batches = lambda number: (images, HARD)  # noqa: E731
    trajectory = unroll(primitive, begun.weights, {}, batches, Steps(optimizer=optimizer, rates=rates))
    outer = primitive.value_and_gradient(
        trajectory.weights, {}, *(tensor.unsqueeze(1) for tensor in real(0, begun.indices))
    )
    adjoint(primitive, trajectory, batches, outer.gradient[:, 0], pull)
    assert torch.allclose(found.loss, outer.loss[:, 0], rtol=1e-12)
    contraction = (1 - config.inner_learning_rate * config.inner_decay) ** steps
    error = relative(found.gradients["images"][0].flatten(0, 1), pulled.mean(0))
    assert error <= 10 * contraction + 1e-12
    if steps == 100:
        assert error >= 1e-6  # and not equal for another reason


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_the_method_gives_the_slope_of_its_own_outer_loss(penalty):
    """Finite differences through the students' training, which goes on until it has converged."""
    config = replace(CONVEX, inner_steps=400, learn_labels=True, image_penalty=penalty, optimizer="momentum")
    method, learned, _, _ = make(config, students=2, runs=2, ensemble=Linear(), scale=0.5)

    def outer(learned):
        return method.gradient(learned, method.prepare(learned, method.fresh(0), 0), 0)

    found, step = outer(learned), 1e-5
    for name in learned:
        along = normal(*learned[name].shape, seed=9)
        ahead, behind = (
            outer({**learned, name: learned[name] + sign * step * along}).loss.view(2, 2).mean(1).sum()
            for sign in (1, -1)
        )
        slope = (found.gradients[name] * along).sum()
        assert float((ahead - behind) / (2 * step)) == pytest.approx(float(slope), rel=1e-6)


# augmentation


def test_one_view_a_hyperstep_for_training_and_hessian_alike():
    config = replace(RECIPE, augmentation="color_crop_scale_rotate", hypersteps=2)
    method, learned, _, primitive = make(config, students=3, runs=2, chunk=4)
    seen = []
    for step in range(2):
        primitive.trained, primitive.differentiated = [], []
        students = method.prepare(learned, method.fresh(0), step)
        method.gradient(learned, students, step)
        # two chunks, one after the other in both
        half = len(primitive.differentiated) // 2
        for trained, differentiated in (
            (primitive.trained[: config.inner_steps], primitive.differentiated[:half]),
            (primitive.trained[config.inner_steps :], primitive.differentiated[half:]),
        ):
            assert len(trained) == config.inner_steps
            assert all(torch.equal(images, trained[0]) for images in [*trained, *differentiated])
        seen.append(primitive.trained[0])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0][0], seen[0][1])  # each student has its own


def test_the_training_has_converged_on_the_view_that_is_differentiated():
    """The gradient of the training loss vanishes there, and not on another draw."""
    config = replace(CONVEX, inner_steps=400, augmentation="crop_rotate")
    method, learned, _, primitive = make(config, students=2, ensemble=Linear(), scale=0.5)
    students = method.prepare(learned, method.fresh(0), 0)

    def slope(images):
        found = primitive.value_and_gradient(students.weights, {}, images, HARD[None])
        return float((found.gradient[:, 0] + config.inner_decay * students.weights).norm())

    assert slope(primitive.trained[-1]) <= 1e-12
    method.gradient(learned, students, 0)
    assert slope(primitive.differentiated[-1]) <= 1e-12
    method.prepare(learned, students, 1)
    assert slope(primitive.trained[-1]) >= 1e-3


def test_an_augmented_gradient_is_that_of_autograd_through_the_view():
    config = replace(RECIPE, augmentation="crop_scale_rotate")
    method, learned, ensemble, primitive = make(config, students=1)
    trained = method.prepare(learned, method.fresh(3), 3)
    found = method.gradient(learned, trained, 3)
    view = shown(dsa.Strategy.parse(config.augmentation), seed=5, step=3, students=trained.indices)
    images = learned["images"][0].flatten(0, 1).clone().requires_grad_()
    own = view(0, images[None])[0]
    batch = tuple(tensor[0] for tensor in real(3, trained.indices))
    _, inner = image_gradient(
        ensemble.module, named(primitive, trained.weights[0]), own.detach(), HARD, *batch, solved(config)
    )
    (expected,) = torch.autograd.grad(own, images, inner)
    assert relative(found.gradients["images"][0].flatten(0, 1), expected) <= 1e-8


# figures and faults


def test_what_is_logged_is_what_the_solver_found():
    config = replace(RECIPE, solver="cg", terms=6)
    method, learned, _, primitive = make(config, students=4, chunk=3)
    trained = method.prepare(learned, method.fresh(0), 0)
    found = method.gradient(learned, trained, 0)
    images = learned["images"][0].flatten(0, 1)
    primitives = Primitives(real=primitive, synthetic=primitive, training=primitive)
    apply = curvature(config, primitive, trained.weights, images, HARD)
    system = hypergradient(
        primitives, trained.weights, (images, HARD), real(0, trained.indices), solver(config, apply)
    ).solution
    assert system.residual.shape == system.negative_curvature.shape == (4,)
    expected = {
        "implicit/residual": system.residual,
        "implicit/residual_max": system.residual.max(),
        "implicit/negative_curvature": system.negative_curvature.double(),
        "implicit/steps": system.steps.double(),
    }
    assert system.negative_curvature.any()  # as real students have
    for name, values in expected.items():
        assert float(found.values[name]) == pytest.approx(float(values.mean()), rel=1e-10)


def test_the_eigenvalue_is_that_of_largest_magnitude_of_all_students():
    config = replace(RECIPE, eigenvalue_every=2, eigenvalue_steps=400, hypersteps=9, inner_decay=0.3)
    method, learned, _, primitive = make(config, students=3, ensemble=Linear(), chunk=2)
    students, images = method.fresh(0), learned["images"][0].flatten(0, 1)
    for step in range(4):
        students = method.prepare(learned, students, step)
        found = method.gradient(learned, students, step)
        assert ("implicit/eigenvalue_max" in found.values) == (step % 2 == 0)
        if step % 2:
            continue
        apply, size = curvature(config, primitive, students.weights, images, HARD), primitive.layout.size
        columns = [apply(row.expand(3, -1)) for row in torch.eye(size, dtype=torch.float64)]
        largest = torch.linalg.eigvalsh(torch.stack(columns, dim=1))[:, -1]
        for name, expected in (("max", largest.max()), ("min", largest.min())):
            assert float(found.values[f"implicit/eigenvalue_{name}"]) == pytest.approx(float(expected), rel=1e-6)
        students = replace(students, carried=found.carried)
    only_first = make(replace(config, eigenvalue_every=0), students=1, ensemble=Linear())[0]
    for step, there in ((0, True), (1, False), (9, False)):
        found = only_first.gradient(learned, only_first.prepare(learned, only_first.fresh(0), step), step)
        assert ("implicit/eigenvalue_max" in found.values) == there


def test_an_alpha_that_diverges_is_warned_of_in_one_sentence():
    method = make(replace(RECIPE, alpha=0.5), students=1)[0]
    assert method.warning({"outer/loss": 1.0}) is None

    def values(most, least):
        return {"implicit/eigenvalue_max": most, "implicit/eigenvalue_min": least}

    assert method.warning(values(3.9, 2.0)) is None
    for least in (2.0, -9.0):  # a negative one of another student does not hide it
        assert method.warning(values(8.0, least)).startswith(
            "expected a Neumann alpha below 2 / largest eigenvalue = 0.25, got 0.5, with which the series diverges: "
        )
    assert "grows by 5 per term" in method.warning(values(3.9, -8.0))
    assert make(replace(RECIPE, solver="cg"), students=1)[0].warning(values(1e9, 0.0)) is None


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_poisoned_student_is_masked_and_leaves_the_others_their_bits(batching, chunk):
    config = replace(RECIPE, hypersteps=2, learn_labels=True)
    method, learned, ensemble, primitive = make(config, students=3, runs=2, chunk=chunk, batching=batching)
    drawn = method.fresh(0)
    clean = method.gradient(learned, method.prepare(learned, drawn, 0), 0)
    primitive.layout.views(drawn.weights)["body.1.convolution.weight"][4, 0, 0, 0, 0] = torch.nan
    trained = method.prepare(learned, drawn, 0)
    found = method.gradient(learned, trained, 0)
    assert found.finite.tolist() == [True, True, True, True, False, True]
    assert torch.equal(found.loss[found.finite], clean.loss[found.finite])
    assert all(value.isfinite() for value in found.values.values())
    images, labels = real(0, drawn.indices)
    for name, gradient in found.gradients.items():
        assert torch.equal(gradient[0], clean.gradients[name][0])
        # the other run's mean is that of its other two
        each = [
            textbook(config, learned, ensemble, named(primitive, trained.weights[k]), 1, (images[k], labels[k]))[1]
            for k in (3, 5)
        ]
        assert relative(gradient[1], torch.stack([own[name] for own in each]).mean(0)) <= 1e-8
    assert method.locate(learned, drawn, 0, 4) == "weights body.1.convolution.weight"
    assert method.locate(learned, drawn, 0, 3) == ""


@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_students_that_diverge_in_training_are_named_with_the_step(augmentation):
    config = replace(RECIPE, inner_learning_rate=1e200, augmentation=augmentation)
    method, learned, _, _ = make(config, students=2, norm="none")
    drawn = method.fresh(0)
    found = method.gradient(learned, method.prepare(learned, drawn, 0), 0)
    assert not found.finite.any()
    assert not found.gradients["images"].any()
    assert "inner step 1" in method.locate(learned, drawn, 0, 1)


@pytest.mark.parametrize("recipe", [{"alpha": 1e300}, {"solver": "cg", "terms": 3}])
def test_a_student_whose_system_overflows_is_masked(recipe):
    method, learned, _, _ = make(replace(RECIPE, **recipe), students=3)
    if "solver" in recipe:
        plain = method._real

        def huge(step, indices):
            images, labels = plain(step, indices)
            images[1] = torch.nan  # the loss is not finite either, but the solver starts from a finite zero
            return images, labels

        method._real = huge
    trained = method.prepare(learned, method.fresh(0), 0)
    found = method.gradient(learned, trained, 0)
    assert found.finite.tolist() == ([True, False, True] if "solver" in recipe else [False] * 3)
    assert found.gradients["images"].isfinite().all()


def test_batch_norm_students_are_refused():
    with pytest.raises(ValueError, match=r"^expected students without running statistics for implicit .* got batch "):
        make(RECIPE, students=1, norm="batch")
    with pytest.raises(ValueError, match=r"^expected .* for implicit differentiation, got mean-only batch norm: use "):
        make(RECIPE, students=1, architecture="gtn")


def test_settings_that_mean_nothing_together_are_refused():
    for wrong, message in (
        ({"decay_every": 5}, "expected decay_every only for the outer_optimizer adam, got 5 with sgd"),
        ({"scaled": False, "solver": "cg"}, "expected scaled to be false only for the solver neumann, got cg"),
        ({"warm_start": True, "solver": "cg"}, "expected a warm_start only for"),
        ({"start": "zeros"}, "start"),
        ({"real_augmentation": "blur"}, "correct 'blur'"),
    ):
        with pytest.raises(ValueError, match=message):
            ImplicitConfig(**wrong)
    assert ImplicitConfig(decay_every=5, outer_optimizer="adam", real_augmentation="pad_crop_flip").decay_every == 5


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"solver": "cg", "warm_start": True, "optimizer": "adam", "augmentation": "crop"},
        {"curvature": "gauss_newton", "learn_labels": True, "image_penalty": 1.0},
    ],
)
def test_a_hyperstep_never_waits_for_the_device(recipe):
    """On the meta device any look at a value raises."""
    config = replace(RECIPE, hypersteps=3, eigenvalue_every=1, **recipe)
    meta = torch.device("meta")
    ensemble = Ensemble(StudentConfig(width=4, depth=2), SHAPE, CLASSES, seed=5, dtype=torch.float64)
    primitive = Functional(ensemble.module, BATCHINGS["vmap"])

    def unseen(step, students):
        images = torch.empty(len(students), REAL, *SHAPE, dtype=torch.float64, device=meta)
        return images, torch.empty(len(students), REAL, dtype=torch.int64, device=meta)

    method = Implicit(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        unseen,
        torch.empty(CLASSES, IPC, dtype=torch.int64, device=meta),
        runs=2,
        students=3,
        chunk=4,
        seed=5,
    )
    learned = {"images": torch.empty(2, CLASSES, IPC, *SHAPE, dtype=torch.float64, device=meta)}
    learned |= initial_labels(config, 2, CLASSES, IPC, dtype=torch.float64, device=meta)
    students = method.fresh(0)
    for step in range(2):
        students = method.prepare(learned, students, step)
        found = method.gradient(learned, students, step)
        assert all(gradient.is_meta for gradient in found.gradients.values())
        assert all(value.is_meta and not value.shape for value in found.values.values())
        assert found.finite.shape == (6,)
        students = method.advance(learned, replace(students, carried=found.carried), step)
    assert method.advance(learned, students, 2) is None
