"""Trajectory matching against autograd through the whole training, in float64."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from bench.naive.trajectory import expert_labels as textbook_labels
from bench.naive.trajectory import mtt, tesla
from bench.naive.unrolled import Training
from fastdistill.augmentation import dsa
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods.primitives import Primitives
from fastdistill.methods.trajectory import (
    TrajectoryMatching,
    final_labels,
    followed,
    initial_settings,
    minibatches,
    trajectory_loss,
)
from fastdistill.students.ensemble import Ensemble
from tests.experts import HeldExperts, wandering_experts

CLASSES, IPC, SHAPE, SEED = 3, 2, (1, 8, 8), 5
N = CLASSES * IPC
DSA = "color_crop_cutout_flip_scale_rotate"
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "loop": Batching(path=Path.LOOP, piece=2, students=1),
}


def recipe(**changes):
    given = {"inner_steps": 3, "expert_epochs": 2, "max_start_epoch": 3, "inner_learning_rate": 0.1}
    return TrajectoryConfig(**{**given, "augmentation": "none", **changes})


def normal(*shape, seed, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def make(config, *, students, runs=1, chunk=100, batching="vmap", experts=None, **student):
    settings = StudentConfig(**{"width": 4, "depth": 2, "activation": "softplus", **student})
    ensemble = Ensemble(settings, SHAPE, CLASSES, seed=SEED, dtype=torch.float64)
    primitive = Functional(ensemble.module, BATCHINGS[batching])
    experts = experts or wandering_experts(primitive.layout, experts=4, epochs=6, seed=1)
    method = TrajectoryMatching(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        experts,
        torch.arange(CLASSES)[:, None].expand(-1, IPC),
        runs=runs,
        students=students,
        chunk=chunk,
        seed=SEED,
        dtype=torch.float64,
    )
    learned = {"images": normal(runs, CLASSES, IPC, *SHAPE, seed=7)}
    learned |= initial_settings(config, runs, CLASSES, IPC, dtype=torch.float64, device=torch.device("cpu"))
    learned["rate"] = learned["rate"] * (1 + 0.3 * torch.arange(runs))  # every run its own
    if config.labels == "learned":
        learned["labels"] = learned["labels"] + 0.1 * normal(*learned["labels"].shape, seed=8).abs()
    return method, learned, ensemble, primitive.layout


def textbook(config, learned, ensemble, layout, experts, student, run, step):
    """Loss of one student and its derivatives, by autograd through all steps."""
    index = torch.tensor([student])
    expert, epoch = followed(config, experts.count, seed=SEED, step=step, students=index)

    def weights(later):
        flat = experts.weights[expert, epoch + later][0]
        return {name: view.clone() for name, view in layout.views(flat).items()}

    strategy = dsa.Strategy.parse(config.augmentation)

    def augment(images, number):
        draw = dsa.draw_per_image(
            strategy,
            seed=SEED,
            step=step * config.inner_steps + number,
            students=index,
            images=len(images),
            purpose=Purpose.TRAINING_AUGMENTATION,
        )
        return dsa.augment(images[None], strategy, draw)[0]

    target, images = weights(config.expert_epochs), learned["images"][run].flatten(0, 1)
    if config.labels == "learned":
        labels = learned["labels"][run].flatten(0, 1)
    elif config.labels == "expert":
        labels = textbook_labels(ensemble.module, target, images)
    else:
        labels = torch.arange(CLASSES).repeat_interleave(IPC)
    tables = minibatches(config, N, seed=SEED, step=step, students=index)
    training = Training(
        net=ensemble.module,
        batches=[table if table.ndim == 1 else table[0] for table in tables],
        augment=augment if strategy.operations else None,
    )
    arguments = (training, weights(0), target, images, labels, learned["rate"][run])
    loss, found = tesla(*arguments, halved=config.halved) if config.gradient == "tesla" else mtt(*arguments)
    expected = {"images": found["images"].view_as(learned["images"][run]), "rate": found["step_size"]}
    if config.labels == "learned":
        expected["labels"] = found["labels"].view_as(learned["labels"][run])
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
            textbook(config, learned, ensemble, layout, method._experts, run * students + k, run, step)
            for k in range(students)
        ]
        losses = torch.stack([loss for loss, _ in each])
        assert torch.allclose(found.loss[run * students : (run + 1) * students], losses, rtol=1e-10)
        for name, gradient in found.gradients.items():
            assert gradient.shape == learned[name].shape
            expected = torch.stack([expected[name] for _, expected in each]).mean(0)
            assert relative(gradient[run], expected) <= 1e-8, (name, run)


KINDS = [{}, {"gradient": "tesla"}, {"gradient": "tesla", "halved": True}]


@pytest.mark.parametrize("kind", KINDS, ids=["mtt", "tesla", "halved"])
@pytest.mark.parametrize("labels", ["hard", "expert", "learned"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_gradients_are_those_of_the_textbook(steps, labels, kind):
    compare(recipe(inner_steps=steps, labels=labels, **kind), students=3, runs=2, chunk=4)


@pytest.mark.parametrize("kind", KINDS[:2], ids=["mtt", "tesla"])
@pytest.mark.parametrize("labels", ["hard", "expert", "learned"])
@pytest.mark.parametrize("augmentation", ["none", DSA])
@pytest.mark.parametrize("batch", [2, 4])
def test_short_batches_augmented_images_and_all_labels(batch, augmentation, labels, kind):
    compare(recipe(inner_steps=5, batch=batch, augmentation=augmentation, labels=labels, **kind), students=2, runs=2)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize(("students", "runs"), [(1, 1), (3, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_students_runs_and_chunks(students, runs, chunk, batching):
    config = recipe(batch=4, augmentation=DSA, labels="learned")
    compare(config, students=students, runs=runs, chunk=chunk, batching=batching)


@pytest.mark.parametrize("labels", ["hard", "expert"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_all_images_in_every_step(batching, labels):
    compare(recipe(labels=labels), students=3, runs=1, batching=batching, activation="relu")


def test_steps_that_are_run_again():
    compare(recipe(inner_steps=7, keep=3), students=2, runs=1)


def test_weights_stored_narrow_change_the_derivative_little():
    whole, narrow = (make(recipe(inner_steps=7, storage=storage), students=2) for storage in ("same", "bfloat16"))
    first, second = (method.gradient(learned, method.fresh(0), 0) for method, learned, *_ in (whole, narrow))
    assert torch.equal(first.loss, second.loss)
    for name in first.gradients:
        assert 0 < relative(second.gradients[name], first.gradients[name]) < 1e-2


def test_the_gradient_is_that_of_differences():
    config = recipe(inner_steps=4, batch=4, augmentation=DSA, labels="learned")
    method, learned, _, _ = make(config, students=2)
    drawn = method.fresh(1)
    found = method.gradient(learned, drawn, 1)
    for seed, name in enumerate(learned):
        direction = normal(*learned[name].shape, seed=seed)

        def loss(moved, name=name, direction=direction):
            return method.gradient({**learned, name: learned[name] + moved * direction}, drawn, 1).loss.mean()

        steps = [(8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h) for h in (1e-3,)]
        assert float(steps[0]) == pytest.approx(float((found.gradients[name] * direction).sum()), rel=1e-7)


def test_half_a_gradient_is_half_but_for_the_rate():
    whole, half = (make(recipe(gradient="tesla", labels="learned", halved=h), students=2) for h in (False, True))
    first, second = (method.gradient(learned, method.fresh(0), 0).gradients for method, learned, *_ in (whole, half))
    assert torch.equal(first["images"] / 2, second["images"])
    assert torch.equal(first["labels"] / 2, second["labels"])
    assert torch.equal(first["rate"], second["rate"])


def test_orders_are_used_up_from_the_end():
    students = torch.arange(3)
    config = recipe(inner_steps=8, batch=4)
    tables = minibatches(config, 10, seed=SEED, step=2, students=students)
    assert [table.shape for table in tables] == [(3, 2), (3, 4), (3, 4)] * 2 + [(3, 2), (3, 4)]
    for first in (0, 3):
        order = torch.cat(tables[first : first + 3], dim=1)
        assert (order.sort(dim=1).values == torch.arange(10)).all()
    assert not torch.equal(tables[0], tables[3])  # another order
    assert not torch.equal(tables[1][0], tables[1][1])  # every student's own
    other = minibatches(config, 10, seed=SEED, step=3, students=students)
    assert not any(torch.equal(left, right) for left, right in zip(tables, other, strict=True))
    # a student's order is its own whoever is drawn beside it
    alone = minibatches(config, 10, seed=SEED, step=2, students=students[1:2])
    assert all(torch.equal(left[1:2], right) for left, right in zip(tables, alone, strict=True))
    shorter = minibatches(replace(config, inner_steps=6, batch=5), 10, seed=SEED, step=0, students=students)
    assert [table.shape for table in shorter] == [(3, 5)] * 6
    for batch in (0, 10):
        whole = minibatches(replace(config, batch=batch), 10, seed=SEED, step=0, students=students)
        assert [table.tolist() for table in whole] == [list(range(10))] * 8


def test_students_begin_at_their_experts():
    config = recipe(max_start_epoch=4)
    method, _, _, _ = make(config, students=500, runs=2)
    experts, epochs = followed(config, 4, seed=SEED, step=3, students=torch.arange(1000))
    assert torch.equal(method.fresh(3).weights, method._experts.weights[experts, epochs])
    assert not torch.equal(method.fresh(3).weights, method.fresh(4).weights)
    for drawn in (experts, epochs):  # all of them, about equally often
        assert drawn.bincount(minlength=4).tolist() == pytest.approx([250] * 4, rel=0.2)
    both = (4 * experts + epochs).bincount(minlength=16)
    assert both.min() > 0.6 * 1000 / 16
    again, _ = followed(config, 4, seed=SEED, step=3, students=torch.tensor([700]))
    assert again == experts[700]


def test_only_the_rows_that_are_used_are_read():
    method, learned, _, _ = make(recipe(), students=3, runs=2, chunk=2)
    method.gradient(learned, method.fresh(0), 0)
    assert method._experts.read == 12  # a start and a target for every student


def test_the_loss_is_the_share_of_the_way_that_is_left():
    start, target = normal(2, 32, seed=0), normal(2, 32, seed=1)
    loss, slope = trajectory_loss(start + 0.25 * (target - start), start, target)
    assert torch.allclose(loss, torch.full((2,), 0.5625, dtype=torch.float64))
    assert torch.allclose((slope * (start - target)).sum(1), torch.full((2,), 1.5, dtype=torch.float64))
    assert not trajectory_loss(target, start, start)[0].isfinite().any()


def test_settings_begin_at_the_configured_values():
    learned = initial_settings(
        recipe(labels="learned"), 2, CLASSES, IPC, dtype=torch.float64, device=torch.device("cpu")
    )
    assert learned["rate"].tolist() == [0.1, 0.1]
    assert learned["labels"].shape == (2, CLASSES, IPC, CLASSES)
    assert learned["labels"].argmax(-1)[1].tolist() == [[0, 0], [1, 1], [2, 2]]
    hard = initial_settings(recipe(), 2, CLASSES, IPC, dtype=torch.float64, device=torch.device("cpu"))
    assert hard.keys() == {"rate"}


def test_final_labels_are_what_all_experts_say_at_their_last_target():
    config = recipe(labels="expert")
    method, learned, ensemble, layout = make(config, students=1, runs=2)
    found = final_labels(config, method._primitive, method._experts, learned["images"])
    assert found.shape == (2, CLASSES, IPC, CLASSES)
    views = [layout.views(weights[4]) for weights in method._experts.weights]  # 3 - 1 + 2 epochs
    for run in range(2):
        images = learned["images"][run].flatten(0, 1)
        said = [functional_call(ensemble.module, weights, (images,)).softmax(1) for weights in views]
        assert torch.allclose(found[run].flatten(0, 1), torch.stack(said).mean(0), atol=1e-12)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("later", [0, 2])
def test_a_poisoned_expert_is_masked_named_and_leaves_the_others_their_bits(batching, chunk, later):
    config = recipe(batch=4, labels="expert")
    method, learned, ensemble, layout = make(config, students=3, runs=2, chunk=chunk, batching=batching)
    clean = method.gradient(learned, method.fresh(0), 0)
    experts, epochs = followed(config, 4, seed=SEED, step=0, students=torch.arange(6))
    expert, epoch = int(experts[4]), int(epochs[4]) + later
    layout.views(method._experts.weights[expert, epoch])["body.1.convolution.weight"][0, 0, 0, 0] = torch.nan
    hit = (experts == expert) & ((epochs == epoch) | (epochs + 2 == epoch))
    drawn = method.fresh(0)
    found = method.gradient(learned, drawn, 0)
    assert torch.equal(found.finite, ~hit)
    assert torch.equal(found.loss[found.finite], clean.loss[found.finite])
    sound = [k for k in range(3, 6) if not hit[k]]
    for name, gradient in found.gradients.items():
        each = [textbook(config, learned, ensemble, layout, method._experts, k, 1, 0)[1][name] for k in sound]
        assert relative(gradient[1], torch.stack(each).mean(0)) <= 1e-8
    place = f"weights body.1.convolution.weight of expert {expert} after epoch {epoch}"
    assert method.locate(learned, drawn, 0, 4) == place
    assert method.locate(learned, drawn, 0, sound[0]) == ""


def test_an_expert_that_stands_still_is_masked_and_named():
    method, _, _, _ = make(recipe(), students=1)
    rows = method._experts.weights[:, :1].expand(-1, 7, -1).clone()
    method, learned, _, _ = make(recipe(), students=2, experts=HeldExperts(rows))
    found = method.gradient(learned, method.fresh(0), 0)
    assert not found.finite.any()
    assert not any(gradient.any() for gradient in found.gradients.values())
    assert "which is the same after epochs" in method.locate(learned, method.fresh(0), 0, 1)


def test_a_run_whose_students_diverge_does_not_move_and_says_at_which_step():
    method, learned, _, _ = make(recipe(), students=2, runs=2)
    learned["rate"][1] = 1e300
    found = method.gradient(learned, method.fresh(0), 0)
    assert found.finite.tolist() == [True, True, False, False]
    assert not any(gradient[1].any() for gradient in found.gradients.values())
    assert all(gradient[0].any() for gradient in found.gradients.values())
    assert "inner step 1" in method.locate(learned, method.fresh(0), 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_start_epoch": 6}, "expected experts of at least 7 epochs, got ones of 6: lower method.max_start_epoch"),
        ({"batch": 7}, "expected a batch of at most the 6 synthetic images, got 7: lower method.batch"),
    ],
)
def test_what_does_not_fit_the_experts_or_images_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(recipe(**changes), students=1)


def test_batch_norm_students_are_refused():
    with pytest.raises(ValueError, match=r"^expected students without running statistics .* got batch norm: use "):
        make(recipe(), students=1, norm="batch")
    with pytest.raises(ValueError, match=r"^expected .* for trajectory matching, got mean-only batch norm: use "):
        make(recipe(), students=1, architecture="gtn")


class UnseenExperts:
    """Experts without values, on the meta device."""

    count, epochs = 4, 6

    def __init__(self, size):
        self._size = size

    def at(self, experts, epochs, *, dtype, device):
        assert 0 <= int(epochs.min()) <= int(epochs.max()) <= self.epochs
        return torch.empty(len(experts), self._size, dtype=dtype, device=device)


@pytest.mark.parametrize("labels", ["hard", "expert", "learned"])
@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_a_gradient_never_waits_for_the_device(gradient, labels):
    """On the meta device any look at a value raises."""
    config, meta = recipe(batch=4, gradient=gradient, labels=labels, augmentation=DSA), torch.device("meta")
    ensemble = Ensemble(StudentConfig(width=4, depth=2), SHAPE, CLASSES, seed=SEED, dtype=torch.float64)
    primitive = Functional(ensemble.module, BATCHINGS["vmap"])
    method = TrajectoryMatching(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        UnseenExperts(primitive.layout.size),
        torch.arange(CLASSES, device=meta)[:, None].expand(-1, IPC),
        runs=2,
        students=3,
        chunk=4,
        seed=SEED,
        dtype=torch.float64,
    )
    learned = {"images": torch.empty(2, CLASSES, IPC, *SHAPE, dtype=torch.float64, device=meta)}
    learned |= initial_settings(config, 2, CLASSES, IPC, dtype=torch.float64, device=meta)
    found = method.gradient(learned, method.fresh(0), 0)
    assert all(gradient.is_meta for gradient in found.gradients.values())
    assert found.finite.shape == (6,)
