"""Gradient matching against the textbook in float64."""

import pytest
import torch

from bench.naive import augmentation as naive_augmentation
from bench.naive.convnet import ConvNet as NaiveConvNet
from bench.naive.matching import image_gradient, matching_loss, train_network
from fastdistill.augmentation import dsa
from fastdistill.config import RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.draws import Purpose
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import MatchingConfig
from fastdistill.methods.matching import Batch, GradientMatching
from fastdistill.methods.primitives import Primitives
from fastdistill.students.ensemble import Ensemble, student_module
from tests import gtn

CLASSES, REAL, SHAPE = 3, 6, (1, 8, 8)
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "loop": Batching(path=Path.LOOP, piece=4, students=1),
}


def images(*shape, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, *SHAPE, generator=generator, dtype=torch.float64).to(device)


def make(config, *, students, runs=1, ipc=1, chunk=100, batching="vmap", device, **student):
    settings = StudentConfig(**{"width": 8, "depth": 2, **student})
    ensemble = Ensemble(settings, SHAPE, CLASSES, seed=5, dtype=torch.float64)
    labels = torch.arange(CLASSES, device=device)

    def sample(purpose, step, indices, count):
        real = torch.stack([images(CLASSES, count, seed=1000 * step + int(k), device=device) for k in indices])
        return Batch(images=real, labels=labels[None, :, None].expand(len(indices), -1, count))

    primitive = Functional(ensemble.module, BATCHINGS[batching])
    method = GradientMatching(
        config,
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        sample,
        labels[:, None].expand(-1, ipc),
        runs=runs,
        students=students,
        chunk=chunk,
        seed=5,
    )
    return method, sample, primitive.layout


def textbook_network(layout, weights):
    network = NaiveConvNet(SHAPE[0], CLASSES, width=8, depth=2, image_size=SHAPE[1]).double().to(weights.device)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), layout.views(weights).values(), strict=True):
            parameter.copy_(value)
    return network


def textbook_augment(method, step, student):
    if not method.strategy.operations:
        return None
    draw = dsa.draw_siamese(method.strategy, seed=5, step=step, students=student[None], groups=CLASSES)
    operations = [method.strategy.operations[index] for index in draw.operation[0].tolist()]
    return naive_augmentation.siamese(operations, list(draw.parameters[0, :, 0]), align_corners=True)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("students", [1, 2, 5])
@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_image_gradient_equals_the_textbook(students, ipc, augmentation, batching, device):
    config = MatchingConfig(real_batch=REAL, augmentation=augmentation)
    method, sample, layout = make(config, students=students, ipc=ipc, batching=batching, device=device)
    synthetic = images(1, CLASSES, ipc, seed=7, device=device)
    for step in (0, 3):
        drawn = method.fresh(step)
        found = method.gradient({"images": synthetic}, drawn, step)
        gradient, loss = found.gradients["images"], found.loss
        expected, losses = torch.zeros_like(synthetic[0]), []
        for k in range(students):
            network = textbook_network(layout, drawn.weights[k])
            real = list(sample(None, step, drawn.indices[k : k + 1], REAL).images[0])
            augment = textbook_augment(method, step, drawn.indices[k])
            expected += image_gradient(network, real, synthetic[0], "ours", augment) / students
            losses.append(matching_loss(network, real, synthetic[0], "ours", augment).detach())
        assert relative(gradient[0], expected) <= 1e-8
        assert torch.allclose(loss, torch.stack(losses), rtol=1e-10)


@pytest.mark.parametrize("distance", ["ours", "mse", "l1", "l1_mean", "cos"])
def test_every_distance_equals_the_textbook(distance, device):
    config = MatchingConfig(real_batch=REAL, distance=distance)
    method, sample, layout = make(config, students=1, device=device)
    synthetic = images(1, CLASSES, 1, seed=7, device=device)
    drawn = method.fresh(0)
    gradient = method.gradient({"images": synthetic}, drawn, 0).gradients["images"]
    network = textbook_network(layout, drawn.weights[0])
    real = list(sample(None, 0, drawn.indices, REAL).images[0])
    assert relative(gradient[0], image_gradient(network, real, synthetic[0], distance)) <= 1e-8


