from dataclasses import replace

import pytest
import torch
from torch import nn

from fastdistill.derivatives import plan
from fastdistill.derivatives.plan import Batching, Cost, Path, choose_batching
from fastdistill.students.architectures import build_student

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def forward_cost(module, shape):
    """Of a student that the dual program would not take."""
    return replace(plan.forward_cost(module, shape), unsupported="it is not to be")


def convnet(width, size=28):
    return build_student("convnet", channels=1, height=size, width=size, num_classes=10, net_width=width)


def test_a_single_small_pair_is_not_batched():
    cost = Cost(flops=10**6, activations=10**4, largest=10**3)
    alone = choose_batching(cost, CPU, students=1, groups=1, images=10)
    assert alone == Batching(path=Path.LOOP, piece=10, students=1)
    assert choose_batching(cost, CPU, students=2, groups=1, images=10).path is Path.VMAP
    assert choose_batching(cost, CPU, students=1, groups=2, images=10).path is Path.VMAP


def test_the_cost_of_an_image_is_counted_by_hand():
    cost = forward_cost(convnet(16), (1, 28, 28))
    macs = 32 * 32 * 16 * 9 + 16 * 16 * 16 * 16 * 9 + 8 * 8 * 16 * 16 * 9 + 256 * 10
    assert cost.flops == 2 * macs
    assert cost.largest == 32 * 32 * 16
    assert cost.activations > 3 * cost.largest


def test_counting_leaves_the_module_alone():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())  # a 1x1 map: training would be refused
    assert forward_cost(module, (1, 3, 3)).flops == 2 * 4 * 9
    assert module[0].weight.device.type == "cpu"
    assert module.training


def test_small_pairs_share_a_program_and_large_ones_loop_in_pieces():
    small, large = (forward_cost(convnet(width), (1, 28, 28)) for width in (16, 128))
    rule = choose_batching(small, CPU, students=8, groups=10, images=1)
    assert rule.path is Path.VMAP
    rule = choose_batching(large, CPU, students=8, groups=10, images=256)
    assert rule.path is Path.LOOP
    assert 4 <= rule.piece <= 32


def test_cuda_always_shares_a_program_within_what_can_be_indexed():
    cost = forward_cost(convnet(128), (1, 28, 28))
    rule = choose_batching(cost, CUDA, students=16, groups=10, images=256)
    assert rule.path is Path.VMAP
    assert rule.students * 10 * rule.piece * cost.largest < 2**31
    rule = choose_batching(cost, CUDA, students=16, groups=100, images=256)
    assert rule.students == 1
    assert 100 * rule.piece * cost.largest < 2**31


def test_the_choice_is_a_function_of_shapes_alone():
    cost = forward_cost(convnet(64), (1, 28, 28))
    arguments = {"students": 8, "groups": 10, "images": 10}
    assert choose_batching(cost, CPU, **arguments) == choose_batching(cost, CPU, **arguments)


def test_a_batching_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Batching(path=Path.LOOP, piece=0, students=1)


def test_known_layers_are_a_dual_program_of_as_many_images_as_stay_in_cache():
    small, large = (plan.forward_cost(convnet(width), (1, 28, 28)) for width in (16, 128))
    rule = choose_batching(large, CPU, students=8, groups=10, images=256)
    assert (rule.path, rule.groups, rule.students) == (Path.DUAL, 1, 1)
    assert 4 <= rule.piece <= 64
    rule = choose_batching(small, CPU, students=8, groups=10, images=1)
    assert rule == Batching(path=Path.DUAL, piece=1, groups=10, students=8)
    rule = choose_batching(small, CPU, students=100, groups=10, images=2)
    assert rule.groups == 10 and 1 < rule.students < 100


def test_what_the_dual_program_leaves_to_torch_func():
    shape = (3, 32, 32)
    norm = build_student("convnet", channels=3, height=32, width=32, num_classes=10, norm="batch")
    cost = plan.forward_cost(norm, shape)
    arguments = {"students": 2, "groups": 1, "images": 10}
    assert cost.buffers and not cost.unsupported
    assert choose_batching(cost, CPU, **arguments).path is Path.LOOP  # statistics are the batch's
    assert choose_batching(cost, CPU, **arguments, frozen=True).path is Path.DUAL
    assert choose_batching(cost, CUDA, **arguments, frozen=True).path is Path.VMAP  # not measured there yet
    other = build_student("alexcifarnet", channels=3, height=32, width=32, num_classes=10)
    assert "MaxPool2d(kernel_size=3" in plan.unsupported(other)
    assert choose_batching(plan.forward_cost(other, shape), CPU, **arguments).path is Path.LOOP
