"""Batched training against torch.optim, one student at a time."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose, uniform
from fastdistill.students.architectures import build_student
from fastdistill.students.training import Training, count_correct, image_fetch, train_students
from fastdistill.students.weights import initial_buffers, initial_weights

STUDENTS = torch.arange(3)
COUNT = 7


def setup(norm="instance", path=Path.VMAP, width=6):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=4, net_width=width, depth=2, norm=norm)
    primitive = Functional(module, Batching(path=path, piece=100, students=2))
    weights = initial_weights(module, "default", seed=0, step=0, students=STUDENTS).double()
    buffers = initial_buffers(module, 3, dtype=torch.float64, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(COUNT) % 4
    return module, primitive, weights, buffers, images, labels


def textbook(module, layout, weights, buffers, batches, training, norm):
    """One student by torch.optim.SGD; ``batches`` are (epoch, images, labels)."""
    parameters = {name: view.clone().requires_grad_() for name, view in layout.views(weights).items()}
    state = {name: tensor.clone() for name, tensor in buffers.items()}

    def optimizer(rate):
        return torch.optim.SGD(
            parameters.values(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
        )

    current, sgd = -1, optimizer(training.learning_rate)
    for epoch, images, labels in batches:
        if epoch != current:
            current = epoch
            if training.restart and epoch == training.decay_epoch:
                sgd = optimizer(training.rate(epoch))
            for group in sgd.param_groups:
                group["lr"] = training.rate(epoch)
        sgd.zero_grad()
        logits = functional_call(module.train(), {**parameters, **state}, (images,))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        sgd.step()
    return layout.flatten({name: value.detach() for name, value in parameters.items()}), state


CASES = {
    "full batch": Training(epochs=5, momentum=0.9, weight_decay=5e-4),
    "plain": Training(epochs=4, learning_rate=0.05),
    "mini-batches": Training(epochs=4, momentum=0.9, batch=3),
    "restart": Training(epochs=6, momentum=0.9, schedule="step", decay_epoch=3, restart=True, batch=4),
    "kept momentum": Training(epochs=6, momentum=0.9, schedule="step", decay_epoch=3, batch=4),
    "cosine": Training(epochs=4, momentum=0.5, schedule="cosine"),
}


@pytest.mark.parametrize("training", CASES.values(), ids=CASES)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("path", Path)
def test_training_equals_torch_optim(training, own, norm, path):
    module, primitive, weights, buffers, images, labels = setup(norm, path)
    if own:
        images = torch.stack([images, images.flip(0), images * 2])
    found, state = train_students(
        primitive, weights, buffers, image_fetch(images, labels), COUNT, training, seed=3, students=STUDENTS
    )
    for k in range(3):
        batches = []
        for epoch in range(training.epochs):
            order = torch.arange(COUNT)
            if training.batch < COUNT:
                order = uniform(3, Purpose.MINIBATCH, epoch, STUDENTS, COUNT)[k].argsort(stable=True)
            own_images = images[k] if own else images
            batches += [(epoch, own_images[part], labels[part]) for part in order.split(training.batch)]
        expected, expected_state = textbook(
            module, primitive.layout, weights[k], {n: b[k] for n, b in buffers.items()}, batches, training, norm
        )
        assert torch.allclose(found[k], expected, rtol=1e-9, atol=1e-12)
        for name, value in expected_state.items():
            assert torch.allclose(state[name][k], value, rtol=1e-9)


@pytest.mark.parametrize("training", CASES.values(), ids=CASES)
def test_students_fall_from_their_own_rate_as_from_the_settings(training):
    _, primitive, weights, buffers, images, labels = setup()
    rates = torch.tensor([0.03, 0.01, 0.2], dtype=torch.float64)
    options = {"seed": 3, "students": STUDENTS}
    fetch = image_fetch(images, labels)
    found, _ = train_students(primitive, weights, buffers, fetch, COUNT, training, rates=rates, **options)
    for k, rate in enumerate(rates.tolist()):
        own = replace(training, learning_rate=rate)
        expected, _ = train_students(primitive, weights, buffers, fetch, COUNT, own, **options)
        assert torch.allclose(found[k], expected[k], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize("batch", [100, 3])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("path", Path)
def test_training_on_soft_rows_equals_torch_optim(batch, own, path):
    module, primitive, weights, buffers, images, _ = setup("batch", path)
    images = torch.stack([images, images.flip(0), images * 2])
    rows = torch.rand(3, COUNT, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    rows = rows if own else rows[0]
    training = Training(epochs=3, learning_rate=0.05, momentum=0.9, weight_decay=5e-4, batch=batch)
    found, state = train_students(
        primitive, weights, buffers, image_fetch(images, rows), COUNT, training, seed=3, students=STUDENTS
    )
    for k in range(3):
        batches = []
        for epoch in range(training.epochs):
            order = torch.arange(COUNT)
            if batch < COUNT:
                order = uniform(3, Purpose.MINIBATCH, epoch, STUDENTS, COUNT)[k].argsort(stable=True)
            mine = rows[k] if own else rows
            batches += [(epoch, images[k, part], mine[part]) for part in order.split(batch)]
        expected, expected_state = textbook(
            module, primitive.layout, weights[k], {n: b[k] for n, b in buffers.items()}, batches, training, "batch"
        )
        assert torch.allclose(found[k], expected, rtol=1e-9, atol=1e-12)
        for name, value in expected_state.items():
            assert torch.allclose(state[name][k], value, rtol=1e-9)


def test_rows_of_their_own_need_images_of_their_own():
    with pytest.raises(
        ValueError, match=r"expected images \[S, N, D, H, W\] beside labels \[S, N, C\], got \(7, 1, 8, 8\)"
    ):
        image_fetch(torch.zeros(7, 1, 8, 8), torch.zeros(3, 7, 4))


def test_a_student_trains_the_same_in_any_batch():
    _, primitive, weights, buffers, images, labels = setup()
    training = Training(epochs=4, momentum=0.9, batch=3)
    together, _ = train_students(
        primitive, weights, buffers, image_fetch(images, labels), COUNT, training, seed=3, students=STUDENTS
    )
    alone, _ = train_students(
        primitive, weights[1:2], buffers, image_fetch(images, labels), COUNT, training, seed=3, students=STUDENTS[1:2]
    )
    assert torch.allclose(together[1], alone[0], rtol=1e-12, atol=1e-14)


def test_epochs_in_two_calls_equal_one_call_without_momentum():
    _, primitive, weights, buffers, images, labels = setup()

    def train(weights, epochs, first):
        training = Training(epochs=epochs, batch=3)
        fetch = image_fetch(images, labels)
        return train_students(
            primitive, weights, buffers, fetch, COUNT, training, seed=3, students=STUDENTS, first_epoch=first
        )[0]

    assert torch.equal(train(train(weights, 2, 0), 3, 2), train(weights, 5, 0))


def test_epochs_in_two_calls_equal_one_call_with_the_velocity_handed_on():
    _, primitive, weights, buffers, images, labels = setup()
    seen = []

    def train(weights, epochs, first, velocity=None):
        return train_students(
            primitive,
            weights,
            buffers,
            image_fetch(images, labels),
            COUNT,
            Training(epochs=epochs, batch=3, momentum=0.9),
            seed=3,
            students=STUDENTS,
            first_epoch=first,
            velocity=velocity,
            observe=lambda velocity, loss: seen.append((velocity, loss)),
        )[0]

    whole = train(weights, 3, 0)
    losses = [loss for _, loss in seen]
    seen.clear()
    half = train(weights, 2, 0)
    assert torch.equal(train(half, 1, 2, seen[-1][0]), whole)
    assert torch.equal(torch.stack([loss for _, loss in seen]), torch.stack(losses))
    assert not torch.equal(train(half, 1, 2), whole)


def test_the_loss_of_an_epoch_is_that_of_its_images():
    _, primitive, weights, buffers, images, labels = setup()
    losses = []
    train_students(
        primitive,
        weights,
        buffers,
        image_fetch(images, labels),
        COUNT,
        Training(epochs=1, batch=3, learning_rate=1e-14),
        seed=3,
        students=STUDENTS,
        observe=lambda velocity, loss: losses.append(loss) or losses.append(velocity),
    )
    logits = primitive.logits(weights, buffers, images)
    expected = torch.stack([torch.nn.functional.cross_entropy(row, labels) for row in logits])
    assert torch.allclose(losses[0], expected, rtol=1e-10)
    assert losses[1] is None


def test_augmentation_gets_every_step_its_own_counter():
    _, primitive, weights, buffers, images, labels = setup()
    seen = []

    def augment(batch, step):
        seen.append(step)
        return batch

    training = Training(epochs=3, batch=4)
    train_students(
        primitive,
        weights,
        buffers,
        image_fetch(images, labels),
        COUNT,
        training,
        seed=0,
        students=STUDENTS,
        first_epoch=10,
        augment=augment,
    )
    assert seen == [20, 21, 22, 23, 24, 25]


def test_correct_predictions_are_counted():
    module, primitive, weights, buffers, images, labels = setup()
    found = count_correct(primitive, weights, buffers, images, labels)
    for k in range(3):
        logits = functional_call(module.eval(), primitive.layout.views(weights[k]), (images,))
        assert int(found[k]) == int((logits.argmax(1) == labels).sum())


def test_wrong_settings_are_named():
    for wrong in ({"epochs": -1}, {"epochs": 1, "batch": 0}, {"epochs": 1, "learning_rate": 0.0}):
        with pytest.raises(ValueError, match="correct the training settings"):
            Training(**wrong)
    with pytest.raises(ValueError, match="expected a schedule among"):
        Training(epochs=1, schedule="linear")
