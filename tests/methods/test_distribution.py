"""Distribution matching against the textbook in float64."""

import pytest
import torch

from bench.naive.distribution import distribution_loss, image_gradient
from fastdistill.config import StudentConfig
from fastdistill.derivatives.embedding import Embedding
from fastdistill.method_configs import DistributionConfig
from fastdistill.methods.distribution import DistributionMatching, Embeddings
from fastdistill.methods.matching import Batch
from fastdistill.students.ensemble import Ensemble
from tests import gtn
from tests.methods.test_matching import (
    BATCHINGS,
    CLASSES,
    REAL,
    SHAPE,
    images,
    relative,
    textbook_augment,
    textbook_network,
)


def make(config, *, students, runs=1, ipc=1, chunk=100, batching="vmap", device, **student):
    settings = StudentConfig(**{"width": 8, "depth": 2, **student})
    ensemble = Ensemble(settings, SHAPE, CLASSES, seed=5, dtype=torch.float64)
    labels = torch.arange(CLASSES, device=device)

    def sample(purpose, step, indices, count):
        real = torch.stack([images(CLASSES, count, seed=1000 * step + int(k), device=device) for k in indices])
        return Batch(images=real, labels=labels[None, :, None].expand(len(indices), -1, count))

    embedding = Embedding(ensemble.module, BATCHINGS[batching])
    method = DistributionMatching(
        config,
        ensemble,
        Embeddings(real=embedding, synthetic=embedding),
        sample,
        labels[:, None].expand(-1, ipc),
        runs=runs,
        students=students,
        chunk=chunk,
        seed=5,
    )
    return method, sample, embedding.layout


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_image_gradient_equals_the_textbook(students, ipc, augmentation, batching, device):
    config = DistributionConfig(real_batch=REAL, augmentation=augmentation)
    method, sample, layout = make(config, students=students, ipc=ipc, batching=batching, device=device)
    synthetic = images(1, CLASSES, ipc, seed=7, device=device)
    drawn = method.fresh(3)
    found = method.gradient({"images": synthetic}, drawn, 3)
    expected, losses = torch.zeros_like(synthetic[0]), []
    for k in range(students):
        network = textbook_network(layout, drawn.weights[k])
        real = list(sample(None, 3, drawn.indices[k : k + 1], REAL).images[0])
        augment = textbook_augment(method, 3, drawn.indices[k])
        expected += image_gradient(network, real, synthetic[0], augment) / students
        losses.append(distribution_loss(network, real, synthetic[0], augment).detach())
    assert relative(found.gradients["images"][0], expected) <= 1e-8
    assert torch.allclose(found.loss, torch.stack(losses), rtol=1e-10)
    assert bool(found.finite.all())


def test_finite_differences(device):
    config = DistributionConfig(real_batch=REAL, augmentation="none")
    method, _, _ = make(config, students=2, ipc=2, device=device)
    synthetic = images(1, CLASSES, 2, seed=7, device=device)
    drawn, way = method.fresh(0), images(1, CLASSES, 2, seed=8, device=device)

    def loss(length):
        return method.gradient({"images": synthetic + length * way}, drawn, 0).loss.mean()

    slope = (method.gradient({"images": synthetic}, drawn, 0).gradients["images"] * way).sum()
    assert float((loss(1e-6) - loss(-1e-6)) / 2e-6) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("augmentation", ["none", "crop_rotate"])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_runs_at_once_equal_runs_alone_and_chunks_change_nothing(augmentation, chunk, device):
    config = DistributionConfig(real_batch=REAL, augmentation=augmentation)
    together, _, _ = make(config, students=3, runs=2, chunk=chunk, device=device)
    synthetic = images(2, CLASSES, 1, seed=7, device=device)
    drawn = together.fresh(0)
    both = together.gradient({"images": synthetic}, drawn, 0)
    alone, _, _ = make(config, students=3, device=device)
    for run in range(2):
        single = alone.gradient({"images": synthetic[run : run + 1]}, drawn.some(slice(3 * run, 3 * run + 3)), 0)
        assert relative(both.gradients["images"][run : run + 1], single.gradients["images"]) <= 1e-12
        assert torch.allclose(both.loss[3 * run : 3 * run + 3], single.loss, rtol=1e-12)


