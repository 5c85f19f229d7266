import pytest
import torch

import fastdistill_kernels as fk
from fastdistill_kernels import roofline
from fastdistill_kernels.convolution_cost import Sizes, cost_convolution
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.roofline import Recorder, Student, held_bytes, recorded
from tests.kernels.test_operators import every_operator

SMALL = Student(students=2, groups=3, shape=(1, 8, 8), width=4, depth=2, padding=1)


def test_a_step_is_made_of_the_calls_it_needs():
    calls = recorded(SMALL, real=5, synthetic=1)
    count = {}
    for call in calls:
        count[call.part, call.operator] = count.get((call.part, call.operator), 0) + 1
    assert count["real gradient", "convolution"] == 1
    assert count["real gradient", "convolution_weight_gradient"] == 1
    assert count["second order", "dual_convolution"] == 1
    assert count["second order", "dual_first_block_backward"] == 1
    assert ("second order", "dual_convolution_weight_gradient") not in count  # K v asks for no weight gradient
    assert count["match", "match"] == 1
    assert all(call.cost.bytes > 0 for call in calls)


def test_bytes_and_products_are_those_of_the_model():
    x = torch.empty(2, 3, 5, 4, 8, 8, device="meta")
    weight = torch.empty(2, 6, 4, 3, 3, device="meta")
    with Recorder() as recorder:
        y = fk.convolution(x, weight, padding=1)
    [call] = recorder.calls
    sizes = Sizes(
        students=2, groups=3, images=5, channels=4, height=8, width=8, features=6, kernel=3, stride=1, padding=1
    )
    assert call.cost.bytes == cost_convolution(sizes, 4).bytes == 4 * (x.numel() + weight.numel() + y.numel())
    assert call.cost.products == cost_convolution(sizes, 4).products == 2 * 2 * 3 * 5 * 6 * 64 * 4 * 9


def test_what_is_shared_counts_once():
    shared = torch.empty(1, 3, 5).expand(7, 3, 5)
    assert held_bytes(shared) == 4 * 15
    assert held_bytes("tf32") == 0


def test_a_floor_is_the_longer_of_two_times():
    cost = Cost(flops=12, bytes=100, products=10) + Cost(flops=8, bytes=100) * 2
    assert cost == Cost(flops=28, bytes=300, products=10)
    assert cost.seconds(products_per_s=1, bytes_per_s=100) == 10
    assert cost.seconds(products_per_s=10, bytes_per_s=100) == 3


def test_parameters_are_those_of_the_student():
    # ConvNet-3-128 on MNIST: 128·9 + 2·128·1152 + 3·3·128 + 10·2048 + 10
    assert Student().parameters() == 128 * 9 + 2 * 128 * 1152 + 9 * 128 + 10 * 2048 + 10
    assert [Student().side(index) for index in range(4)] == [32, 16, 8, 4]


def test_the_step_of_the_design_is_printed(capsys):
    roofline.main()
    printed = capsys.readouterr().out
    calls = recorded(Student(), real=256, synthetic=1)
    seconds = sum(call.seconds for call in calls if call.part != "other methods")
    assert seconds == pytest.approx(19e-3, rel=0.05)  # the design's floor with the first block fused
    assert f"at least {seconds * 1e3:.1f} ms on an H200" in printed and "Not measured" in printed
    assert "products" in printed and "memory" in printed
    shown = {word for line in printed.splitlines() for word in line.split()}
    assert len(every_operator()) >= 30 and every_operator() <= shown
