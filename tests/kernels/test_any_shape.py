"""Kernels on shapes that hypothesis thinks of."""

import torch

from fastdistill_kernels import DISTANCES, RowTable
from fastdistill_kernels.reference.activation import ACTIVATIONS
from fastdistill_kernels.reference.pooling import POOLINGS
from tests.kernels.any_shape import given, settings, st
from tests.kernels.test_first_block import check_kernels as check_first_block
from tests.kernels.test_match import check_kernel
from tests.kernels.test_norm_act_pool import Layer
from tests.kernels.test_norm_act_pool import check_kernel as check_layer

ANY = settings(max_examples=15, deadline=None, derandomize=True)


@ANY
@given(extent=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_memory_that_nobody_wrote_shows(extent, dtype):
    made = torch.empty(extent, dtype=dtype)
    assert made.isnan().all() if dtype.is_floating_point else made.eq(torch.iinfo(dtype).max).all()


@ANY
@given(
    extents=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 70)), max_size=4),
    rest=st.integers(0, 9),
    distance=st.sampled_from(DISTANCES),
)
def test_match(extents, rest, distance):
    segments, end = [], 0
    for gap, rows, columns in extents:
        segments.append((end + gap, rows, columns))
        end += gap + rows * columns
    check_kernel(RowTable(tuple(segments), end + rest), distance, (2,), "float32", "cpu")


@settings(ANY, max_examples=8)
@given(
    lead=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 0, 2)]),
    within=st.integers(1, 4),
    groups=st.integers(0, 3),
    sides=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    activation=st.sampled_from(ACTIVATIONS),
    pooling=st.sampled_from(POOLINGS),
    affine=st.sampled_from(["none", "channel", "element"]),
    by_group=st.booleans(),
    last=st.booleans(),
)
def test_norm_act_pool(lead, within, groups, sides, activation, pooling, affine, by_group, last):
    shape = (*lead, within * max(groups, 1), *sides)
    layer = Layer(shape, groups, activation, pooling, affine if groups else "none", by_group, last)
    check_layer(layer, "float32", "cpu")


@settings(ANY, max_examples=3)
@given(
    sizes=st.tuples(*[st.integers(1, most) for most in (2, 2, 1, 3)], *[st.integers(2, 6)] * 2, st.integers(1, 5)),
    padding=st.integers(1, 3),
    activation=st.sampled_from(ACTIVATIONS),
    pooling=st.sampled_from(POOLINGS),
    normed=st.booleans(),
)
def test_first_block(sizes, padding, activation, pooling, normed):
    check_first_block(sizes, padding, activation, pooling, "float32", "cpu", normed=normed)