def test_batch_norm_sees_all_classes(device):
    config = DistributionConfig(real_batch=REAL, augmentation="none")
    method, sample, layout = make(config, students=1, ipc=2, device=device, norm="batch")
    synthetic = images(1, CLASSES, 2, seed=7, device=device)
    drawn = method.fresh(0)
    found = method.gradient({"images": synthetic}, drawn, 0)
    # one network in train mode, shown all classes as one batch, means class by class afterwards
    ensemble = Ensemble(StudentConfig(width=8, depth=2, norm="batch"), SHAPE, CLASSES, seed=5, dtype=torch.float64)
    network = ensemble.module.to_empty(device=device).double().train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(layout.views(drawn.weights[:1])[name][0])
    leaf = synthetic.clone().requires_grad_()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    real = sample(None, 0, drawn.indices, REAL).images[0]
    target = network.features(real.flatten(0, 1)).detach().unflatten(0, (CLASSES, REAL)).mean(1)
    mean = network.features(leaf[0].flatten(0, 1)).unflatten(0, (CLASSES, 2)).mean(1)
    loss = (target - mean).square().sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    assert relative(found.gradients["images"], expected) <= 1e-8
    assert float(found.loss[0]) == pytest.approx(float(loss.detach()), rel=1e-10)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_means_are_those_of_all_classes_and_differentiated(batching, device, monkeypatch):
    gtn.narrow(monkeypatch)
    config = DistributionConfig(real_batch=REAL, augmentation="none")
    method, sample, layout = make(config, students=2, ipc=2, batching=batching, device=device, architecture="gtn")
    synthetic, drawn = images(1, CLASSES, 2, seed=7, device=device), method.fresh(0)
    found, total = method.gradient({"images": synthetic}, drawn, 0), torch.zeros_like(synthetic)
    for k in range(2):
        leaf, parameters = synthetic.clone().requires_grad_(), dict(layout.views(drawn.weights[k]))
        # the classifier hands on its inputs
        parameters["classifier.weight"] = torch.eye(6, dtype=torch.float64, device=device)
        parameters["classifier.gain"] = torch.ones(6, dtype=torch.float64, device=device)
        parameters["classifier.bias"] = torch.zeros(6, dtype=torch.float64, device=device)
        real = sample(None, 0, drawn.indices[k : k + 1], REAL).images[0]
        target = gtn.forward(parameters, real.flatten(0, 1))[0].unflatten(0, (CLASSES, REAL)).mean(1)
        mean = gtn.forward(parameters, leaf[0].flatten(0, 1))[0].unflatten(0, (CLASSES, 2)).mean(1)
        loss = (target - mean).square().sum()
        total += torch.autograd.grad(loss, leaf)[0] / 2
        assert float(found.loss[k]) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert relative(found.gradients["images"], total) <= 1e-8


def test_a_non_finite_network_is_left_out_and_located(device):
    config = DistributionConfig(real_batch=REAL, augmentation="none")
    method, _, _ = make(config, students=2, device=device)
    synthetic = images(1, CLASSES, 1, seed=7, device=device)
    drawn = method.fresh(0)
    alone, _, _ = make(config, students=1, device=device)
    sound = alone.gradient({"images": synthetic}, drawn.some(slice(1, 2)), 0).gradients["images"]
    drawn.weights[0] = float("nan")
    found = method.gradient({"images": synthetic}, drawn, 0)
    assert found.finite.tolist() == [False, True]
    assert relative(found.gradients["images"], sound) <= 1e-12
    assert "weight" in method.locate({"images": synthetic}, drawn, 0, 0)
    assert method.locate({"images": synthetic}, drawn, 0, 1) == ""


def test_a_step_needs_no_second_derivative(device, monkeypatch):
    """Neither a forward-mode tangent nor a graph of a gradient is made."""

    def refuse(*arguments, **options):
        raise AssertionError("second order")

    monkeypatch.setattr("fastdistill.derivatives.functional.jvp", refuse)
    monkeypatch.setattr("fastdistill.derivatives.functional.grad_and_value", refuse)
    method, _, _ = make(DistributionConfig(real_batch=REAL), students=2, device=device)
    found = method.gradient({"images": images(1, CLASSES, 1, seed=7, device=device)}, method.fresh(0), 0)
    assert float(found.gradients["images"].norm()) > 0