def test_pooled_matching_is_one_class_of_everything(device):
    config = MatchingConfig(real_batch=REAL, per_class=False)
    method, sample, layout = make(config, students=2, ipc=2, device=device)
    synthetic = images(1, CLASSES, 2, seed=7, device=device)
    drawn = method.fresh(0)
    gradient = method.gradient({"images": synthetic}, drawn, 0).gradients["images"]
    expected = torch.zeros_like(synthetic)
    labels = torch.arange(CLASSES, device=device)
    for k in range(2):
        network = textbook_network(layout, drawn.weights[k])
        x = synthetic[0].flatten(0, 1).clone().requires_grad_()
        real = sample(None, 0, drawn.indices[k : k + 1], REAL).images[0].flatten(0, 1)
        parameters = list(network.parameters())
        entropy = torch.nn.functional.cross_entropy
        target = torch.autograd.grad(entropy(network(real), labels.repeat_interleave(REAL)), parameters)
        found = torch.autograd.grad(entropy(network(x), labels.repeat_interleave(2)), parameters, create_graph=True)
        loss = sum(
            (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
            for a, b in ((a.flatten(1), b.flatten(1)) for a, b in zip(found, target, strict=True) if a.ndim > 1)
        )
        expected[0] += torch.autograd.grad(loss, x)[0].view_as(expected[0]) / 2
    assert relative(gradient, expected) <= 1e-8


@pytest.mark.parametrize("augmentation", ["none", "crop_rotate"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_runs_at_once_equal_runs_alone_and_chunks_change_nothing(augmentation, chunk, device):
    config = MatchingConfig(real_batch=REAL, augmentation=augmentation)
    together, _, _ = make(config, students=3, runs=2, chunk=chunk, device=device)
    synthetic = images(2, CLASSES, 1, seed=7, device=device)
    drawn = together.fresh(0)
    both = together.gradient({"images": synthetic}, drawn, 0)
    gradient, loss = both.gradients["images"], both.loss
    alone, _, _ = make(config, students=3, device=device)
    for run in range(2):
        single = alone.gradient({"images": synthetic[run : run + 1]}, drawn.some(slice(3 * run, 3 * run + 3)), 0)
        own, own_loss = single.gradients["images"], single.loss
        assert relative(gradient[run : run + 1], own) <= 1e-12
        assert torch.allclose(loss[3 * run : 3 * run + 3], own_loss, rtol=1e-12)


@pytest.mark.parametrize("augmentation", ["none", "flip_scale"])
def test_students_train_between_updates(augmentation, device):
    config = MatchingConfig(real_batch=REAL, outer_loop=2, inner_loop=3, augmentation=augmentation)
    method, _, layout = make(config, students=2, ipc=2, device=device)
    synthetic = images(1, CLASSES, 2, seed=7, device=device)
    drawn = method.fresh(0)
    trained = method.advance({"images": synthetic}, drawn, 0)
    assert method.advance({"images": synthetic}, drawn, 1) is None  # new students begin after the last update
    labels = torch.arange(CLASSES, device=device).repeat_interleave(2)
    flat = synthetic[0].flatten(0, 1)
    for k in range(2):
        network = textbook_network(layout, drawn.weights[k])
        step = iter(range(3))

        def augment(x, k=k, step=step):
            draw = dsa.draw_per_image(
                method.strategy,
                seed=5,
                step=next(step),
                students=drawn.indices[k : k + 1],
                images=len(x),
                purpose=dsa.Purpose.TRAINING_AUGMENTATION,
            )
            name = method.strategy.operations[int(draw.operation[0])]
            rows = [naive_augmentation.diff_augment(x[i : i + 1], name, u) for i, u in enumerate(draw.parameters[0])]
            return torch.cat(rows)

        # one full batch an epoch: the order within it changes rounding alone
        train_network(
            network,
            flat,
            labels,
            3,
            generator=torch.Generator(),
            augment=None if augmentation == "none" else _ordered(augment, flat),
        )
        expected = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        found = torch.cat([view.flatten() for view in layout.views(trained.weights[k]).values()])
        assert relative(found, expected) <= 1e-10


def _ordered(augment, flat):
    """Augments a shuffled batch with each image's own parameters."""

    def apply(x):
        order = [int((flat == image).flatten(1).all(1).nonzero()) for image in x]
        return augment(flat)[order]

    return apply


def test_a_real_mnist_step_equals_the_textbook(real_data):
    data = load_source("mnist", root=str(real_data)).train
    config = RunConfig(method=MatchingConfig(real_batch=4), device="cpu", dtype="float64")
    plan = make_plan(config, data.shape, data.num_classes)
    state, method = initial_state(config, plan, data), make_method(config, plan, data)
    drawn = method.fresh(0)
    found = method.gradient(state.learned, drawn, 0)
    gradient, loss = found.gradients["images"], found.loss
    network = NaiveConvNet(1, 10, width=128, image_size=28).double()
    with torch.no_grad():
        views = plan_layout(config, data).views(drawn.weights[0]).values()
        for parameter, value in zip(network.parameters(), views, strict=True):
            parameter.copy_(value)
    real = list(method._sample(Purpose.REAL_BATCH, 0, drawn.indices, 4).images[0])
    assert relative(gradient[0], image_gradient(network, real, state.images[0])) <= 1e-8
    assert torch.allclose(loss[0], matching_loss(network, real, state.images[0]).detach(), rtol=1e-10)


def plan_layout(config, data):
    return Layout.of(student_module(config.student, data.shape, data.num_classes))


def test_batch_norm_statistics_are_those_of_real_images_before_every_match(device):
    """Recipe step 1: one train-mode forward pass on 16 real images per class, at every update of the images."""
    config = MatchingConfig(real_batch=REAL, outer_loop=3, inner_loop=2)
    method, sample, layout = make(config, students=3, chunk=2, device=device, norm="batch")
    students, synthetic = method.fresh(0), images(1, CLASSES, 1, seed=7, device=device)
    for step in (0, 1):
        prepared = method.prepare({}, students, step)
        for k in range(3):
            network = student_module(StudentConfig(width=8, depth=2, norm="batch"), SHAPE, CLASSES)
            network = network.to_empty(device=device).double()
            state = {name: tensor[k] for name, tensor in students.buffers.items()}
            network.load_state_dict({**layout.views(students.weights[k]), **state})
            network.train()(sample(None, step, students.indices[k : k + 1], 16).images[0].flatten(0, 1))
            for name, expected in network.named_buffers():
                assert torch.allclose(prepared.buffers[name][k].double(), expected.double(), rtol=1e-10), name
        students = method.advance({"images": synthetic}, prepared, step)
        counter = next(name for name in students.buffers if name.endswith("num_batches_tracked"))
        assert students.buffers[counter].tolist() == [3 * (step + 1)] * 3  # one real batch, two epochs of training


def test_batch_norm_statistics_are_frozen_for_the_match(device):
    config = MatchingConfig(real_batch=REAL)
    method, _, _ = make(config, students=2, device=device, norm="batch")
    drawn = method.prepare({}, method.fresh(0), 0)
    before = {name: buffer.clone() for name, buffer in drawn.buffers.items()}
    gradient = method.gradient({"images": images(1, CLASSES, 1, seed=7, device=device)}, drawn, 0).gradients["images"]
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    assert all(torch.equal(drawn.buffers[name], value) for name, value in before.items())


def test_students_train_with_momentum_from_rest_after_every_update(device):
    config = MatchingConfig(outer_loop=3, inner_loop=4, inner_learning_rate=0.1, inner_momentum=0.5)
    method, _, layout = make(config, students=1, ipc=2, device=device)
    synthetic = images(1, CLASSES, 2, seed=7, device=device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(2)
    students = method.fresh(0)
    network = textbook_network(layout, students.weights[0])
    for step in range(2):
        students = method.advance({"images": synthetic}, students, step)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(synthetic[0].flatten(0, 1)), labels).backward()
            optimizer.step()
        found = layout.views(students.weights[0])
        for (name, view), expected in zip(found.items(), network.parameters(), strict=True):
            assert torch.allclose(view, expected, rtol=1e-10, atol=1e-14), (step, name)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_students_with_means_are_matched_at_those_of_real_images(batching, device, monkeypatch):
    gtn.narrow(monkeypatch)
    config = MatchingConfig(real_batch=REAL, outer_loop=2, inner_loop=1)
    method, sample, layout = make(config, students=2, ipc=2, batching=batching, device=device, architecture="gtn")
    students, synthetic = method.fresh(0), images(1, CLASSES, 2, seed=7, device=device)
    for step in (0, 1):
        students = method.prepare({}, students, step)
        found, expected = method.gradient({"images": synthetic}, students, step), torch.zeros_like(synthetic[0])
        for k in range(2):
            parameters = layout.views(students.weights[k])
            seen = sample(None, step, students.indices[k : k + 1], 16).images[0]
            _, means = gtn.forward(parameters, seen.flatten(0, 1))
            # whatever the batch before, the means are those of the real images alone
            for buffer, mean in zip(students.buffers.values(), means, strict=True):
                assert relative(buffer[k], mean) <= 1e-12
            network = student_module(StudentConfig(architecture="gtn"), SHAPE, CLASSES).to_empty(device=device).double()
            network.load_state_dict({**parameters, **dict(zip(students.buffers, means, strict=True))})
            real = list(sample(None, step, students.indices[k : k + 1], REAL).images[0])
            expected += image_gradient(network.eval(), real, synthetic[0]) / 2
        assert relative(found.gradients["images"][0], expected) <= 1e-8
        students = method.advance({"images": synthetic}, students, step)


def test_fixed_students_are_the_same_at_every_step_and_fresh_ones_are_not():
    for kind, same in (("fixed", True), ("fresh", False)):
        ensemble = Ensemble(StudentConfig(width=4, initialization=kind), SHAPE, CLASSES, seed=1, dtype=torch.float64)
        first, later = (ensemble.draw(step, torch.arange(2)).weights for step in (0, 9))
        assert torch.equal(first, later) == same


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_a_poisoned_student_is_masked_and_leaves_the_others_their_bits(batching, chunk, augmentation, device):
    config = MatchingConfig(augmentation=augmentation)
    method, _, layout = make(config, students=5, chunk=chunk, batching=batching, device=device)
    synthetic = images(1, CLASSES, 1, seed=7, device=device)
    drawn = method.fresh(0)
    clean = method.gradient({"images": synthetic}, drawn, 0)
    assert clean.finite.all()
    layout.views(drawn.weights)["body.1.convolution.weight"][3, 0, 0, 0, 0] = torch.nan
    found = method.gradient({"images": synthetic}, drawn, 0)
    assert found.finite.tolist() == [True, True, True, False, True]
    kept = found.finite
    assert torch.equal(found.loss[kept], clean.loss[kept])
    assert found.gradients["images"].isfinite().all()
    # φ's gradient is the mean of the other four, as if they had been alone
    expected = torch.zeros_like(synthetic)
    for student in kept.nonzero()[:, 0].tolist():
        alone, _, _ = make(config, students=1, batching=batching, device=device)
        alone._per_run = 1
        expected += (
            alone.gradient({"images": synthetic}, drawn.some(slice(student, student + 1)), 0).gradients["images"] / 4
        )
    assert relative(found.gradients["images"], expected) < 1e-12
    assert method.locate({"images": synthetic}, drawn, 0, 3) == "weights body.1.convolution.weight"
    assert method.locate({"images": synthetic}, drawn, 0, 2) == ""


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_a_gradient_never_waits_for_the_device(augmentation):
    """On the meta device any look at a value raises; so the whole gradient, masks included, is queued without one."""
    meta = torch.device("meta")
    ensemble = Ensemble(StudentConfig(width=4, depth=2), SHAPE, CLASSES, seed=5, dtype=torch.float64)
    labels = torch.arange(CLASSES, device=meta)

    def sample(purpose, step, indices, count):
        real = torch.empty(len(indices), CLASSES, count, *SHAPE, dtype=torch.float64, device=meta)
        return Batch(images=real, labels=labels[None, :, None].expand(len(indices), -1, count))

    primitive = Functional(ensemble.module, BATCHINGS["vmap"])
    method = GradientMatching(
        MatchingConfig(augmentation=augmentation),
        ensemble,
        Primitives(real=primitive, synthetic=primitive, training=primitive),
        sample,
        labels[:, None],
        runs=1,
        students=3,
        chunk=2,
        seed=5,
    )
    learned = {"images": torch.empty(1, CLASSES, 1, *SHAPE, dtype=torch.float64, device=meta)}
    found = method.gradient(learned, method.fresh(0), 0)
    assert found.gradients["images"].is_meta
    assert found.finite.shape == (3,)


def test_a_run_without_any_finite_student_does_not_move(device):
    method, _, _ = make(MatchingConfig(), students=2, runs=2, device=device)
    drawn = method.fresh(0)
    drawn.weights[:2] = torch.inf
    found = method.gradient({"images": images(2, CLASSES, 1, seed=7, device=device)}, drawn, 0)
    assert found.finite.tolist() == [False, False, True, True]
    assert not found.gradients["images"][0].any()
    assert found.gradients["images"][1].any()
