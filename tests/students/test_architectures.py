from __future__ import annotations

import warnings

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

from fastdistill.students.architectures import ARCHITECTURES, build_student
from tests import gtn

STUDENTS, IMAGES, CLASSES = 2, 3, 3

# Every layer a student can hold, on small images: (architecture, channels, side, options of build_student).
CASES = [
    ("mlp", 2, 3, {}),
    ("lenet", 1, 12, {}),
    ("alexnet", 1, 4, {}),
    ("alexcifarnet", 1, 6, {}),
    ("gtn", 1, 6, {}),
    ("vgg11", 1, 28, {}),
    ("resnet18", 1, 9, {}),
    ("resnet18", 1, 4, {"norm": "batch"}),
    ("resnet18ap", 1, 16, {}),
    ("convnet", 1, 4, {}),
    *[("convnet", 2, 6, {"norm": norm}) for norm in ("none", "group", "layer", "batch")],
    *[("convnet", 2, 6, {"activation": name}) for name in ("leaky_relu", "sigmoid", "swish", "softplus")],
    *[("convnet", 2, 6, {"pooling": name}) for name in ("max", "none")],
]


def build(architecture, channels, side, **options):
    return build_student(
        architecture, channels=channels, height=side, width=side, num_classes=CLASSES,
        **{"depth": 2, "net_width": 4, **options},
    )  # fmt: skip


def random_state(student, seed=0):
    """Weights, one direction and buffers ``[S, ...]`` at the scale that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(STUDENTS, *shape, generator=generator, dtype=torch.float64)

    weights = {
        name: normal(p.shape) * (2 / p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1 * normal(p.shape) + ("weight" in name)
        for name, p in student.named_parameters()
    }
    direction = {name: normal(p.shape) * weights[name].std() for name, p in student.named_parameters()}
    return weights, direction, fresh_buffers(student)


def fresh_buffers(student):
    buffers = {}
    for name, buffer in student.named_buffers():
        dtype = torch.float64 if buffer.is_floating_point() else buffer.dtype
        buffers[name] = torch.full((STUDENTS, *buffer.shape), float(name.endswith("var")), dtype=dtype)
    return buffers


def random_batch(channels, side, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, channels, side, side, generator=generator, dtype=torch.float64)
    return images, torch.arange(IMAGES) % CLASSES


def student_loss(student, weights, buffers, images, labels):
    # Batch norm writes its running statistics: clones made inside every transform keep the caller's buffers untouched.
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    return cross_entropy(functional_call(student, (weights, copies), (images,)), labels)


@pytest.mark.parametrize(
    ("architecture", "channels", "side", "options", "training"),
    [(*case, False) for case in CASES]
    + [(*case, True) for case in CASES if case[0] == "gtn" or case[3].get("norm") == "batch"],
)
def test_forward_over_reverse_equals_double_backward(architecture, channels, side, options, training, monkeypatch):
    # The published widths would only make the same layers slow.
    monkeypatch.setattr("fastdistill.students.vgg.STAGE_WIDTHS", ((4,), (6,), (8, 8), (8, 8), (8, 8)))
    monkeypatch.setattr("fastdistill.students.resnet.STAGE_WIDTHS", (4, 6, 8, 10))
    monkeypatch.setattr("fastdistill.students.alexcifarnet.CHANNELS", 6)
    monkeypatch.setattr("fastdistill.students.alexcifarnet.HIDDEN", (10, 8))
    gtn.narrow(monkeypatch)
    student = build(architecture, channels, side, **options).train(training)
    weights, direction, buffers = random_state(student)
    images, labels = random_batch(channels, side)

    def products(weights, direction, buffers):
        def gradient(weights):
            return grad(lambda w, x: student_loss(student, w, buffers, x, labels), argnums=(0, 1))(weights, images)

        return jvp(gradient, (weights,), (direction,))[1]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batching rule")  # vmap fell back to a loop over students
        hessian_products, image_products = vmap(products)(weights, direction, buffers)

    for index in range(STUDENTS):
        leaves = {name: weight[index].clone().requires_grad_() for name, weight in weights.items()}
        pixels = images.clone().requires_grad_()
        own_buffers = {name: buffer[index] for name, buffer in buffers.items()}
        loss = student_loss(student, leaves, own_buffers, pixels, labels)
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        slope = sum((g * direction[name][index]).sum() for g, name in zip(gradient, leaves, strict=True))
        expected = torch.autograd.grad(slope, [*leaves.values(), pixels], materialize_grads=True)
        actual = [*(hessian_products[name][index] for name in leaves), image_products[index]]
        for found, truth in ((actual[:-1], expected[:-1]), (actual[-1:], expected[-1:])):
            norm = torch.cat([t.flatten() for t in truth]).norm()
            error = torch.cat([(f - t).flatten() for f, t in zip(found, truth, strict=True)]).norm()
            assert norm > 1e-6
            assert error <= 1e-10 * norm


def test_every_architecture_is_in_the_derivative_table():
    assert {case[0] for case in CASES} == set(ARCHITECTURES)
    assert ", ".join(ARCHITECTURES) == "convnet, mlp, lenet, alexnet, alexcifarnet, gtn, vgg11, resnet18, resnet18ap"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_student_is_meta_and_traceable(architecture):
    student = build_student(architecture, channels=3, height=32, width=32, num_classes=10)
    assert {tensor.device.type for tensor in [*student.parameters(), *student.buffers()]} == {"meta"}
    graph = torch.fx.symbolic_trace(student)
    assert graph(torch.empty(5, 3, 32, 32, device="meta")).shape == (5, 10)
    assert not any(getattr(module, "inplace", False) for module in student.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_classifier_on_the_features(architecture):
    student = build_student(architecture, channels=1, height=28, width=28, num_classes=10, device="cpu")
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = student.features(images)
    assert features.shape == (2, student.classifier.weight.shape[1])
    assert torch.equal(student(images), student.classifier(features))
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_building_leaves_the_global_generator_alone(device):
    before = torch.get_rng_state()
    student = build_student("convnet", channels=1, height=8, width=8, num_classes=2, device=device)
    assert torch.equal(torch.get_rng_state(), before)
    assert next(student.parameters()).device.type == device


@pytest.mark.parametrize("compose", [lambda f: f, lambda f: grad(f, has_aux=True)], ids=["forward", "grad"])
def test_batch_norm_statistics_of_each_student(compose):
    student = build("convnet", 2, 6, depth=1, norm="batch").train()
    weights, _, buffers = random_state(student)
    images, labels = random_batch(2, 6)

    def loss_and_statistics(weights, buffers):
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        return cross_entropy(functional_call(student, (weights, copies), (images,)), labels), copies

    _, updated = vmap(compose(loss_and_statistics))(weights, buffers)
    for index in range(STUDENTS):
        maps = torch.nn.functional.conv2d(
            images, weights["body.0.convolution.weight"][index], weights["body.0.convolution.bias"][index], padding=1
        )
        variance, mean = torch.var_mean(maps, dim=(0, 2, 3))
        torch.testing.assert_close(updated["body.0.norm.running_mean"][index], 0.1 * mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(updated["body.0.norm.running_var"][index], 0.9 + 0.1 * variance, rtol=1e-12, atol=0)
    assert updated["body.0.norm.num_batches_tracked"].tolist() == [1] * STUDENTS
    assert all(torch.equal(buffer, fresh_buffers(student)[name]) for name, buffer in buffers.items())


@pytest.mark.parametrize("architecture", ["mlp", "lenet", "alexnet", "alexcifarnet", "gtn"])
def test_plain_architectures_ignore_the_convnet_options(architecture):
    shape = {"channels": 1, "height": 28, "width": 28, "num_classes": 10}
    options = {"depth": 5, "net_width": 7, "norm": "batch", "activation": "swish", "pooling": "max"}
    shapes = [
        [p.shape for p in build_student(architecture, **shape, **chosen).parameters()] for chosen in ({}, options)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet", "did you mean resnet18"),
        ("ConvNet3", r"did you mean convnet\?"),
        ("vgg", "did you mean vgg11"),
        ("zzz", "use one of these"),
    ],
)
def test_unknown_architecture_names_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"expected an architecture out of convnet, mlp, .*, got '{name}': {nearest}"):
        build_student(name, channels=1, height=28, width=28, num_classes=10)


@pytest.mark.parametrize("name", ["channels", "height", "width", "num_classes", "net_width"])
def test_sizes_below_one_are_refused(name):
    sizes = {"channels": 1, "height": 8, "width": 8, "num_classes": 2, name: 0}
    with pytest.raises(ValueError, match=f"expected {name} of at least 1, got 0"):
        build_student("convnet", **sizes)


@pytest.mark.parametrize(("architecture", "channels", "side", "options"), CASES)
@pytest.mark.parametrize("images", [0.0, 1.0], ids=["all zero", "all equal"])
def test_constant_images_of_one_class_give_finite_derivatives(
    architecture, channels, side, options, images, monkeypatch
):
    monkeypatch.setattr("fastdistill.students.vgg.STAGE_WIDTHS", ((4,), (6,), (8, 8), (8, 8), (8, 8)))
    monkeypatch.setattr("fastdistill.students.resnet.STAGE_WIDTHS", (4, 6, 8, 10))
    monkeypatch.setattr("fastdistill.students.alexcifarnet.CHANNELS", 6)
    monkeypatch.setattr("fastdistill.students.alexcifarnet.HIDDEN", (10, 8))
    gtn.narrow(monkeypatch)
    student = build(architecture, channels, side, **options).train()
    weights, direction, buffers = (
        {name: tensor[0].float() if tensor.is_floating_point() else tensor[0] for name, tensor in part.items()}
        for part in random_state(student)
    )
    images = torch.full((IMAGES, channels, side, side), images)
    labels = torch.zeros(IMAGES, dtype=torch.int64)  # the other classes have no image

    def gradient(weights):
        return grad(lambda w, x: student_loss(student, w, buffers, x, labels), argnums=(0, 1))(weights, images)

    for derivatives in jvp(gradient, (weights,), (direction,)):
        assert all(tensor.isfinite().all() for tensor in (*derivatives[0].values(), derivatives[1]))
        assert derivatives[0]["classifier.bias"].abs().max() > 0
