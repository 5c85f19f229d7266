"""Operations against torch's own counter where that one is right, and against students one by one where it is not."""

import pytest
import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from fastdistill.derivatives.flops import Counted, Work, convolution_backward
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.memory import Ledger, trace
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.students.architectures import build_student


class Nowhere:
    """In place of the counter's module tracker, whose hooks forward over reverse mode does not bear."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def torch_counts(program):
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Nowhere()
    with counter:
        program()
    return counter.get_total_flops()


def ledger_counts(program):
    with Ledger() as ledger:
        program()
    return ledger.flops


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mask", [(True, True), (True, False), (False, True)])
def test_a_convolution_goes_back_at_the_cost_of_each_gradient(transposed, groups, mask):
    """Every place meets every element of the kernel once, in the forward pass and for either gradient."""
    images = torch.zeros(5, 4, 7, 6)
    weight = torch.zeros(4, 6 // groups, 3, 3) if transposed else torch.zeros(6, 4 // groups, 3, 3)
    options = ([2, 1], [1, 0], [1, 1], transposed, [0, 0], groups)
    forward = torch.ops.aten.convolution(images, weight, None, *options)
    counted = ledger_counts(lambda: torch.ops.aten.convolution(images, weight, None, *options))
    assert counted == torch_counts(lambda: torch.ops.aten.convolution(images, weight, None, *options))
    call = (torch.zeros_like(forward), images, weight, None, *options)
    back = ledger_counts(lambda: torch.ops.aten.convolution_backward(*call, [*mask, False]))
    assert back == sum(mask) * counted == convolution_backward(*call, [*mask, False])
    if groups == 1:
        assert back == torch_counts(lambda: torch.ops.aten.convolution_backward(*call, [*mask, False]))


def test_students_batched_as_groups_count_as_often_as_there_are():
    """Where torch's own formula counts their weight gradients as often as there are groups."""
    images, weight = torch.zeros(5, 4, 6, 6), torch.zeros(8, 2, 3, 3, requires_grad=True)

    def program():
        conv2d(images, weight, groups=2).sum().backward()

    def alone():
        conv2d(images[:, :2], weight[:4].detach().requires_grad_()).sum().backward()

    assert ledger_counts(program) == 2 * ledger_counts(alone)
    assert torch_counts(program) > 2 * torch_counts(alone)


@pytest.mark.parametrize("kind", ["gradient", "products", "logits"])
def test_a_primitive_takes_what_torch_counts(kind):
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=3, depth=2, net_width=4)
    primitive = Functional(module, Batching(path=Path.LOOP, piece=3, students=1))
    weights, images = torch.randn(2, primitive.layout.size), torch.randn(2, 1, 5, 1, 8, 8)
    labels = torch.zeros(2, 1, 5, dtype=torch.int64)

    def program():
        if kind == "gradient":
            primitive.value_and_gradient(weights, {}, images, labels)
        elif kind == "products":
            primitive.products(weights, {}, images, labels, weights[:, None], wanted=("weights", "images"))
        else:
            primitive.logits(weights, {}, images[:, 0])

    assert ledger_counts(program) == torch_counts(program) > 0


def test_matrix_products_count_and_the_rest_does_not():
    left, right = torch.zeros(3, 4), torch.zeros(4, 5)
    assert trace(lambda x, y: (x @ y).exp().sum(), left, right).flops == 2 * 3 * 4 * 5
    assert trace(lambda x: (x * x).sum(), left).flops == 0


def test_counting_a_program_leaves_its_bits_alone():
    images, weight = torch.randn(3, 2, 8, 8), torch.randn(4, 2, 3, 3, requires_grad=True)

    def program():
        return torch.autograd.grad(conv2d(images, weight).square().sum(), weight)[0]

    expected = program()
    with Counted() as counted:
        assert torch.equal(program(), expected)
    assert counted.work.flops == ledger_counts(program) > 0


def test_work_is_that_of_the_innermost_label():
    a, b = torch.ones(4, 6), torch.ones(6, 2)
    with Counted() as counted:
        c = a @ b
        with torch.profiler.record_function("outer"):
            c = c.t()
            with torch.profiler.record_function("inner"):
                d = c + 1
            torch.empty(1000)
        assert d.shape == (2, 4)
    assert counted.phases == {
        "": Work(flops=2 * 4 * 6 * 2, dispatches=1, launches=1, traffic=4 * (4 * 6 + 6 * 2 + 4 * 2)),
        # a view moves nothing, an allocation neither
        "outer": Work(dispatches=2, launches=1),
        "inner": Work(dispatches=1, launches=1, traffic=4 * (8 + 8)),
    }
    assert counted.work == Work(flops=96, dispatches=4, launches=3, traffic=176 + 64)
    # the product is bound by its arithmetic, the sum by what it moves, and the rest by nothing
    assert counted.floor_seconds(flops_per_s=2, bytes_per_s=16) == 96 / 2 + 64 / 16
    assert counted.floor_seconds(flops_per_s=96, bytes_per_s=16) == 176 / 16 + 64 / 16


def test_a_repeated_tensor_moves_what_it_holds():
    row = torch.ones(1, 8).expand(100, 8)
    with Counted() as counted:
        row.sum()
    assert counted.work.traffic == 4 * 8 + 4


def test_a_custom_operator_counts_by_the_formula_it_has_registered():
    @torch.library.custom_op("fastdistill_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    register_flop_formula(torch.ops.fastdistill_test.twice)(lambda shape, **_: 7 * shape[0])
    with Counted() as counted:
        twice(torch.ones(5))
    assert counted.work.flops == 35
    assert ledger_counts(lambda: twice(torch.ones(5))) == 35
