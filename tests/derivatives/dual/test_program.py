"""What a program computes, and what it leaves out; its values are tested beside the other implementation's."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdistill.derivatives.dual.program import Program
from fastdistill.students.architectures import build_student


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastdistill":
            self.seen[function._schema.name.removeprefix("fastdistill::")] += 1
        return function(*args, **(kwargs or {}))


def problem(**settings):
    module = build_student("convnet", channels=3, height=8, width=8, num_classes=10, depth=2, net_width=4)
    program = Program(module, **settings)
    weights, along = torch.randn(2, program.layout.size), torch.randn(2, 3, program.layout.size)
    images, labels = torch.randn(2, 3, 4, 3, 8, 8), torch.randint(0, 10, (2, 3, 4))
    return program, weights, along, images, labels


def test_a_gradient_takes_no_tangents_and_no_gradient_of_the_images():
    program, weights, _, images, labels = problem()
    with Operators() as found:
        program.gradient(weights, {}, images, labels, 1.0)
    assert found.seen == {
        "convolution": 2,
        "norm_act_pool": 2,
        "linear": 1,
        "softmax_xent": 1,
        "linear_input_gradient": 1,
        "linear_weight_gradient": 1,
        "norm_act_pool_backward": 2,
        "convolution_input_gradient": 1,
        "convolution_weight_gradient": 2,
    }


@pytest.mark.parametrize("of_weights", [False, True])
@pytest.mark.parametrize("of_images", [False, True])
def test_products_compute_what_is_asked_for(of_weights, of_images):
    program, weights, along, images, labels = problem()
    with Operators() as found:
        product = program.product(weights, along, {}, images, labels, 1.0, of_weights=of_weights, of_images=of_images)
    any_of_both = of_weights or of_images
    assert found.seen["dual_convolution"] == 2
    assert found.seen["dual_convolution_weight_gradient"] == 2 * of_weights
    assert found.seen["dual_convolution_input_gradient"] == any_of_both + of_images
    assert found.seen["dual_linear_weight_gradient"] == of_weights
    assert found.seen["dual_norm_act_pool_backward"] == 2 * any_of_both
    assert (product.weights is not None) is of_weights
    assert (product.images is not None) is of_images


def test_a_fused_first_block_gives_the_same():
    program, weights, along, images, labels = problem()
    fused, views = problem(first_block=True)[0], program.layout.views
    assert len(fused.steps) == len(program.steps) - 1
    expected, found = (one.gradient(weights, {}, images, labels, 0.5) for one in (program, fused))
    torch.testing.assert_close(found[0], expected[0])
    for (name, slope), one in zip(views(expected[1]).items(), views(found[1]).values(), strict=True):
        assert (one - slope).norm() <= 1e-5 * slope.norm().clamp_min(1), name
    settings = {"of_weights": True, "of_images": True}
    expected, found = (one.product(weights, along, {}, images, labels, 0.5, **settings) for one in (program, fused))
    assert (found.images - expected.images).norm() <= 1e-5 * expected.images.norm()
    for (name, slope), one in zip(views(expected.weights).items(), views(found.weights).values(), strict=True):
        assert (one - slope).norm() <= 1e-5 * slope.norm().clamp_min(1), name


def test_logits_hold_no_more_than_a_layer_and_its_input():
    program, weights, _, images, _ = problem()
    gone = [number for dead in program._dead for number in dead]
    assert gone == [number for step in program.steps for number in step.inputs]  # of a chain, each when it is read
    assert program.logits(weights, {}, images).shape == (2, 3, 4, 10)
