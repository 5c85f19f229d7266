"""Unrolled training against autograd through the whole training, in float64."""

from dataclasses import replace

import pytest
import torch

from bench.naive.unrolled import Adam, Sgd, Training, hypergradient, inverse_softplus
from fastdistill.config import StudentConfig, UnrolledConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.unrolled import Unrolled, batch_order, initial_settings, learning_rates
from fastdistill.students.ensemble import Ensemble

CLASSES, REAL, SHAPE = 3, 7, (1, 8, 8)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}
NAIVE = {"sgd": Sgd, "momentum": Sgd, "adam": Adam}
RECIPE = UnrolledConfig(batches=2, epochs=3, real_batch=REAL, inner_learning_rate=0.1)


def recipe(optimizer="sgd", batches=2, epochs=3, **changes):
    kept = {"learn_momenta": optimizer != "sgd", "inner_momentum": 0.7}
    # Adam's steps are as long as its rate whatever the gradient
    rate = 0.01 if optimizer == "adam" else 0.1
    given = {"optimizer": optimizer, "batches": batches, "epochs": epochs, "inner_learning_rate": rate}
    return replace(RECIPE, **{**given, **kept, **changes})


def normal(*shape, seed, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def real(step, students):
    images = torch.stack([normal(REAL, *SHAPE, seed=1000 * step + int(k)) for k in students]).to(students.device)
    labels = (torch.arange(REAL, device=students.device) + students[:, None]) % CLASSES
    return images, labels


def make(config, *, students, runs=1, chunk=100, batching="vmap", device="cpu", ipc=None, **student):
    ipc = ipc or 2 * config.batches
    settings = StudentConfig(width=4, depth=2, **student)
    ensemble = Ensemble(settings, SHAPE, CLASSES, seed=5, dtype=torch.float64)
    primitive = Functional(ensemble.module, BATCHINGS[batching])
    labels = torch.arange(CLASSES, device=device)[:, None].expand(-1, ipc)
    method = Unrolled(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        real,
        labels,
        runs=runs,
        students=students,
        chunk=chunk,
    )
    learned = {"images": normal(runs, CLASSES, ipc, *SHAPE, seed=7, device=device)}
    learned |= initial_settings(config, runs, dtype=torch.float64, device=learned["images"].device)
    for seed, name in enumerate(("rates", "momenta")):
        if name in learned:  # every step and run its own
            learned[name] = learned[name] + 0.2 * normal(*learned[name].shape, seed=seed, device=device)
    return method, learned, ensemble, primitive.layout


def textbook(config, learned, ensemble, layout, drawn, student, run, step):
    """Loss of one student and its derivatives, by autograd through all steps."""
    ipc = learned["images"].shape[2]
    momentum = torch.zeros(config.inner_steps, dtype=torch.float64)
    if config.optimizer != "sgd":
        momentum = learned["momenta"][run].sigmoid() if config.learn_momenta else momentum + config.inner_momentum
    inner = NAIVE[config.optimizer](momentum=momentum, weight_decay=config.inner_decay)
    if config.optimizer == "sgd":
        inner = Sgd(weight_decay=config.inner_decay)
    if config.learn_rates:
        rho = learned["rates"][run]
    else:
        rho = torch.full((config.inner_steps,), inverse_softplus(config.inner_learning_rate), dtype=torch.float64)
    images, labels = real(step, drawn.indices[student : student + 1])
    loss, found = hypergradient(
        Training(net=ensemble.module, batches=list(batch_order(config, CLASSES, ipc)), inner=inner),
        {name: view.clone() for name, view in layout.views(drawn.weights[student]).items()},
        learned["images"][run].flatten(0, 1),
        torch.arange(CLASSES).repeat_interleave(ipc),
        rho,
        images[0],
        labels[0],
    )
    expected = {"images": found["images"].view_as(learned["images"][run])}
    if config.learn_rates:
        expected["rates"] = found["rho"]
    if config.learn_momenta:
        expected["momenta"] = found["momentum"] * momentum * (1 - momentum)
    return loss, expected


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def compare(config, *, students, runs, chunk=100, batching="vmap", step=2, **student):
    method, learned, ensemble, layout = make(
        config, students=students, runs=runs, chunk=chunk, batching=batching, **student
    )
    drawn = method.fresh(step)
    found = method.gradient(learned, drawn, step)
    assert found.finite.all()
    assert found.gradients.keys() == learned.keys()
    for run in range(runs):
        each = [
            textbook(config, learned, ensemble, layout, drawn, run * students + k, run, step) for k in range(students)
        ]
        losses = torch.stack([loss for loss, _ in each])
        assert torch.allclose(found.loss[run * students : (run + 1) * students], losses, rtol=1e-10)
        for name, gradient in found.gradients.items():
            expected = torch.stack([expected[name] for _, expected in each]).mean(0)
            if config.inner_steps == 1 and name == "momenta":
                # no earlier step that it could keep anything of, so that only rounding is left of it
                assert max(gradient[run].norm(), expected.norm()) <= 1e-14 * found.gradients["rates"][run].norm()
            else:
                assert relative(gradient[run], expected) <= 1e-8, (name, run)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("batches", "epochs"), [(1, 1), (3, 1), (1, 7), (2, 3)])
