from __future__ import annotations

import math

import pytest

from fastdistill.checks import at_least, at_most, folder_name, of_kind, one_of, positive


def test_a_valid_name_passes_and_another_names_the_nearest() -> None:
    one_of("norm", "layer", ("none", "layer"))
    with pytest.raises(ValueError, match=r"^expected norm among none, layer, got 'layr': did you mean 'layer'$"):
        one_of("norm", "layr", ("none", "layer"))
    with pytest.raises(ValueError, match=r"^expected norm among none, layer, got '!': choose one of these$"):
        one_of("norm", "!", ("none", "layer"))


def test_settings_of_another_kind_are_refused() -> None:
    of_kind("matching", "matching")
    with pytest.raises(ValueError, match=r"^expected the kind matching of these settings, got 'unrolled': leave kind "):
        of_kind("matching", "unrolled")


def test_bounds_are_part_of_what_they_allow() -> None:
    at_least(1, steps=1, students=2)
    at_most(4, steps=4)
    with pytest.raises(ValueError, match=r"^expected students of at least 1, got 0: raise it$"):
        at_least(1, steps=1, students=0)
    with pytest.raises(ValueError, match=r"^expected depth of at most 8, got 9: lower it$"):
        at_most(8, depth=9)


def test_what_is_no_number_is_within_no_bound() -> None:
    with pytest.raises(ValueError, match=r"^expected a finite decay, got inf: lower it$"):
        at_least(0, decay=math.inf)
    for check in (at_least, at_most):
        with pytest.raises(ValueError, match="expected rate of at "):
            check(0, rate=math.nan)
    for value in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(ValueError, match=rf"^expected a positive, finite rate, got {value}: raise it above zero$"):
            positive(rate=value)
    positive(rate=1e-300)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b"])
def test_names_that_are_not_one_folders_are_refused(name: str) -> None:
    folder_name("a.b-c d")
    with pytest.raises(ValueError, match=r"^expected a name that is one folder name, got .*: leave out slashes$"):
        folder_name(name)
