"""Mean features and their pull-back against plain autograd in float64."""

import pytest
import torch
from torch.func import functional_call

from fastdistill.derivatives.embedding import Embedding
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import initial_buffers, initial_weights

SHAPE, GROUPS, COUNT, STUDENTS = (1, 8, 8), 3, 4, 3
BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap in twos": Batching(path=Path.VMAP, piece=5, students=2),
    "loop": Batching(path=Path.LOOP, piece=5, students=1),
}


def student(architecture="convnet", norm="instance"):
    side = 8 if architecture in ("convnet", "mlp") else 32
    sizes = {"channels": 1, "height": side, "width": side, "num_classes": 5}
    return build_student(architecture, **sizes, depth=2, net_width=4, norm=norm), (1, side, side)


def given(module, shape, *, shared, device, count=COUNT, students=STUDENTS):
    generator = torch.Generator().manual_seed(1)
    own = () if shared else (students,)
    images = torch.randn(*own, GROUPS, count, *shape, generator=generator, dtype=torch.float64).to(device)
    indices = torch.arange(students, device=device)
    weights = initial_weights(module, "default", seed=3, step=0, students=indices).double()
    return weights, initial_buffers(module, students, dtype=torch.float64, device=device), images


def features(module, layout, weights, buffers, images, k):
    """Mean features ``[G, F]`` of one student, groups one after the other once the network has seen all."""
    own = {name: tensor[k] for name, tensor in layout.views(weights).items()}
    state = {name: tensor[k].clone() for name, tensor in buffers.items()}
    module.train()
    shown = images if images.ndim == 5 else images[k]
    kept = []
    hook = module.classifier.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    functional_call(module, {**own, **state}, (shown.flatten(0, 1),))
    hook.remove()
    return torch.stack([part.mean(0) for part in kept[0].split(images.shape[-4])])


def relative(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_means_and_their_pull_back_equal_autograd(norm, shared, batching, device):
    module, shape = student(norm=norm)
    embedding = Embedding(module, BATCHINGS[batching])
    weights, buffers, images = given(module, shape, shared=shared, device=device)
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    found = embedding.means(weights, buffers, images)
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    pulled = embedding.pull(weights, buffers, images, cotangent)
    assert pulled.shape == (STUDENTS, GROUPS, COUNT, *shape)
    for k in range(STUDENTS):
        leaf = images.clone().requires_grad_()
        expected = features(module, embedding.layout, weights, buffers, leaf, k)
        assert relative(found[k], expected) <= 1e-12
        (gradient,) = torch.autograd.grad((expected * cotangent[k]).sum(), leaf)
        assert relative(pulled[k], gradient if shared else gradient[k]) <= 1e-12
    assert all(torch.equal(before[name], tensor) for name, tensor in buffers.items())


@pytest.mark.parametrize("architecture", ["mlp", "lenet", "alexnet", "vgg11", "resnet18"])
def test_every_architecture_has_features(architecture, device):
    module, shape = student(architecture)
    embedding = Embedding(module, BATCHINGS["vmap"])
    weights, buffers, images = given(module, shape, shared=True, device=device, count=1, students=2)
    found = embedding.means(weights, buffers, images)
    for k in range(2):
        assert relative(found[k], features(module, embedding.layout, weights, buffers, images, k)) <= 1e-10


def test_wrong_shapes_are_named(device):
    module, shape = student()
    embedding = Embedding(module, BATCHINGS["vmap"])
    weights, buffers, images = given(module, shape, shared=False, device=device)
    with pytest.raises(ValueError, match=r"expected weights \[S, \d+\] and images .*: add the missing axes"):
        embedding.means(weights, buffers, images[0, 0])
    with pytest.raises(ValueError, match=r"got \(2, \d+\) and \(3, 3, 4, 1, 8, 8\)"):
        embedding.means(weights[:2], buffers, images)
    with pytest.raises(ValueError, match=r"expected a cotangent \[3, 3, F\], got \(3, 2, 7\)"):
        embedding.pull(weights, buffers, images, torch.zeros(3, 2, 7))
    with pytest.raises(ValueError, match=r"expected a student with features.*got Linear: add that method"):
        Embedding(torch.nn.Linear(2, 2), BATCHINGS["vmap"])
