from __future__ import annotations

import pytest

from fastdistill.data.causes import LONGEST, cause_of


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("bad width"), "bad width"),
        (RuntimeError("  first\nsecond\r\nthird "), "first"),
        (OSError(), "OSError"),
        (ValueError("\x1b[31mred\x00 \udcff"), "?[31mred? ?"),
        (ValueError("x" * 10_000), "x" * LONGEST),
    ],
)
def test_a_cause_is_one_printable_line(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause
