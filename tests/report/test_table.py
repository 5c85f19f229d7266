from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastdistill.report.table import show_baselines, show_results


def arm(name: str, **changes: Any) -> dict[str, Any]:
    values = {
        "arm": name,
        "mean": 0.91734,
        "std": 0.0051,
        "students": 20,
        "images": 10,
        "epochs": 1000,
        "seconds": 41.25,
    }
    return values | changes


def results(*arms: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "digits",
        "architecture": "convnet-3-16",
        "protocol": "dc",
        "arms": list(arms),
        "distill_s": 95.44,
        "steps": 1000,
        "step_s": 0.0193,
        "peak_mb": 1234.5,
        "predicted_peak_mb": 1300.4,
        "step_flops": 4_100_000_000,
        "flops_per_s": 212.4e9,
        "counted_flops": 4_000_000_000,
    }


def shown(
    capsys: pytest.CaptureFixture[str],
    *arms: dict[str, Any],
    folder: Path = Path("runs/digits"),
    without: tuple[str, ...] = (),
) -> list[str]:
    show_results({key: value for key, value in results(*arms).items() if key not in without}, folder)
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def test_every_arm_is_a_row_under_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    whole = arm("whole", mean=0.9961, std=0.0, students=5, images=60000, epochs=50, seconds=3900.0)
    lines = shown(capsys, arm("distilled (last)"), whole)
    assert lines[0].strip() == "digits: test accuracy, convnet-3-16, protocol dc"
    rows = [cells(line) for line in lines if line.startswith(("┃", "│"))]
    assert rows == [
        ["trained on", "images", "accuracy", "students", "epochs", "time"],
        ["distilled (last)", "10", "91.7 ± 0.5 %", "20", "1000", "41.2 s"],
        ["whole", "60000", "99.6 ± 0.0 %", "5", "50", "3900.0 s"],
    ]


def test_an_arm_that_was_not_trained_again_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, arm("distilled (last)"), arm("distilled (best)", seconds=0.0))
    times = {cells(line)[0]: cells(line)[-1] for line in lines if line.startswith("│")}
    assert times == {"distilled (last)": "41.2 s", "distilled (best)": "the same images"}


def test_time_memory_and_folder_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs") / ("a-long-name-" * 12) / "digits"  # longer than a line: it must stay one path to copy
    lines = shown(capsys, arm("distilled (last)"), folder=folder)
    assert lines[-4] == "distilled in 95.4 s (1000 steps of 19 ms)"
    assert lines[-3] == "peak memory 1234 MB, predicted 1300 MB"
    assert lines[-2] == "4.0 GFLOP in the first step, predicted 4.1 GFLOP a step, 212.4 GFLOP/s"
    assert lines[-1] == f"everything is in {folder}/ — open report.html"


def test_a_run_that_an_older_version_finished_is_shown_without_operations(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, arm("distilled (last)"), without=("step_flops", "flops_per_s"))
    assert lines[-2] == "peak memory 1234 MB, predicted 1300 MB"


def test_baselines_have_the_same_rows_and_no_time_of_distilling(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"name": "digits", "architecture": "convnet", "protocol": "dc", "arms": [arm("herding"), arm("k-means")]}
    show_baselines(content, Path("baselines/digits"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "digits: test accuracy, convnet, protocol dc"
    assert [cells(line)[0] for line in lines if line.startswith("│")] == ["herding", "k-means"]
    assert lines[-1] == "everything is in baselines/digits/"
