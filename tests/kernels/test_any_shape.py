"""Kernels on shapes that hypothesis thinks of; in a file of its own, since machines with a GPU may lack hypothesis."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastdistill_kernels import DISTANCES, RowTable
from tests.kernels.test_match import check_kernel

ANY = settings(max_examples=15, deadline=None, derandomize=True)


@ANY
@given(
    extents=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(1, 70)), min_size=1, max_size=4),
    rest=st.integers(0, 9),
    distance=st.sampled_from(DISTANCES),
)
def test_match(extents, rest, distance):
    segments, end = [], 0
    for gap, rows, columns in extents:
        segments.append((end + gap, rows, columns))
        end += gap + rows * columns
    check_kernel(RowTable(tuple(segments), end + rest + 1), distance, (2,), "float32", "cpu")
