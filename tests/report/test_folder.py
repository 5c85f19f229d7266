from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fastdistill.report.compare import write_comparison
from fastdistill.report.folder import flat, read_run
from fastdistill.report.page import write_report
from tests.report.pages import METRICS, RESULTS, run_folder


def test_a_whole_run_has_no_remarks(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path))
    assert run.remarks == [] and run.damaged == ()
    assert run.metrics == METRICS and run.arms == RESULTS["arms"] and run.name == "dc-mnist-1"
    assert run.config_text == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", b""),
        ("results.json", b'{"arms": ['),
        ("results.json", b"[1]"),
        ("results.json", b"\xff\xfe"),
        ("results.json", b"[" * 100_000),
        ("environment.json", b"9" * 5000),
        ("config.yaml", b""),
        ("config.yaml", b"name: [unclosed"),
        ("config.yaml", b"name: \x00"),
        ("config.yaml", b"? [a]\n: {b: !!python/object:os.system x}"),
        ("config.yaml", b"when: 2020-99-99"),
        ("config.yaml", b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]"),
        ("config.yaml", b"a: &a\n  b: *a"),
        ("images.png", b"no picture"),
        ("curves.png", b"\x89PNG\r\n\x1a\n cut"),
    ],
)
def test_a_damaged_file_is_named_and_no_page_fails(tmp_path: Path, name: str, content: bytes) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / name).write_bytes(content)
    run = read_run(folder)
    assert run.damaged == (name,)
    assert run.remarks[-1] == f"Damaged and left out: {name}"
    for page in (write_report(folder), write_comparison([folder], tmp_path / "page.html")):
        assert f"Damaged and left out: {name}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "values",
    [
        {"arms": 3, "plan": 3, "distill_s": "long", "step_s": [], "peak_mb": {}, "protocol": None, "architecture": 7},
        {"arms": [3, {"arm": 5, "mean": "high", "std": {}, "students": "x", "seconds": True, "images": None}]},
        {"arms": [{"arm": "distilled (last)", "mean": 10**400, "std": -1, "students": -5, "seconds": -1.0}]},
        {"arms": [{"arm": "distilled", "mean": 7.5}, {"arm": "random real", "mean": -3}]},
    ],
)
def test_values_of_the_wrong_kind_fail_no_page(tmp_path: Path, values: dict[str, object]) -> None:
    folder = run_folder(tmp_path, results=values, data=3, student=["x"], method=None, evaluation="x", ipc="many")
    (folder / "environment.json").write_text(json.dumps({"gpu": [1, {"a": 2}], "packages": None}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "outer/loss": "x", "time_s": {}}\n{"step": -5, "a": true}\n')
    (folder / "curves.png").unlink()
    assert write_report(folder).is_file()
    assert write_comparison([folder], tmp_path / "page.html").is_file()


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "metrics.jsonl").write_text("x\n" * 7 + '{"step": 1}\n{"st')
    run = read_run(folder)
    assert run.damaged == ("metrics.jsonl (line 1, 2, 3, 4, 5, ...)",) and run.metrics == [{"step": 1}]


def test_a_run_whose_loss_was_lost_has_failed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "results.json").unlink()
    lines = [
        {"step": 1, "outer/loss": 1.0, "outer/masked": 0},
        {"step": 2, "outer/loss": math.nan, "outer/masked": 3},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(folder).remarks == [
        "Failed: its last loss is not a finite number, step 2 of 1000 is the last one recorded",
        "Masked: 3 students were not finite in the recorded steps (2)",
    ]


def logged(folder: Path, *lines: dict[str, object], judged: bool = False) -> list[str]:
    """The remarks of a run whose log has these lines."""
    if not judged:
        (folder / "results.json").unlink(missing_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"time_s": 1.0} | line) + "\n" for line in lines))
    return read_run(folder).remarks


def test_masked_students_are_told_from_logged_lines_and_from_notes(tmp_path: Path) -> None:
    note: dict[str, object] = {"step": 11, "note": "masked 1 non-finite of 4 students (student 2: conv)"}
    folder = run_folder(tmp_path)
    loss: dict[str, object] = {"step": 20, "outer/loss": 1.0, "outer/masked": 0}
    told = "step 11: 1 non-finite of 4 students (student 2: conv)"
    assert logged(folder, note, loss, judged=True) == [f"Masked: {told}"]
    lost = loss | {"step": 30, "outer/masked": 2}
    # a run that was killed has noted the same again
    assert logged(folder, note, loss, lost, note | {"time_s": 2.0}, lost, judged=True) == [
        f"Masked: 2 students were not finite in the recorded steps (30); {told}"
    ]
    many = [note | {"step": step} for step in range(7)]
    assert logged(folder, *many, judged=True)[0].endswith("(student 2: conv); and 2 more")


def test_a_run_that_noted_its_failure_has_failed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    loss: dict[str, object] = {"step": 10, "outer/loss": 1.0}
    note: dict[str, object] = {"step": 13, "note": "failed: expected finite losses, got 4 of 4: lower a rate."}
    assert logged(folder, loss, note) == ["Failed: expected finite losses, got 4 of 4: lower a rate"]
    assert logged(folder, loss, note, note) == ["Failed: expected finite losses, got 4 of 4: lower a rate"]
    # it has gone on since, with other settings
    assert logged(folder, loss, note, loss | {"step": 20}) == [
        "Unfinished: step 20 of 1000 is the last one recorded",
    ]
    assert logged(folder, {"step": 1, "note": 3}) == ["Unfinished: step 1 of 1000 is the last one recorded"]
    assert logged(run_folder(tmp_path), loss, note, judged=True) == []


def test_what_has_to_be_known_of_the_images_is_said_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, results={"note": "these images have their own steps"})
    (folder / "evaluations.jsonl").write_text(
        '{"note": "these images have their own steps"}\n{"note": ""}\n{"note": 3}\n'
    )
    assert read_run(folder).remarks == ["Note: these images have their own steps"]
    assert "Note: these images have their own steps." in write_report(folder).read_text(encoding="utf-8")


def test_a_run_without_judgement_says_so(tmp_path: Path) -> None:
    remarks = read_run(run_folder(tmp_path, results={"arms": []})).remarks
    assert remarks == ["Not judged: repeat the command of the run to test its images"]


def test_values_are_flattened_by_dotted_name() -> None:
    assert list(flat({"a": {"b": {"c": 1}, "d": [1, "x"]}, 2: None})) == [
        ("a.b.c", "1"),
        ("a.d", "1, x"),
        ("2", "None"),
    ]
