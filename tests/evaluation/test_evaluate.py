"""Batched evaluation against the textbook's, one student after the other, in float64."""

from dataclasses import replace

import pytest
import torch

from bench.naive.convnet import ConvNet as NaiveConvNet
from bench.naive.evaluation import train_and_test
from fastdistill.data.arrays import from_arrays
from fastdistill.derivatives.layout import Layout
from fastdistill.draws import Purpose
from fastdistill.evaluation.evaluate import Evaluation, evaluate_images, evaluate_students, store_fetch
from fastdistill.evaluation.protocols import protocol
from fastdistill.students.architectures import build_student
from fastdistill.students.training import image_fetch
from fastdistill.students.weights import initial_weights

SHAPE, CLASSES = (1, 8, 8), 3


def store(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, *SHAPE, generator=generator)
    images[torch.arange(count), 0, labels * 2, labels * 2] += 3
    return from_arrays(images, labels)


@pytest.mark.parametrize("epochs", [6])
@pytest.mark.parametrize("students", [1, 3])
def test_students_at_once_equal_the_textbook_one_by_one(epochs, students):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=6, depth=2)
    train, test = store(9, 0), store(60, 1)
    images = train.batch(torch.arange(9), torch.float64)
    chosen = protocol("dc", dataset="cifar10", architecture="convnet", norm="instance").with_epochs(epochs)
    indices = torch.arange(students)
    found = evaluate_students(
        module,
        image_fetch(images, train.labels),
        9,
        test,
        chosen,
        students=indices,
        seed=4,
        dtype=torch.float64,
    )
    weights = initial_weights(module, "default", seed=4, step=0, students=indices, purpose=Purpose.EVALUATION_WEIGHTS)
    for k in range(students):
        network = NaiveConvNet(1, CLASSES, width=6, depth=2, image_size=8).double()
        with torch.no_grad():
            views = Layout.of(module).views(weights[k].double()).values()
            for parameter, value in zip(network.parameters(), views, strict=True):
                parameter.copy_(value)
        expected = train_and_test(
            network,
            images,
            train.labels,
            test.batch(torch.arange(60), torch.float64),
            test.labels,
            epochs,
            generator=torch.Generator().manual_seed(0),  # one batch an epoch: its order changes rounding alone
        )
        assert found.per_student[k] == pytest.approx(expected, abs=1e-12)


def test_students_learn_and_the_summary_is_right():
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=6, depth=2)
    train, test = store(90, 0), store(60, 1)
    chosen = protocol("default", dataset="own", architecture="convnet", norm="instance").with_epochs(60)
    found = evaluate_students(
        module,
        store_fetch(train, torch.float32),
        len(train),
        test,
        chosen,
        students=torch.arange(4),
        seed=0,
    )
    assert found.mean > 0.6
    assert found.mean == pytest.approx(sum(found.per_student) / 4)
    assert found.std == pytest.approx(torch.tensor(found.per_student).std(correction=0).item(), abs=1e-6)
    assert found.images == 90
    again = evaluate_students(
        module, store_fetch(train, torch.float32), len(train), test, chosen, students=torch.arange(4), seed=0
    )
    assert again.per_student == found.per_student


def test_runs_have_students_of_their_own():
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=6, depth=2)
    train, test = store(9, 0), store(60, 1)
    images = torch.stack([train.batch(torch.arange(9)), train.batch(torch.arange(9)).flip(-1)])
    chosen = protocol("default", dataset="own", architecture="convnet", norm="instance").with_epochs(20)
    options = {"module": module, "labels": train.labels, "test": test, "protocol": chosen, "seed": 0}
    together = evaluate_images(images=images, students=3, **options).per_student
    second = evaluate_images(images=images[1:], students=3, first_student=3, **options).per_student
    assert together[3:] == second
    assert evaluate_images(images=images[:1], students=3, **options).per_student == together[:3]
    with pytest.raises(ValueError, match="expected at least one student"):
        evaluate_images(images=images, students=0, **options)


def test_every_run_is_trained_on_its_own_soft_labels():
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=6, depth=2)
    train, test = store(9, 0), store(60, 1)
    images = torch.stack([train.batch(torch.arange(9)), train.batch(torch.arange(9)).flip(-1)])
    true = torch.nn.functional.one_hot(train.labels, CLASSES).double()
    rows = torch.stack([true + 0.1, true.roll(1, dims=1)])
    chosen = protocol("default", dataset="own", architecture="convnet", norm="instance").with_epochs(20)
    options = {"module": module, "test": test, "protocol": chosen, "seed": 0, "students": 3, "dtype": torch.float64}
    together = evaluate_images(images=images, labels=rows, **options)
    assert together.images == 9
    for run in range(2):
        alone = {"images": images[run : run + 1], "first_student": 3 * run, **options}
        found = evaluate_images(labels=rows[run : run + 1], **alone).per_student
        assert together.per_student[3 * run : 3 * run + 3] == found
        assert found == evaluate_images(labels=rows[run], **alone).per_student
    assert sum(together.per_student[:3]) > sum(together.per_student[3:]) + 0.5  # the second run learned wrong classes
    shared = evaluate_images(images=images, labels=rows[0], **options).per_student
    assert shared[:3] == together.per_student[:3] and shared[3:] != together.per_student[3:]
    hard = evaluate_images(images=images, labels=train.labels, **options).per_student
    assert hard == evaluate_images(images=images, labels=true, **options).per_student
    with pytest.raises(ValueError, match="expected soft labels of 2 runs, as the images are of, got those of 3"):
        evaluate_images(images=images, labels=rows[[0, 1, 1]], **options)


def test_every_run_takes_the_rate_that_it_was_learned_with():
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=CLASSES, net_width=6, depth=2)
    train, test = store(9, 0), store(60, 1)
    images = torch.stack([train.batch(torch.arange(9)), train.batch(torch.arange(9)).flip(-1)])
    named = {"dataset": "own", "architecture": "convnet", "norm": "instance"}
    rates = torch.tensor([0.001, 0.1])
    options = {"module": module, "labels": train.labels, "test": test, "seed": 0, "students": 3, "dtype": torch.float64}

    def judged(images, rates, learning_rate=0.01, **more):
        chosen = protocol("dc", rates=rates, **named).with_epochs(20)
        chosen = replace(chosen, training=replace(chosen.training, learning_rate=learning_rate))
        return evaluate_images(images=images, protocol=chosen, **options, **more).per_student

    together = judged(images, rates)
    for run in range(2):
        alone = judged(images[run : run + 1], None, float(rates[run]), first_student=3 * run)
        assert together[3 * run : 3 * run + 3] == pytest.approx(alone, abs=1 / 60 + 1e-9)
    assert together != judged(images, None)
    with pytest.raises(ValueError, match=r"expected learning rates of 2 runs, as the images are of, got \(1,\)"):
        judged(images, rates[:1])


def test_an_evaluation_reads_well():
    found = Evaluation(per_student=(0.5, 0.7), protocol="dc", epochs=300, images=10, seconds=1.0)
    assert str(found) == "60.00 ± 10.00 % over 2 students (protocol dc, 300 epochs, 10 images)"
