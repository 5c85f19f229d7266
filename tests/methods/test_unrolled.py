"""Unrolled training against autograd through the whole training, in float64."""

from dataclasses import replace

import pytest
import torch

from bench.naive.augmentation import diff_augment
from bench.naive.unrolled import Adam, Sgd, Training, hypergradient, inverse_softplus
from fastdistill.augmentation import dsa
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose
from fastdistill.method_configs import UnrolledConfig
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.unrolled import (
    Unrolled,
    batch_order,
    drawn_order,
    initial_settings,
    learning_rates,
    window,
)
from fastdistill.students.ensemble import Ensemble
from tests import gtn

CLASSES, REAL, SHAPE = 3, 7, (1, 8, 8)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}
NAIVE = {"sgd": Sgd, "momentum": Sgd, "adam": Adam}
RECIPE = UnrolledConfig(batches=2, epochs=3, real_batch=REAL, inner_learning_rate=0.1)


def recipe(optimizer="sgd", batches=2, epochs=3, **changes):
    kept = {"learn_momenta": optimizer != "sgd" and not changes.get("drawn"), "inner_momentum": 0.7}
    kept["learn_rates"] = not changes.get("drawn")
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
        seed=5,
    )
    learned = {"images": normal(runs, CLASSES, ipc, *SHAPE, seed=7, device=device)}
    learned |= initial_settings(config, runs, CLASSES, ipc, dtype=torch.float64, device=learned["images"].device)
    for seed, name in enumerate(("rates", "momenta", "labels")):
        if name in learned:  # every step, image and run its own
            learned[name] = learned[name] + 0.2 * normal(*learned[name].shape, seed=seed, device=device)
    return method, learned, ensemble, primitive.layout


def shown_images(config, students, step):
    """What one student makes of its images in an inner step, by the textbook, image by image."""
    strategy = dsa.Strategy.parse(config.augmentation, align_corners=config.align_corners)
    if not strategy.operations:
        return None

    def augment(images, number):
        draw = dsa.draw_per_image(
            strategy,
            seed=5,
            step=step * config.inner_steps + number,
            students=students,
            images=len(images),
            purpose=Purpose.TRAINING_AUGMENTATION,
        )
        name, numbers = strategy.operations[int(draw.operation[0])], draw.parameters[0].double()
        parts = [
            diff_augment(images[i : i + 1], name, numbers[i], align_corners=config.align_corners)
            for i in range(len(images))
        ]
        return torch.cat(parts)

    return augment


def outer_weights(config, begin, end):
    """How much the loss after every step counts: further ones inside the window, and the last."""
    every = config.intermediate_every or end
    points = [end - 1, *range(begin + every - 1, end - 1, every)]
    return [float(step in points) / len(points) for step in range(end)]


def textbook(config, learned, ensemble, layout, drawn, student, run, step):
    """Loss of one student and its derivatives, by autograd through all steps that are differentiated."""
    ipc, own = learned["images"].shape[2], drawn.indices[student : student + 1]
    begin, end = window(config, step, seed=5)
    order = batch_order(config, CLASSES, ipc)
    if config.drawn:
        order = drawn_order(config, CLASSES, ipc, seed=5, step=step, students=own)[0]
    training = {"batches": list(order[:end]), "augment": shown_images(config, own, step), "skip": begin}
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
    images, labels = real(step, own)
    loss, found = hypergradient(
        Training(net=ensemble.module, inner=inner, **training),
        {name: view.clone() for name, view in layout.views(drawn.weights[student]).items()},
        learned["images"][run].flatten(0, 1),
        learned["labels"][run].flatten(0, 1) if config.learn_labels else torch.arange(CLASSES).repeat_interleave(ipc),
        rho,
        images[0],
        labels[0],
        outer_weights(config, begin, end),
    )
    expected = {"images": found["images"].view_as(learned["images"][run])}
    if config.learn_rates:
        expected["rates"] = found["rho"]
    if config.learn_labels:
        expected["labels"] = found["labels"].view_as(learned["labels"][run])
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


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("steps", "length"), [(1, 1), (3, 1), (3, 2), (3, 3), (7, 1), (7, 4), (7, 7)])
def test_a_window_is_all_that_is_differentiated(optimizer, steps, length):
    decay = {"inner_decay": 0.05} if optimizer == "momentum" else {}
    compare(recipe(optimizer, 1, steps, window=length, **decay), students=1, runs=1)


@pytest.mark.parametrize("place", ["last", "moving"])
def test_other_places_of_the_window(place):
    config = recipe("momentum", 2, 3, window=3, window_start=place, steps=4, window_least=1, keep=2)
    compare(config, students=2, runs=1)