def test_hypergradients_are_those_of_autograd(optimizer, batches, epochs):
    compare(recipe(optimizer, batches, epochs), students=3, runs=2, chunk=2)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize(("students", "runs"), [(1, 1), (3, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("chunk", [1, 100])
def test_students_runs_and_chunks(students, runs, chunk, batching):
    compare(recipe(), students=students, runs=runs, chunk=chunk, batching=batching)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_decay_of_the_students_and_steps_that_are_run_again(optimizer):
    compare(recipe(optimizer, inner_decay=0.05, keep=4), students=2, runs=1)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_rates_and_momenta_that_are_not_learned(optimizer):
    config = recipe(optimizer, learn_rates=False, learn_momenta=False)
    compare(config, students=2, runs=2)
    _, learned, _, _ = make(config, students=2, runs=2)
    assert learned.keys() == {"images"}


def test_settings_begin_at_the_configured_values():
    config = recipe("momentum")
    learned = initial_settings(config, 2, dtype=torch.float64, device=torch.device("cpu"))
    assert torch.allclose(learning_rates(config, learned), torch.full((2, 6), 0.1, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(learned["momenta"].sigmoid(), torch.full((2, 6), 0.7, dtype=torch.float64), rtol=1e-12)


def test_every_step_has_all_classes_alike_and_every_pass_all_images():
    order = batch_order(recipe(batches=3, epochs=2), CLASSES, 6)
    assert order.shape == (6, 6)
    assert torch.equal(order[:3], order[3:])
    assert order[:3].flatten().sort().values.tolist() == list(range(18))
    for step in order:
        assert (step // 6).bincount(minlength=CLASSES).tolist() == [2] * CLASSES


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("chunk", [2, 100])
def test_a_poisoned_student_is_masked_and_leaves_the_others_their_bits(batching, chunk):
    config = recipe()
    method, learned, ensemble, layout = make(config, students=3, runs=2, chunk=chunk, batching=batching)
    drawn = method.fresh(0)
    clean = method.gradient(learned, drawn, 0)
    layout.views(drawn.weights)["body.1.convolution.weight"][4, 0, 0, 0, 0] = torch.nan
    found = method.gradient(learned, drawn, 0)
    assert found.finite.tolist() == [True, True, True, True, False, True]
    assert torch.equal(found.loss[found.finite], clean.loss[found.finite])
    for name, gradient in found.gradients.items():
        assert torch.equal(gradient[0], clean.gradients[name][0])
        # the other run's mean is that of its other two
        each = [textbook(config, learned, ensemble, layout, drawn, k, 1, 0)[1][name] for k in (3, 5)]
        assert relative(gradient[1], torch.stack(each).mean(0)) <= 1e-8
    assert method.locate(learned, drawn, 0, 4) == "weights body.1.convolution.weight"
    assert method.locate(learned, drawn, 0, 3) == ""


def test_a_run_whose_students_diverge_does_not_move_and_says_at_which_step():
    method, learned, _, _ = make(recipe(), students=2, runs=2)
    learned["rates"][1, 2] = 1e300
    drawn = method.fresh(0)
    found = method.gradient(learned, drawn, 0)
    assert found.finite.tolist() == [True, True, False, False]
    assert not any(gradient[1].any() for gradient in found.gradients.values())
    assert all(gradient[0].any() for gradient in found.gradients.values())
    assert "inner step 3" in method.locate(learned, drawn, 0, 2)


def test_batch_norm_students_are_refused():
    with pytest.raises(ValueError, match=r"^expected students without running statistics .* got batch norm: use "):
        make(recipe(), students=1, norm="batch")


def test_fixed_students_are_the_same_at_every_step():
    for kind, same in (("fixed", True), ("fresh", False)):
        method, _, _, _ = make(recipe(), students=3, initialization=kind)
        assert torch.equal(method.fresh(0).weights, method.fresh(9).weights) == same
        assert not torch.equal(method.fresh(0).weights[0], method.fresh(0).weights[1])


def test_a_gradient_never_waits_for_the_device():
    """On the meta device any look at a value raises."""
    config, meta = recipe(), torch.device("meta")
    ensemble = Ensemble(StudentConfig(width=4, depth=2), SHAPE, CLASSES, seed=5, dtype=torch.float64)
    primitive = Functional(ensemble.module, BATCHINGS["vmap"])

    def unseen(step, students):
        count = len(students)
        images = torch.empty(count, REAL, *SHAPE, dtype=torch.float64, device=meta)
        return images, torch.empty(count, REAL, dtype=torch.int64, device=meta)

    method = Unrolled(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        unseen,
        torch.arange(CLASSES, device=meta)[:, None].expand(-1, 2),
        runs=2,
        students=3,
        chunk=4,
    )
    learned = {"images": torch.empty(2, CLASSES, 2, *SHAPE, dtype=torch.float64, device=meta)}
    learned |= initial_settings(config, 2, dtype=torch.float64, device=meta)
    found = method.gradient(learned, method.fresh(0), 0)
    assert all(gradient.is_meta for gradient in found.gradients.values())
    assert found.finite.shape == (6,)
