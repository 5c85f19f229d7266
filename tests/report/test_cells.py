from __future__ import annotations

import pytest

from fastdistill.report.cells import Column, Table, figure, words


def test_a_number_is_sorted_by_its_value_and_not_by_what_is_shown() -> None:
    cell = figure(0.25, lambda value: f"{value:.0%}", look="strong")
    assert (cell.text, float(cell.key), cell.look) == ("25%", 0.25, "strong")


def test_what_is_not_measured_has_nothing_to_be_sorted_by() -> None:
    cell = figure(None, str)
    assert (cell.text, cell.key, cell.look) == ("not measured", "", "missing")


def test_text_is_sorted_without_regard_to_case() -> None:
    assert words("LeNet", "Instance").key == "lenet instance"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected 2 cells in every row, got 1: give every heading a cell$"):
        Table(label="t", columns=(Column(name="a"), Column(name="b")), rows=[(words("x"),)])
