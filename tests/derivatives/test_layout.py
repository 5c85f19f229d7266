import pytest
import torch
from torch import nn

from fastdistill.derivatives.layout import Layout


def module():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(40, 5))


def test_tensors_are_aligned_in_order_and_counted_without_padding():
    layout = Layout.of(module())
    assert list(layout.shapes.values()) == [(3, 2, 3, 3), (3,), (5, 40), (5,)]
    assert list(layout.offsets.values()) == [0, 64, 96, 320]
    assert layout.size == 352
    assert layout.count == 54 + 3 + 200 + 5


def test_views_share_memory_and_flatten_inverts_them():
    layout = Layout.of(module())
    flat = torch.zeros(2, 3, layout.size)
    for index, view in enumerate(layout.views(flat).values()):
        view.fill_(index + 1.0)
    assert flat[1, 2, 0] == 1
    assert flat[1, 2, 54:64].eq(0).all()
    assert torch.equal(layout.flatten(layout.views(flat)), flat)


def test_segments_leave_the_padding_out():
    layout = Layout.of(module())
    assert layout.segments(["0.weight", "1.bias"]) == [slice(0, 54), slice(320, 325)]


def test_a_tensor_of_another_student_is_named():
    with pytest.raises(ValueError, match="expected a flat parameter tensor"):
        Layout.of(module()).views(torch.zeros(2, 7))
