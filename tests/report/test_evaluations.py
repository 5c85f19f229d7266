from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdistill.report.evaluations import evaluations_table
from fastdistill.report.folder import RunFolder

LINE: dict[str, Any] = {
    "architecture": "lenet",
    "norm": "none",
    "protocol": "dsa",
    "epochs": 1000,
    "images": "distilled.safetensors",
    "seed": 3,
    "mean": 0.25,
    "std": 0.01,
    "per_student": [0.24, 0.26],
    "seconds": 61.0,
}


def shown(*lines: dict[str, Any]) -> list[dict[str, str]]:
    table = evaluations_table([("a", RunFolder(path=Path("a"), evaluations=list(lines)))])
    assert table is not None
    return [{c.name: cell.text for c, cell in zip(table.columns, row, strict=True)} for row in table.rows]


def test_runs_without_later_evaluations_have_no_table() -> None:
    assert evaluations_table([("a", RunFolder(path=Path("a")))]) is None


def test_every_value_of_a_line_has_its_column() -> None:
    assert shown(LINE) == [
        {
            "run": "a",
            "architecture": "lenet",
            "norm": "none",
            "protocol": "dsa",
            "images": "distilled.safetensors",
            "accuracy (%)": "25.00 ± 1.00",
            "random real (%)": "not measured",
            "students": "2",
            "epochs": "1\u202f000",
            "seed": "3",
            "time": "1 min 01 s",
        }
    ]


def test_random_real_images_stand_beside_where_they_were_measured() -> None:
    (row,) = shown(LINE | {"random_real_mean": 0.125, "random_real_std": 0.5})
    assert row["random real (%)"] == "12.50 ± 50.00"


def test_settings_of_some_lines_have_columns_too() -> None:
    first, second = shown(LINE, LINE | {"width": 64, "more": {"a": 1}})
    assert (first["width"], second["width"]) == ("", "64") and "more" not in second


def test_a_line_without_values_is_a_row_without_values() -> None:
    (row,) = shown({"mean": "x", "per_student": 3})
    assert row["accuracy (%)"] == row["students"] == row["epochs"] == "not measured"


def test_the_source_of_the_test_images_is_shown_where_it_is_not_the_runs() -> None:
    own, moved = LINE | {"source": "mnist"}, LINE | {"source": "npz:moved.npz"}

    def sources(*lines: dict[str, Any]) -> list[str]:
        run = RunFolder(path=Path("a"), config={"data": {"source": "mnist"}}, evaluations=list(lines))
        table = evaluations_table([("a", run)])
        assert table is not None
        names = [column.name for column in table.columns]
        return [row[names.index("source")].text for row in table.rows] if "source" in names else []

    assert sources(own, LINE) == []
    assert sources(own, moved) == ["", "npz:moved.npz"]


def test_notes_have_no_column() -> None:
    assert "note" not in shown(LINE | {"note": "these images have their own steps"})[0]
