import pytest
import torch

import bench.problems
from bench.naive.convnet import ConvNet
from bench.problems import DIGITS, PRIMITIVES, Compiled, Problem, any_batch, class_batches, engine_step
from fastdistill.derivatives.dual.primitive import Dual
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path, forward_cost
from fastdistill.method_configs import matching_recipe
from fastdistill.students.ensemble import Ensemble

CPU = torch.device("cpu")


def test_both_sides_have_the_same_network():
    for problem in (DIGITS, Problem(name="lenet", shape=(1, 28, 28), width=1, architecture="lenet")):
        ours = Ensemble(problem.student, problem.shape, 10, seed=0, dtype=torch.float32).module
        shapes = [tuple(parameter.shape) for parameter in ours.parameters()]
        network = problem.network()
        assert [tuple(parameter.shape) for parameter in network.parameters()] == shapes
        assert all(parameter.device == CPU for parameter in network.parameters())
        assert isinstance(network, ConvNet) == (problem.architecture == "convnet")


def test_the_textbook_is_shown_other_images_every_time():
    store, generator = DIGITS.store(CPU), torch.Generator().manual_seed(0)
    first, second = (class_batches(store, 5, generator) for _ in range(2))
    assert [tuple(batch.shape) for batch in first] == [(5, 1, 8, 8)] * 10
    assert not torch.equal(first[0], second[0])
    images, labels = any_batch(store, 7, generator)
    assert images.shape == (7, 1, 8, 8)
    assert labels.shape == (7,)
    assert labels.unique().numel() > 1


def test_the_compiled_primitive_is_the_functional_one(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **{**options, "backend": "aot_eager"}))
    problem = Problem(name="tiny", shape=(1, 8, 8), width=4, depth=1)
    ensemble = Ensemble(problem.student, problem.shape, 10, seed=0, dtype=torch.float64)
    batching = Batching(path=Path.VMAP, piece=5, students=2)
    students = ensemble.draw(0, torch.arange(2))
    images = torch.randn(3, 5, 1, 8, 8, dtype=torch.float64)
    labels = torch.arange(3)[:, None].expand(3, 5)
    vector = torch.randn(2, 3, students.weights.shape[1], dtype=torch.float64)
    results = []
    for primitive in (Functional(ensemble.module, batching), Compiled(ensemble.module, batching)):
        gradient = primitive.value_and_gradient(students.weights, {}, images, labels).gradient
        products = primitive.products(students.weights, {}, images, labels, vector, wanted=("weights", "images"))
        results.append((gradient, products.weights, products.images))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


KINDS = {"functional": Functional, "compiled": Compiled, "dual": Dual, "dual-compiled": Dual, "dual-auto": Dual}


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_an_implementation_is_what_it_is_called(name):
    tiny = Problem(name="tiny", shape=(1, 8, 8), width=4, depth=1)
    module, chosen = Ensemble(tiny.student, tiny.shape, 10, seed=0, dtype=torch.float32).module, PRIMITIVES[name]
    batching = chosen.batching(forward_cost(module, tiny.shape), CPU, students=2, groups=1, images=5)
    assert type(chosen.make(module, batching)) is KINDS[name]
    assert (batching.path is Path.DUAL) == (KINDS[name] is Dual)
    assert batching.compiled == (name in ("dual-compiled", "dual-auto"))


@pytest.mark.parametrize("name", list(PRIMITIVES))
def test_a_step_is_of_the_implementation_that_is_asked_for(name, monkeypatch):
    tiny, primitives = Problem(name="tiny", shape=(1, 8, 8), width=4, depth=1, per_class=5), []
    make_method = bench.problems.make_method

    def kept(config, plan, store, primitive, **further):
        def make(module, batching):
            primitives.append(primitive(module, batching))
            return primitives[-1]

        return make_method(config, plan, store, make, **further)

    monkeypatch.setattr(bench.problems, "make_method", kept)
    engine_step(tiny, matching_recipe("dc", 1, real_batch=2), CPU, students=2, primitive=PRIMITIVES[name])
    assert {type(primitive) for primitive in primitives} == {KINDS[name]}
    assert {primitive.batching.path is Path.DUAL for primitive in primitives} == {KINDS[name] is Dual}
    assert {primitive.batching.compiled for primitive in primitives} == {name in ("dual-compiled", "dual-auto")}
