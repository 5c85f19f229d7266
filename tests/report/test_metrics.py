from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from fastdistill.report.metrics import course, number, read_metrics, read_records, series, without_judgement


def test_a_torn_last_line_of_metrics_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "outer/loss": 2.5}\n{"step": 2, "outer/loss": NaN}\n{"step": 3, "outer/lo')
    with caplog.at_level(logging.WARNING):
        first, second = read_metrics(path)
    assert first == {"step": 1, "outer/loss": 2.5} and math.isnan(second["outer/loss"])
    assert not caplog.records


def test_a_torn_line_inside_metrics_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "ou\n[3]\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]
    assert [record.getMessage().split(" line ")[1] for record in caplog.records] == [
        "2 is not a record of metrics and is skipped",
        "3 is not a record of metrics and is skipped",
    ]
    path.write_text("")
    assert read_metrics(path) == []


def test_a_series_is_ordered_and_takes_the_later_of_repeated_steps() -> None:
    metrics: list[dict[str, Any]] = [
        {"step": 10, "loss": 3.0},
        {"step": 30, "loss": 9.0, "other": 1},
        {"step": 20, "loss": 2},
        {"step": 30, "loss": math.inf},
        {"step": 40, "loss": None},
        {"step": 10, "time_s": 1.0},
    ]
    steps, values = series(metrics, "loss")
    assert steps.tolist() == [10, 20, 30]
    assert values[:2].tolist() == [3, 2] and math.isnan(values[2])
    assert len(series(metrics, "absent")[0]) == 0


def test_the_clock_is_that_of_the_record_a_value_came_from() -> None:
    metrics: list[dict[str, Any]] = [
        {"step": 10, "time_s": 1.0, "loss": 3.0},
        {"step": 10, "time_s": 1.5, "accuracy": 0.5},
        {"step": 20, "loss": 2.0},
        {"step": 10, "time_s": 9.0, "loss": 4.0},
    ]
    steps, seconds, values = course(metrics, "loss")
    assert steps.tolist() == [10, 20] and values.tolist() == [4, 2]
    assert seconds[0] == 9 and math.isnan(seconds[1])
    assert [part.tolist() for part in course(metrics, "accuracy")] == [[10], [1.5], [0.5]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (0.5, 0.5),
        (True, None),
        ("3", None),
        (None, None),
        (math.nan, None),
        (math.inf, None),
        (10**400, None),
    ],
)
def test_only_finite_numbers_are_numbers(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_lines_that_no_json_reader_survives_are_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(
        b'{"a": 1}\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b'\n\xff\n{"step": 1e3}\n{"step": true, "b": 2}\n'
    )
    records, damaged = read_records(path)
    assert damaged == [2, 3, 4] and len(records) == 3
    # a step that is no integer is no record of metrics
    assert read_records(path, "step") == ([], [1, 2, 3, 4, 5])


def test_the_judgement_is_no_part_of_the_course() -> None:
    metrics = [{"step": 1, "outer/loss": 1.0}, {"step": 1, "eval/random real/acc_mean": 0.5}]
    assert without_judgement(metrics) == metrics[:1]
