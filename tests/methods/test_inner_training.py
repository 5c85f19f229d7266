import pytest
import torch

from fastdistill.augmentation import dsa
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD, Adam, Momentum
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.trajectory import Steps
from fastdistill.draws import Purpose
from fastdistill.methods.inner_training import (
    first_nonfinite_step,
    inner_optimizer,
    one_hot_labels,
    refuse_buffers,
    shown,
)
from fastdistill.students.ensemble import Ensemble

SHAPE, CLASSES = (1, 8, 8), 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_optimizers_have_their_names_and_decay():
    assert inner_optimizer("sgd", 0.0) == SGD()
    assert inner_optimizer("momentum", 0.1) == Momentum(decay=0.1)
    assert inner_optimizer("adam", 0.2) == Adam(decay=0.2)


def test_learned_labels_begin_as_the_classes():
    labels = one_hot_labels(2, CLASSES, 4)
    assert labels.shape == (2, CLASSES, 4, CLASSES)
    assert torch.equal(labels.sum(-1), torch.ones(2, CLASSES, 4, dtype=torch.int64))
    assert torch.equal(labels.argmax(-1), torch.arange(CLASSES).view(1, -1, 1).expand(2, -1, 4))


def test_students_are_shown_their_own_view_in_every_step():
    strategy = dsa.Strategy.parse("flip_rotate", align_corners=False)
    images, students = random(3, 5, *SHAPE), torch.tensor([4, 0, 9])
    view = shown(strategy, seed=2, step=70, students=students)
    for number in (0, 3):
        draw = dsa.draw_per_image(
            strategy, seed=2, step=70 + number, students=students, images=5, purpose=Purpose.TRAINING_AUGMENTATION
        )
        assert torch.equal(view(number, images), dsa.augment(images, strategy, draw))
    assert not torch.equal(view(0, images), view(1, images))
    alone = shown(strategy, seed=2, step=70, students=students[1:2])
    assert torch.equal(alone(3, images[1:2]), view(3, images)[1:2])


def test_without_an_operation_there_is_no_view():
    assert shown(dsa.Strategy.parse("none"), seed=0, step=0, students=torch.arange(2)) is None


def ensemble(**student):
    return Ensemble(StudentConfig(width=4, depth=2, **student), SHAPE, CLASSES, seed=5, dtype=torch.float64)


def test_running_statistics_are_refused_by_the_methods_name():
    plain, batch, means = (ensemble(**student).module for student in ({}, {"norm": "batch"}, {"architecture": "gtn"}))
    for allowed in (False, True):
        refuse_buffers(plain, "for this method", means=allowed)
        with pytest.raises(ValueError, match=r"^expected students without running statistics for this method, got b"):
            refuse_buffers(batch, "for this method", means=allowed)
    refuse_buffers(means, "for this method", means=True)
    with pytest.raises(ValueError, match=r"^expected .* for this method, got mean-only batch norm: use another "):
        refuse_buffers(means, "for this method")


def located(rates, *, own=False, soft=False, real=None, spoil=None, optimizer=None):
    made = ensemble()
    primitive = Functional(made.module, Batching(path=Path.VMAP, piece=100, students=100))
    student = made.draw(0, torch.tensor([3]))
    images = random(len(rates), 4, *SHAPE, seed=1)
    labels = torch.arange(4) % CLASSES
    labels = torch.nn.functional.one_hot(labels, CLASSES).double() if soft else labels
    if spoil is not None:
        images[spoil] = torch.nan

    def batches(number):
        return (images[number][None], labels[None]) if own else (images[number], labels)

    rates = torch.tensor(rates, dtype=torch.float64)[:, None]
    optimizer = optimizer or SGD()
    momenta = torch.full_like(rates, 0.9) if optimizer.slots else None
    steps = Steps(optimizer=optimizer, rates=rates, momenta=momenta)
    return first_nonfinite_step(made, primitive, student, batches, steps, real)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_the_step_is_named_whose_numbers_are_the_first(own, soft):
    assert located([0.1] * 4, own=own, soft=soft) == ""
    assert "inner step 2" in located([0.1, 1e300, 0.1, 0.1], own=own, soft=soft)
    assert located([0.1] * 4, own=own, soft=soft, spoil=3) == "the images of inner step 3"


@pytest.mark.parametrize("optimizer", [Momentum(), Adam()])
def test_an_optimizers_state_goes_on_from_step_to_step(optimizer):
    assert located([0.01] * 4, optimizer=optimizer) == ""
    assert located([0.01, 0.01, torch.inf, 0.01], optimizer=optimizer).startswith("weights ")


def test_real_images_are_looked_at_last():
    images, labels = random(1, 5, *SHAPE, seed=2), torch.zeros(1, 5, dtype=torch.int64)
    assert located([0.1] * 3, real=(images, labels)) == ""
    assert "on real images" in located([0.1, 0.1, 1e300], real=(images, labels))
    images[0, 2] = torch.nan
    assert located([0.1] * 3, real=(images, labels)) == "real images"
