"""Replayed steps against a written-out loop of SGD, one student after the other, in float64."""

import pytest
import torch

from bench.naive.convnet import ConvNet as NaiveConvNet
from fastdistill.data.arrays import from_arrays
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import choose_batching, forward_cost
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import evaluate_images
from fastdistill.evaluation.protocols import protocol
from fastdistill.evaluation.replay import Replay, replay_students
from fastdistill.students.architectures import build_student
from fastdistill.students.training import image_fetch
from fastdistill.students.weights import initial_weights

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


def by_hand(weights, images, labels, rates):
    """One student, step by step."""
    network = NaiveConvNet(1, CLASSES, width=4, depth=2, image_size=8).double()
    with torch.no_grad():
        views = Layout.of(module()).views(weights).values()
        for parameter, value in zip(network.parameters(), views, strict=True):
            parameter.copy_(value)
    for rate, chosen in zip(rates.tolist(), ORDER, strict=True):
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