def test_rates_outside_the_window_have_no_derivative():
    config = recipe("sgd", 1, 7, window=2, window_least=1)
    method, learned, _, _ = make(config, students=2, runs=2)
    for step in range(6):
        begin, end = window(config, step, seed=5)
        rates = method.gradient(learned, method.fresh(step), step).gradients["rates"]
        assert rates[:, begin:end].all() and not rates[:, :begin].any() and not rates[:, end:].any()


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("sgd", {"drawn_classes": 2}),
        ("sgd", {"augmentation": "color_crop_cutout_flip_scale_rotate"}),
        ("momentum", {"inner_decay": 0.05, "learn_labels": True, "intermediate_every": 2}),
        ("adam", {"drawn_classes": 2, "learn_labels": True, "augmentation": "flip_rotate", "intermediate_every": 1}),
    ],
)
def test_drawn_batches(optimizer, changes):
    compare(recipe(optimizer, 2, 3, drawn=True, **changes), students=2, runs=1, ipc=4)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_everything_at_once(optimizer, batching):
    """Drawn batches in a truncated window with learned labels, augmentation, further losses and steps run again."""
    config = recipe(
        optimizer,
        2,
        4,
        drawn=True,
        drawn_classes=2,
        window=5,
        window_least=1,
        learn_labels=True,
        augmentation="color_crop_flip_scale_rotate",
        align_corners=False,
        intermediate_every=2,
        inner_decay=0.05,
        keep=2,
    )
    compare(config, students=3, runs=2, chunk=4, batching=batching, ipc=4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learned_rates_and_labels_under_augmentation(optimizer):
    """Batches that all students share, each seen by its own draw; with and without an augmentation."""
    for augmentation in ("none", "crop_rotate"):
        config = recipe(optimizer, 2, 2, learn_labels=True, augmentation=augmentation, intermediate_every=3)
        compare(config, students=2, runs=2, chunk=3)


def test_the_whole_outer_loss_is_the_central_difference():
    config = recipe(
        "adam",
        1,
        5,
        drawn=True,
        drawn_classes=2,
        learn_labels=True,
        augmentation="color_crop_cutout_flip_scale_rotate",
        intermediate_every=2,
        keep=2,
    )
    method, learned, _, _ = make(config, students=2, runs=2, chunk=3, ipc=2, activation="softplus")
    learned["labels"] = learned["labels"].abs()
    students, width = method.fresh(1), 1e-6
    found = method.gradient(learned, students, 1).gradients
    way = {name: normal(*value.shape, seed=60 + seed) for seed, (name, value) in enumerate(learned.items())}

    def loss(step):
        moved = {name: value + step * way[name] for name, value in learned.items()}
        return method.gradient(moved, students, 1).loss.view(2, 2).mean(1)  # of every run

    difference = (loss(width) - loss(-width)) / (2 * width)
    for run in range(2):
        expected = float(sum((found[name][run] * way[name][run]).sum() for name in found))
        assert abs(expected) > 1e-3
        assert float(difference[run]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_narrow_storage_costs_no_more_than_it_says(optimizer):
    rate = 0.001 if optimizer == "adam" else 0.01
    config = recipe(optimizer, 1, 12, inner_learning_rate=rate, window=10, window_start="last")
    method, learned, _, _ = make(config, students=1, runs=2, activation="softplus")
    narrow, _, _, _ = make(replace(config, storage="bfloat16"), students=1, runs=2, activation="softplus")
    exact, found = (each.gradient(learned, each.fresh(0), 0) for each in (method, narrow))
    assert torch.equal(found.loss, exact.loss)  # the training itself is not touched
    for name, gradient in exact.gradients.items():
        assert 0 < relative(found.gradients[name], gradient) <= 1e-3, name


def test_a_window_starts_at_any_place_alike_and_for_all_students():
    config = recipe(batches=1, epochs=12, window=4, window_least=2)
    places = torch.tensor([window(config, step, seed=9) for step in range(2100)])
    assert (places[:, 1] - places[:, 0]).unique().tolist() == [4]
    assert places[:, 0].unique().tolist() == list(range(2, 9))
    counts = places[:, 0].bincount()[2:]
    assert counts.min() > 220 and counts.max() < 380  # 300 expected, 16 the standard deviation
    follows = places[1:, 0][places[:-1, 0] == 2].bincount(minlength=9)[2:]
    assert follows.min() > 15  # of about 43: one place tells nothing of the next
    assert [window(config, step, seed=9) for step in range(5)] == [tuple(place) for place in places[:5].tolist()]
    assert [window(config, step, seed=8) for step in range(20)] != [tuple(place) for place in places[:20].tolist()]


def test_a_random_window_stays_for_as_many_steps_as_asked_for():
    config = recipe(batches=1, epochs=50, window=4, window_every=10)
    places = [window(config, step, seed=1) for step in range(60)]
    blocks = [set(places[start : start + 10]) for start in range(0, 60, 10)]
    assert all(len(block) == 1 for block in blocks)
    assert len(set.union(*blocks)) > 3


def test_a_moving_window_goes_from_its_least_place_to_the_last():
    config = recipe(batches=1, epochs=10, window=3, window_start="moving", window_least=2, steps=101)
    places = [window(config, step, seed=0)[0] for step in range(101)]
    assert (places[0], places[50], places[100]) == (2, 4, 7)  # 4.5 is rounded to even
    assert places == sorted(places) and set(places) == set(range(2, 8))
    alone = recipe(batches=1, epochs=10, window=3, window_start="moving", steps=1)
    assert window(alone, 0, seed=0) == (0, 3)


def test_a_window_at_the_last_place_and_one_of_all_steps():
    last = recipe(batches=1, epochs=10, window=3, window_start="last")
    assert {window(last, step, seed=step) for step in range(20)} == {(7, 10)}
    for place in ("random", "last", "moving"):
        assert window(recipe(batches=2, epochs=3, window_start=place), 5, seed=1) == (0, 6)


def trained_alone(config, learned, students, step, part):
    """The losses of a run of nothing but some of the steps, and its gradients as those of all steps."""
    count = len(range(config.inner_steps)[part])
    short, _, _, _ = make(replace(config, batches=count, grow_every=0, grow_backwards=False), students=2, runs=2)
    members = slice(2 * part.start, 2 * part.stop)  # two images a class and step
    places = dict.fromkeys(learned, (slice(None), part)) | {"images": (slice(None), slice(None), members)}
    found = short.gradient({name: value[places[name]] for name, value in learned.items()}, students, step)
    gradients = {name: torch.zeros_like(value) for name, value in learned.items()}
    for name, gradient in found.gradients.items():
        gradients[name][places[name]] = gradient
    return found.loss, gradients


# adam counts its steps, so it is refused backwards
@pytest.mark.parametrize(
    ("optimizer", "backwards"),
    [("sgd", False), ("momentum", False), ("adam", False), ("sgd", True), ("momentum", True)],
)
@pytest.mark.parametrize(("step", "count"), [(0, 4), (1, 4), (2, 5), (4, 6)])
def test_steps_that_grow_are_an_ordinary_run_of_so_many(optimizer, backwards, step, count):
    grown = {"grow_every": 2, "grow_backwards": backwards, "steps": 5}
    config = recipe(optimizer, 6, 1, **grown, intermediate_every=2)
    method, learned, _, _ = make(config, students=2, runs=2)
    students = method.fresh(step)
    found = method.gradient(learned, students, step)
    part = slice(6 - count, 6) if backwards else slice(0, count)
    loss, gradients = trained_alone(config, learned, students, step, part)
    assert torch.equal(found.loss, loss)
    assert all(torch.equal(found.gradients[name], gradients[name]) for name in gradients)
    if not backwards:
        compare(config, students=2, runs=2, step=step)


def test_where_a_student_stopped_is_said_of_the_steps_that_it_trained():
    config = recipe("momentum", 6, 1, grow_every=2, grow_backwards=True, steps=5)
    method, learned, _, _ = make(config, students=1)
    students = method.fresh(0)
    learned["rates"][0, :2] = 1e300  # of steps that are not trained yet
    assert method.locate(learned, students, 0, 0) == ""
    learned["rates"][0, 3] = 1e300
    assert "inner step 4" in method.locate(learned, students, 0, 0)


def test_drawn_images_are_distinct_and_of_as_many_classes_as_asked_for():
    config = recipe(batches=2, epochs=3, drawn=True, drawn_classes=2)
    order = drawn_order(config, CLASSES, 4, seed=3, step=7, students=torch.arange(50))
    assert order.shape == (50, 6, 4)
    assert ((order >= 0) & (order < 12)).all()
    for members in order.flatten(0, 1):
        assert len(members.unique()) == 4
        assert sorted((members // 4).bincount(minlength=CLASSES).tolist()) == [0, 2, 2]
    # every class, every image and every pair of a class is drawn alike
    assert (order // 4).flatten().bincount().min() > 350  # of 400
    assert order.flatten().bincount().min() > 70  # of 100
    whole = drawn_order(replace(config, drawn_classes=0), CLASSES, 4, seed=3, step=7, students=torch.arange(2))
    assert all((members // 4).bincount().tolist() == [2, 2, 2] for members in whole.flatten(0, 1))


def test_a_student_draws_its_own_images_whoever_is_beside_it():
    config = recipe(batches=2, epochs=3, drawn=True)
    drawn = {"seed": 3, "step": 7}
    order = drawn_order(config, CLASSES, 4, students=torch.arange(5), **drawn)
    assert torch.equal(drawn_order(config, CLASSES, 4, students=torch.tensor([3]), **drawn), order[3:4])
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order[0, 0], order[0, 1])
    others = [
        drawn_order(config, CLASSES, 4, students=torch.arange(5), **changed)
        for changed in ({"seed": 4, "step": 7}, {"seed": 3, "step": 8})
    ]
    assert not any(torch.equal(order, other) for other in others)


def test_more_drawn_classes_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"^expected drawn_classes of at most the 3 classes, got 4: lower "):
        make(recipe(drawn=True, drawn_classes=4), students=1)
    make(recipe(drawn=True, drawn_classes=3), students=1)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_rates_and_momenta_that_are_not_learned(optimizer):
    config = recipe(optimizer, learn_rates=False, learn_momenta=False)
    compare(config, students=2, runs=2)
    _, learned, _, _ = make(config, students=2, runs=2)
    assert learned.keys() == {"images"}


def test_settings_begin_at_the_configured_values():
    config = recipe("momentum")
    learned = initial_settings(config, 2, CLASSES, 4, dtype=torch.float64, device=torch.device("cpu"))
    assert torch.allclose(learning_rates(config, learned), torch.full((2, 6), 0.1, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(learned["momenta"].sigmoid(), torch.full((2, 6), 0.7, dtype=torch.float64), rtol=1e-12)
    for rate in (1e-9, 3.0, 1e30):
        settings = initial_settings(recipe(inner_learning_rate=rate), 1, 3, 4, dtype=torch.float64, device="cpu")
        assert float(learning_rates(config, settings)[0, 0]) == pytest.approx(rate, rel=1e-12)


def test_every_step_has_all_classes_alike_and_every_pass_all_images():
    order = batch_order(recipe(batches=3, epochs=2), CLASSES, 6)
    assert order.shape == (6, 6)
    assert torch.equal(order[:3], order[3:])
    assert order[:3].flatten().sort().values.tolist() == list(range(18))
    for step in order:
        assert (step // 6).bincount(minlength=CLASSES).tolist() == [2] * CLASSES


@pytest.fixture
def narrow(monkeypatch):
    gtn.narrow(monkeypatch)


def through_means(config, learned, layout, drawn, student, run, step, *, constant=False):
    """Loss of one GTN student and its derivatives, by autograd through the whole training written out."""
    ipc = learned["images"].shape[2]
    leaves = {name: value[run].clone().requires_grad_() for name, value in learned.items()}
    flat, hard = leaves["images"].flatten(0, 1), torch.arange(CLASSES).repeat_interleave(ipc)
    labels = leaves["labels"].flatten(0, 1) if config.learn_labels else hard
    zeros = torch.zeros(config.inner_steps, dtype=torch.float64)
    images, answers = real(step, drawn.indices[student : student + 1])
    loss = gtn.unrolled_loss(
        {name: view.clone() for name, view in layout.views(drawn.weights[student]).items()},
        [(flat[members], labels[members]) for members in batch_order(config, CLASSES, ipc)],
        torch.nn.functional.softplus(leaves["rates"]) if config.learn_rates else zeros + config.inner_learning_rate,
        leaves["momenta"].sigmoid() if config.learn_momenta else zeros,
        (images[0], answers[0]),
        config.intermediate_every,
        constant=constant,
    )
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "steps", "changes"),
    [
        ("sgd", (1, 1), {}),
        ("sgd", (3, 1), {"learn_labels": True}),
        ("momentum", (1, 3), {}),
        ("momentum", (3, 1), {"learn_labels": True, "intermediate_every": 1}),
        ("sgd", (2, 2), {"intermediate_every": 2, "keep": 3}),
        ("sgd", (1, 3), {"learn_rates": False}),
    ],
)
@pytest.mark.parametrize(("batching", "chunk"), [("vmap", 100), ("loop", 3)])
def test_students_with_means_are_differentiated_through_them(optimizer, steps, changes, batching, chunk, narrow):
    config = recipe(optimizer, *steps, **changes)
    method, learned, _, layout = make(config, students=2, runs=2, chunk=chunk, batching=batching, architecture="gtn")
    drawn = method.fresh(2)
    found = method.gradient(learned, drawn, 2)
    assert found.gradients.keys() == learned.keys()
    for run in range(2):
        each = [through_means(config, learned, layout, drawn, 2 * run + k, run, 2) for k in range(2)]
        for k, (loss, _) in enumerate(each):
            assert float(found.loss[2 * run + k]) == pytest.approx(float(loss), rel=1e-10)
        for name, gradient in found.gradients.items():
            expected = torch.stack([slopes[name] for _, slopes in each]).mean(0)
            assert expected.norm() > 1e-6, name
            assert relative(gradient[run], expected) <= 1e-8, (name, run)


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", (1, 1)), ("sgd", (1, 3)), ("momentum", (3, 1))])
def test_means_taken_for_constants_give_another_gradient(optimizer, steps, narrow):
    """Which the textbook can do too: the part that a port easily loses."""
    config = recipe(optimizer, *steps)
    method, learned, _, layout = make(config, students=1, architecture="gtn")
    drawn = method.fresh(0)
    found = method.gradient(learned, drawn, 0).gradients["images"][0]
    for constant in (False, True):
        _, slopes = through_means(config, learned, layout, drawn, 0, 0, 0, constant=constant)
        error = relative(found, slopes["images"])
        assert error > 1e-2 if constant else error <= 1e-8


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_chunks_of_students_with_means_change_nothing(optimizer, narrow):
    config = recipe(
        optimizer,
        2,
        4,
        drawn=True,
        window=5,
        window_least=1,
        learn_labels=True,
        augmentation="crop_rotate",
        intermediate_every=2,
        keep=2,
    )
    exact = None
    for chunk, batching in ((100, "vmap"), (2, "vmap"), (4, "loop")):
        method, learned, _, _ = make(
            config, students=3, runs=2, chunk=chunk, batching=batching, ipc=4, architecture="gtn"
        )
        found = method.gradient(learned, method.fresh(1), 1)
        exact = exact or found
        assert torch.allclose(found.loss, exact.loss, rtol=1e-12)
        for name, gradient in found.gradients.items():
            assert relative(gradient, exact.gradients[name]) <= 1e-10, name


def test_a_whole_window_through_means_is_the_central_difference(narrow):
    config = recipe("momentum", 2, 2, learn_labels=True, augmentation="crop_rotate", intermediate_every=2)
    method, learned, _, _ = make(config, students=2, architecture="gtn")
    students, width = method.fresh(1), 1e-6
    found = method.gradient(learned, students, 1).gradients
    way = {name: normal(*value.shape, seed=60 + seed) for seed, (name, value) in enumerate(learned.items())}

    def loss(step):
        moved = {name: value + step * way[name] for name, value in learned.items()}
        return float(method.gradient(moved, students, 1).loss.mean())

    expected = float(sum((found[name] * way[name]).sum() for name in found))
    assert (loss(width) - loss(-width)) / (2 * width) == pytest.approx(expected, rel=1e-5)


def test_a_poisoned_student_with_means_is_masked_and_located(narrow):
    method, learned, _, layout = make(recipe(), students=3, architecture="gtn")
    drawn = method.fresh(0)
    clean = method.gradient(learned, drawn, 0)
    assert method.locate(learned, drawn, 0, 1) == ""
    layout.views(drawn.weights)["body.4.gain"][1, 0] = torch.nan
    found = method.gradient(learned, drawn, 0)
    assert found.finite.tolist() == [True, False, True]
    assert torch.equal(found.loss[[0, 2]], clean.loss[[0, 2]])
    assert all(gradient.isfinite().all() for gradient in found.gradients.values())
    assert method.locate(learned, drawn, 0, 1) == "weights body.4.gain"
    learned["rates"][0, 2] = 1e200
    found = method.gradient(learned, method.fresh(0), 0)
    assert not found.finite.any()
    assert "inner step" in method.locate(learned, method.fresh(0), 0, 0)


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
        seed=5,
    )
    learned = {"images": torch.empty(2, CLASSES, 2, *SHAPE, dtype=torch.float64, device=meta)}
    learned |= initial_settings(config, 2, CLASSES, 4, dtype=torch.float64, device=meta)
    found = method.gradient(learned, method.fresh(0), 0)
    assert all(gradient.is_meta for gradient in found.gradients.values())
    assert found.finite.shape == (6,)
