"""Replayed steps against a written-out loop of SGD, one student after the other, in float64."""

import pytest
import torch
from torch.func import functional_call

from bench.naive.convnet import ConvNet as NaiveConvNet
from fastdistill.augmentation.dsa import Strategy, draw_per_image
from fastdistill.data.arrays import from_arrays
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD, Adam, Momentum
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import choose_batching, forward_cost
from fastdistill.derivatives.unroll import Steps, unroll
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import evaluate_images
from fastdistill.evaluation.protocols import protocol
from fastdistill.evaluation.replay import Replay, replay_students
from fastdistill.students.architectures import build_student
from fastdistill.students.training import image_fetch
from fastdistill.students.weights import initial_weights
from fastdistill.synthetic.schedule import Schedule

CLASSES, STUDENTS = 3, 2
ORDER = torch.tensor([[0, 1, 2, 3], [5, 4, 4, 8], [8, 7, 6, 0], [1, 1, 1, 2]])
SHARED = torch.tensor([0.5, 0.05, 0.2, -0.1], dtype=torch.float64)


def module(norm="instance"):
    return build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=4, depth=2, norm=norm)


def images_and_labels(runs):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(runs, 9, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(9) % CLASSES


def own(replay):
    return protocol("own", dataset="own", architecture="convnet", norm="instance", replay=replay)


def by_hand(weights, images, labels, rates, order=ORDER):
    """One student, step by step."""
    network = NaiveConvNet(1, CLASSES, width=4, depth=2, image_size=8).double()
    with torch.no_grad():
        views = Layout.of(module()).views(weights).values()
        for parameter, value in zip(network.parameters(), views, strict=True):
            parameter.copy_(value)
    for rate, chosen in zip(rates.tolist(), order, strict=True):
        loss = torch.nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return network


@pytest.mark.parametrize(
    ("runs", "rates"),
    [(1, SHARED), (2, SHARED), (1, SHARED[None]), (3, torch.stack([SHARED, 2 * SHARED, SHARED.flip(0)]))],
    ids=["one run", "runs", "one run's own rates", "own rates"],
)
def test_students_take_exactly_the_written_out_steps(runs, rates):
    images, labels = images_and_labels(runs)
    replay = Replay(rates=rates, order=ORDER).spread(STUDENTS)
    indices = torch.arange(runs * STUDENTS)
    architecture = module()
    weights = initial_weights(
        architecture, "default", seed=4, step=0, students=indices, purpose=Purpose.EVALUATION_WEIGHTS
    ).double()
    batching = choose_batching(
        forward_cost(architecture, (1, 8, 8)), torch.device("cpu"), students=len(indices), groups=1, images=4
    )
    shown = images[0] if runs == 1 else images.repeat_interleave(STUDENTS, dim=0)
    steps = []
    found, _ = replay_students(
        Functional(architecture, batching), weights, {}, image_fetch(shown, labels), replay, progress=steps.append
    )
    assert steps == [1, 2, 3, 4]
    layout = Layout.of(architecture)
    for student in indices.tolist():
        run = student // STUDENTS
        network = by_hand(weights[student], images[run], labels, rates.expand(runs, -1)[run])
        for parameter, value in zip(network.parameters(), layout.views(found[student]).values(), strict=True):
            assert (parameter - value).abs().max() <= 1e-12


@pytest.mark.parametrize(("runs", "own_rows"), [(1, False), (2, False), (1, True), (3, True)])
def test_soft_rows_are_replayed(runs, own_rows):
    images, _ = images_and_labels(runs)
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(runs if own_rows else 1, 9, CLASSES, generator=generator, dtype=torch.float64)
    test = from_arrays(torch.randn(50, 1, 8, 8, generator=generator), torch.arange(50) % CLASSES)
    labels = rows if own_rows else rows[0]
    found = evaluate_images(
        module(),
        images,
        labels,
        test,
        own(Replay(rates=SHARED, order=ORDER)),
        students=STUDENTS,
        seed=4,
        dtype=torch.float64,
    )
    indices = torch.arange(runs * STUDENTS)
    weights = initial_weights(
        module(), "default", seed=4, step=0, students=indices, purpose=Purpose.EVALUATION_WEIGHTS
    ).double()
    shown = test.batch(torch.arange(50), torch.float64)
    for student, accuracy in enumerate(found.per_student):
        run = student // STUDENTS
        network = by_hand(weights[student], images[run], rows[run if own_rows else 0], SHARED)
        assert accuracy == (network(shown).argmax(1) == test.labels).double().mean().item()
    assert len(set(found.per_student)) > 1


@pytest.mark.parametrize("runs", [1, 2])
def test_the_accuracy_is_that_of_the_written_out_steps(runs):
    images, labels = images_and_labels(runs)
    rates = SHARED / 20 if runs == 1 else torch.stack([SHARED / 20, SHARED / 10])
    generator = torch.Generator().manual_seed(1)
    test = from_arrays(torch.randn(200, 1, 8, 8, generator=generator), torch.arange(200) % CLASSES)
    found = evaluate_images(
        module(),
        images,
        labels,
        test,
        own(Replay(rates=rates, order=ORDER)),
        students=STUDENTS,
        seed=4,
        dtype=torch.float64,
    )
    assert (found.protocol, found.steps, found.epochs) == ("own", 4, 0)
    assert "(protocol own, 4 steps of the images' own, 9 images)" in str(found)
    weights = initial_weights(
        module(),
        "default",
        seed=4,
        step=0,
        students=torch.arange(runs * STUDENTS),
        purpose=Purpose.EVALUATION_WEIGHTS,
    ).double()
    shown = test.batch(torch.arange(200), torch.float64)
    for student, accuracy in enumerate(found.per_student):
        run = student // STUDENTS
        network = by_hand(weights[student], images[run], labels, rates.expand(runs, -1)[run])
        assert accuracy == (network(shown).argmax(1) == test.labels).double().mean().item()
    assert len(set(found.per_student)) > 1


MOMENTA = torch.tensor([0.9, 0.5, 0.1, 0.8], dtype=torch.float64)
RATES = torch.tensor([0.05, 0.01, 0.02, 0.03], dtype=torch.float64)
STEPPING = {
    "sgd with decay": {"decay": 0.1},
    "momentum": {"optimizer": "momentum", "momenta": MOMENTA},
    "momentum with decay": {"optimizer": "momentum", "momenta": MOMENTA, "decay": 0.1},
    "adam": {"optimizer": "adam", "momenta": MOMENTA},
    "adam with decay": {"optimizer": "adam", "momenta": MOMENTA, "decay": 0.1},
    "own momenta": {"optimizer": "adam", "momenta": torch.stack([MOMENTA, MOMENTA.flip(0)])},
}


def smooth():
    """A student whose gradients are not nearly zero, where Adam's direction would be that of rounding errors."""
    return build_student(
        "convnet",
        channels=1,
        height=8,
        width=8,
        num_classes=CLASSES,
        net_width=4,
        depth=2,
        norm="none",
        activation="softplus",
    )


def replayed(architecture, weights, images, labels, replay, **options):
    batching = choose_batching(
        forward_cost(architecture, (1, 8, 8)), torch.device("cpu"), students=len(weights), groups=1, images=4
    )
    primitive, fetch = Functional(architecture, batching), image_fetch(images, labels)
    return replay_students(primitive, weights, {}, fetch, replay, **options)[0]


@pytest.mark.parametrize("stepping", STEPPING.values(), ids=STEPPING)
def test_steps_are_those_of_torch_optim(stepping):
    images, labels = images_and_labels(2)
    rates = torch.stack([RATES, RATES.flip(0)])
    replay = Replay(rates=rates, order=ORDER, **stepping).spread(STUDENTS)
    architecture, indices = smooth(), torch.arange(2 * STUDENTS)
    weights = initial_weights(architecture, "default", seed=4, step=0, students=indices).double()
    found = replayed(architecture, weights, images.repeat_interleave(STUDENTS, dim=0), labels, replay)
    layout = Layout.of(architecture)
    for student in indices.tolist():
        run = student // STUDENTS
        parameters = {name: view.clone().requires_grad_() for name, view in layout.views(weights[student]).items()}
        momenta = stepping.get("momenta", torch.zeros(4)).expand(2, -1)[run].tolist()
        if stepping.get("optimizer") == "adam":
            theirs = torch.optim.Adam(parameters.values(), weight_decay=replay.decay)
        else:
            theirs = torch.optim.SGD(parameters.values(), weight_decay=replay.decay)
        for rate, momentum, chosen in zip(rates[run].tolist(), momenta, ORDER, strict=True):
            (group,) = theirs.param_groups
            group |= {"lr": rate, "momentum": momentum, "betas": (momentum, 0.999)}
            theirs.zero_grad()
            logits = functional_call(architecture, parameters, (images[run, chosen],))
            torch.nn.functional.cross_entropy(logits, labels[chosen]).backward()
            theirs.step()
        for parameter, value in zip(parameters.values(), layout.views(found[student]).values(), strict=True):
            assert (parameter - value).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stepping", STEPPING.values(), ids=STEPPING)
def test_it_is_unrolled_training_bit_for_bit(stepping, dtype):
    images, labels = images_and_labels(2)
    images = images.repeat_interleave(STUDENTS, dim=0).to(dtype)
    replay = Replay(rates=RATES, order=ORDER, **stepping).spread(STUDENTS)
    architecture, indices = module(), torch.arange(2 * STUDENTS)
    weights = initial_weights(architecture, "default", seed=4, step=0, students=indices).to(dtype)
    found = replayed(architecture, weights, images, labels, replay)
    kinds = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
    momenta = None if replay.momenta is None else replay.momenta.expand(4, -1).T.to(dtype)
    steps = Steps(
        optimizer=kinds[replay.optimizer](decay=replay.decay), rates=RATES.expand(4, -1).T.to(dtype), momenta=momenta
    )
    batching = choose_batching(
        forward_cost(architecture, (1, 8, 8)), torch.device("cpu"), students=4, groups=1, images=4
    )
    expected = unroll(
        Functional(architecture, batching),
        weights,
        {},
        lambda number: (images[:, ORDER[number]], labels[ORDER[number]]),
        steps,
    ).weights
    assert torch.equal(found, expected)


def test_the_replay_of_a_schedule_has_all_of_it():
    schedule = Schedule(
        rates=RATES,
        images=ORDER,
        optimizer="adam",
        momenta=MOMENTA[None],
        decay=0.5,
        augmentation="color_flip",
        align_corners=False,
    )
    replay = Replay.of(schedule)
    assert replay.order is ORDER
    for name in ("rates", "optimizer", "momenta", "decay", "augmentation", "align_corners"):
        assert getattr(replay, name) is getattr(schedule, name)
    spread = replay.spread(3)
    assert spread.rates is RATES
    assert torch.equal(spread.momenta, MOMENTA.expand(3, -1))


@pytest.mark.parametrize("runs", [1, 2])
def test_every_step_draws_an_augmentation(runs):
    """Flips alone: the students are those that were trained by hand on the flipped images."""
    images, labels = images_and_labels(runs)
    rules = own(Replay(rates=SHARED, order=ORDER, augmentation="flip"))
    architecture, indices = module(), torch.arange(runs * STUDENTS)
    weights = initial_weights(architecture, "default", seed=4, step=0, students=indices).double()
    shown = images[0] if runs == 1 else images.repeat_interleave(STUDENTS, dim=0)
    found = replayed(architecture, weights, shown, labels, rules.replay, augment=rules.augment(4, indices))
    key = {"seed": 4, "students": indices, "images": 4, "purpose": Purpose.EVALUATION_AUGMENTATION}
    draws = [draw_per_image(Strategy.parse("flip"), step=step, **key) for step in range(4)]
    flips = torch.stack([draw.parameters[..., 0] < 0.5 for draw in draws])
    assert flips.float().mean() not in (0.0, 1.0)
    layout = Layout.of(architecture)
    for student in indices.tolist():
        # every step takes images of its own, so that each may be flipped
        steps = images[student // STUDENTS, ORDER]
        steps = torch.where(flips[:, student, :, None, None, None], steps.flip(-1), steps).flatten(0, 1)
        apart = torch.arange(16).view(4, 4)
        network = by_hand(weights[student], steps, labels[ORDER].flatten(), SHARED, order=apart)
        for parameter, value in zip(network.parameters(), layout.views(found[student]).values(), strict=True):
            assert (parameter - value).abs().max() <= 1e-12


def test_an_evaluation_augments_where_the_steps_do():
    images, labels = images_and_labels(1)
    test = from_arrays(images[0].repeat(20, 1, 1, 1).float(), labels.repeat(20))
    accuracies = [
        evaluate_images(
            module(),
            test.batch(torch.arange(9), torch.float64)[None],
            labels,
            test,
            own(Replay(rates=SHARED.abs().repeat(10), order=ORDER.repeat(10, 1), augmentation=augmentation)),
            students=6,
            seed=4,
            dtype=torch.float64,
        ).mean
        for augmentation in ("none", "flip", "cutout")
    ]
    assert len(set(accuracies)) == 3


def test_running_statistics_are_carried_from_step_to_step():
    images, labels = images_and_labels(1)
    test = from_arrays(torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(30) % CLASSES)
    options = {"labels": labels, "test": test, "students": 2, "seed": 0, "dtype": torch.float64}
    once = evaluate_images(
        module("batch"), images, protocol=own(Replay(rates=SHARED, order=ORDER)), **options
    ).per_student
    assert all(0 <= accuracy <= 1 for accuracy in once)
    again = evaluate_images(
        module("batch"), images, protocol=own(Replay(rates=SHARED, order=ORDER)), **options
    ).per_student
    assert once == again
