"""The textbook's products against dense derivatives, and the engine's against the textbook's, in float64."""

import pytest
import torch
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from bench.naive.convnet import ConvNet
from bench.naive.products import gradient, hessian_product
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.students.ensemble import student_module


@pytest.fixture
def problem():
    torch.manual_seed(0)
    net = ConvNet(1, 3, width=2, depth=1, image_size=4).double()
    images, labels = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    vector = [torch.randn_like(parameter) for parameter in net.parameters()]
    return net, images, labels, vector


def test_the_product_is_that_of_the_dense_hessian(problem):
    net, images, labels, vector = problem
    names = [name for name, _ in net.named_parameters()]

    def loss(*values):
        return cross_entropy(functional_call(net, dict(zip(names, values, strict=True)), (images,)), labels)

    blocks = hessian(loss, argnums=tuple(range(len(names))))(*(value.detach() for value in net.parameters()))
    for row, found in zip(blocks, hessian_product(net, images, labels, vector), strict=True):
        expected = sum(torch.tensordot(block, v, dims=v.ndim) for block, v in zip(row, vector, strict=True))
        assert (found - expected).norm() <= 1e-10 * max(expected.norm(), 1e-3)


def test_the_engine_gives_the_same(problem):
    net, images, labels, vector = problem
    module = student_module(StudentConfig(width=2, depth=1), (1, 4, 4), 3)
    primitive = Functional(module, Batching(path=Path.LOOP, piece=2, students=1))
    layout = primitive.layout

    def flat(tensors):
        return layout.flatten(dict(zip(layout.shapes, tensors, strict=True)))

    weights = flat([value.detach() for value in net.parameters()])[None]
    ours = primitive.value_and_gradient(weights, {}, images[None], labels[None]).gradient[0, 0]
    theirs = flat(gradient(net, images, labels))
    assert (ours - theirs).norm() <= 1e-12 * theirs.norm()
    along = flat(vector)[None, None]
    ours = primitive.products(weights, {}, images[None], labels[None], along, wanted=("weights",)).weights[0, 0]
    theirs = flat(hessian_product(net, images, labels, vector))
    assert (ours - theirs).norm() <= 1e-12 * theirs.norm()
