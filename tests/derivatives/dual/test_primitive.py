"""What is the dual primitive's own: pieces of any size, fallback, compilation. Values: ``../test_functional.py``."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from fastdistill.derivatives.dual.graph import Unsupported
from fastdistill.derivatives.dual.primitive import Dual
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import initial_buffers
from tests.compiling import compiles

WHOLE = Batching(path=Path.DUAL, piece=100, students=100, groups=100)


def problem(students=3, groups=2, images=5, **options):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10, depth=2, net_width=4, **options)
    size = Dual(module, WHOLE).layout.size
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = 0.3 * random(students, size)
    buffers = initial_buffers(module, students, dtype=torch.float64, device=torch.device("cpu"))
    lead = (students, groups, images)
    return module, (weights, buffers, random(*lead, 1, 8, 8), random(*lead, 10).abs()), random(students, groups, size)


def everything(primitive, given, vector):
    gradients, products = primitive.value_and_gradient(*given), primitive.products(*given, vector)
    logits = primitive.logits(given[0], given[1], given[2][:, 0])
    return [
        gradients.loss, gradients.gradient, products.loss_tangent, products.weights, products.images, products.labels,
        logits,
    ]  # fmt: skip


def relative(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("piece", "students", "groups"), [(1, 1, 1), (2, 2, 2), (3, 1, 2), (5, 3, 1), (4, 2, 1)])
def test_pieces_of_any_size_add_up(piece, students, groups):
    module, given, vector = problem()
    batching = Batching(path=Path.DUAL, piece=piece, students=students, groups=groups)
    assert (
        relative(everything(Dual(module, batching), given, vector), everything(Dual(module, WHOLE), given, vector))
        <= 1e-12
    )


def test_a_student_keeps_its_bits_whatever_others_run_beside_it():
    module, given, vector = problem(students=4)
    whole = everything(Dual(module, Batching(path=Path.DUAL, piece=2, students=1, groups=2)), given, vector)
    alone = everything(
        Dual(module, Batching(path=Path.DUAL, piece=2, students=1, groups=2)),
        [given[0][2:3], {}, given[2][2:3], given[3][2:3]],
        vector[2:3],
    )
    assert all(torch.equal(one[0], all_[2]) for one, all_ in zip(alone, whole, strict=True))


def test_statistics_of_a_batch_are_left_to_the_functional_primitive():
    module, given, vector = problem(groups=1, norm="batch")
    dual, functional = Dual(module, WHOLE), Functional(module, Batching(path=Path.LOOP, piece=100, students=1))
    found, expected = (one.value_and_gradient(*given, training=True) for one in (dual, functional))
    assert torch.equal(found.gradient, expected.gradient)
    assert all(torch.equal(found.buffers[name], tensor) for name, tensor in expected.buffers.items())
    found, expected = (one.products(*given, vector, training=True) for one in (dual, functional))
    assert torch.equal(found.images, expected.images)


def test_the_batching_says_which_primitive_it_is():
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10)
    assert type(make_primitive(module, WHOLE)) is Dual
    assert type(make_primitive(module, Batching(path=Path.VMAP, piece=1, students=1))) is Functional
    with pytest.raises(Unsupported, match="MaxPool2d"):
        other = build_student("alexcifarnet", channels=3, height=32, width=32, num_classes=10)
        make_primitive(other, WHOLE)


def test_products_in_bfloat16_err_by_its_rounding():
    module, given, vector = problem(activation="softplus")  # smooth, as is average pooling: no rounding crosses a kink
    expected = everything(Dual(module, WHOLE), given, vector)
    single = [given[0].float(), {}, given[2].float(), given[3].float()]
    narrow = Dual(module, Batching(path=Path.DUAL, piece=100, students=100, groups=100, precision="bfloat16"))
    found = everything(narrow, single, vector.float())
    assert all(tensor.dtype == torch.float32 for tensor in found)
    errors = [relative([one], [other]) for one, other in zip(found, expected, strict=True)]
    wide = everything(Dual(module, WHOLE), single, vector.float())
    assert max(errors) <= 2e-2
    assert all(
        relative([one], [other]) <= 1e-5 < error for one, other, error in zip(wide, expected, errors, strict=True)
    )


OPTIONS = {
    "instance": {},
    "max, softplus": {"norm": "none", "pooling": "max", "activation": "softplus"},
    "layer, swish": {"norm": "layer", "activation": "swish"},
    "batch": {"norm": "batch", "pooling": "none", "activation": "leaky_relu"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_program_compiles_whole_and_once(name, monkeypatch):
    """As the compiler traces it; what it makes of that is the next test's."""
    traced = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced)
    module, given, vector = problem(**OPTIONS[name])
    size = {"piece": 3, "students": 3, "groups": 2}  # five images are pieces of three and of two
    compiled = Dual(module, Batching(path=Path.DUAL, compiled=True, **size))
    counters.clear()
    found = everything(compiled, given, vector)
    assert counters["stats"]["unique_graphs"] == 6  # gradient, product and logits, each for both sizes
    assert not counters["graph_break"]
    assert relative(found, everything(Dual(module, Batching(path=Path.DUAL, **size)), given, vector)) <= 1e-12
    moved = [given[0] * 0.9, given[1], given[2] * 1.1, given[3] + 1]
    again = everything(compiled, moved, vector * 3)
    assert counters["stats"]["unique_graphs"] == 6
    assert relative(again, everything(Dual(module, Batching(path=Path.DUAL, **size)), moved, vector * 3)) <= 1e-12


def test_a_program_is_compiled_for_many_sizes(monkeypatch):
    traced = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced)
    module, (weights, buffers, images, labels), _ = problem(images=12)
    compiled = Dual(module, Batching(path=Path.DUAL, piece=12, students=3, groups=2, compiled=True))
    for count in range(1, 13):  # a compiler's own limit is 8
        some = images[:, :, :count], labels[:, :, :count]
        found = compiled.value_and_gradient(weights, buffers, *some)
        expected = Dual(module, WHOLE).value_and_gradient(weights, buffers, *some)
        assert relative([found.gradient], [expected.gradient]) <= 1e-12


@compiles
def test_a_compiled_program_computes_the_same():
    module, given, vector = problem(images=2)
    compiled = Dual(module, Batching(path=Path.DUAL, piece=2, students=3, groups=2, compiled=True))
    assert relative(everything(compiled, given, vector), everything(Dual(module, WHOLE), given, vector)) <= 1e-12
