from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastdistill.report import facts
from fastdistill.report.folder import RunFolder, read_run
from tests.report.pages import run_folder


def run(**values: Any) -> RunFolder:
    return RunFolder(path=Path("a"), **values)


def test_a_finished_run_is_described_by_its_results(tmp_path: Path) -> None:
    predicted = {"predicted_peak_mb": 1300.0, "step_flops": 4e9, "counted_flops": 5e9, "flops_per_s": 2e11}
    found = read_run(run_folder(tmp_path, results=predicted))
    assert (facts.data_set(found), facts.protocol(found)) == ("mnist", "dc")
    assert (facts.seconds(found), facts.step_seconds(found), facts.peak_mb(found)) == (95.4, 0.0193, 1234.5)
    assert facts.predicted_peak_mb(found) == 1300.0
    assert (facts.step_flops(found), facts.counted_flops(found), facts.flops_per_second(found)) == (4e9, 5e9, 2e11)
    assert (
        facts.reference(found, facts.RANDOM)["mean"] == 0.649 and facts.reference(found, facts.WHOLE)["mean"] == 0.9961
    )


def test_an_unfinished_run_is_described_by_its_metrics() -> None:
    metrics = [
        {"step": 1, "time_s": 3.0, "perf/step_s": 0.5, "mem/peak_mb": 7.0, "perf/students_per_s": 2.0},
        {"step": 2, "time_s": 4.0, "perf/step_s": 0.7, "mem/peak_mb": 5.0, "perf/students_per_s": 4.0},
    ]
    found = run(metrics=metrics)
    assert (facts.seconds(found), facts.step_seconds(found), facts.peak_mb(found)) == (4.0, 0.6, 7.0)
    assert facts.students_per_second(found) == 3.0


def test_a_run_of_which_nothing_is_known() -> None:
    found = run()
    numbers = (facts.seconds, facts.step_seconds, facts.peak_mb, facts.predicted_peak_mb, facts.students_per_second)
    assert [ask(found) for ask in (*numbers, facts.step_flops, facts.counted_flops, facts.flops_per_second)] == [
        None
    ] * 8
    assert [facts.protocol(found), facts.architecture(found), facts.hardware(found)] == ["not measured"] * 3
    assert facts.data_set(found) == "?" and facts.layers(found) == "" and facts.reference(found, facts.RANDOM) == {}


@pytest.mark.parametrize(
    ("student", "shown"),
    [
        ({"architecture": "convnet", "depth": 3, "width": 64}, "convnet-3-64"),
        ({"architecture": "lenet", "depth": 3, "width": 64}, "lenet"),
        ({"architecture": "convnet"}, "convnet"),
    ],
)
def test_a_convnet_is_named_with_its_shape(student: dict[str, Any], shown: str) -> None:
    assert facts.architecture(run(config={"student": student})) == shown


def test_the_hardware_is_the_device_of_the_plan() -> None:
    environment = {"cpu": "a CPU", "gpu": {"name": "a GPU"}}
    assert facts.hardware(run(environment=environment)) == "a GPU"
    assert facts.hardware(run(environment=environment, results={"plan": {"device": "cpu"}})) == "a CPU"
    assert facts.hardware(run(environment={"gpu": "named"})) == "named"
