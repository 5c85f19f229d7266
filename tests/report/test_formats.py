from __future__ import annotations

import math

import pytest

from fastdistill.report.formats import count, duration, megabytes, operations, percent, rate, with_spread


@pytest.mark.parametrize(
    ("mean", "deviation", "shown"),
    [
        (0.91734, 0.0051, "91.73 ± 0.51"),
        (0.5, None, "50.00"),
        (None, 0.1, "not measured"),
        (math.nan, 0.1, "not measured"),
    ],
)
def test_a_share_has_its_spread_where_there_is_one(mean: float | None, deviation: float | None, shown: str) -> None:
    assert with_spread(mean, deviation) == shown


def test_what_is_no_number_is_not_measured() -> None:
    assert [percent(None), percent(math.inf)] == ["", ""]
    for say in (count, megabytes, duration, operations, rate):
        assert say(None) == say(math.nan) == "not measured"


def test_numbers_have_their_unit() -> None:
    assert [count(1234567), megabytes(1234.4), duration(0.0), duration(7260)] == [
        "1\u202f234\u202f567",
        "1\u202f234 MB",
        "0 ms",
        "2 h 01 min",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.0 MFLOP"), (4.1e9, "4.1 GFLOP"), (999e9, "999.0 GFLOP"), (1e12, "1.0 TFLOP"), (2.55e16, "25.5 PFLOP")],
)
def test_operations_have_the_unit_they_are_counted_in(value: float, shown: str) -> None:
    assert (operations(value), rate(value)) == (shown, f"{shown}/s")
