from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
import yaml

from fastdistill.report.page import write_report
from fastdistill.report.render import script_hash
from tests.report.pages import HOSTILE, RESULTS, Page, run_folder


def read(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html" and not list(folder.glob("*.tmp"))
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    return page


def test_every_number_of_the_results_is_on_the_page(tmp_path: Path) -> None:
    words = read(run_folder(tmp_path)).words
    assert "mnist 1 image per class 1 student a step 1 run 1000 steps seed 0" in words
    assert "distilled (last) 91.73 ± 0.51 20 10 1 000 41.2 s" in words
    assert "random real 64.90 ± 3.50 20 10 1 000 250 ms" in words
    assert "whole 99.61 ± 0.00 10 60 000 50 1 h 05 min" in words
    assert "Protocol dc, architecture convnet-3-128." in words
    assert "distillation 1 min 35 s one step 19.3 ms students per second not measured" in words
    assert "peak memory, distilling 1 234 MB peak memory, predicted not measured" in words
    assert "peak memory, with evaluation 12 346 MB hardware a GPU" in words
    assert "Unfinished" not in words and "Damaged" not in words


def test_the_configuration_is_there_as_it_was_written(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path))
    assert (tmp_path / "config.yaml").read_text() in page.texts
    assert "cpu a CPU gpu.name a GPU gpu.memory_gb 1.5 argv 1, 2" in page.words
    assert [tag for tag, _ in page.tags].count("details") == 2


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path))
    assert len(page.links) == 3 and all(link.startswith("data:") for link in page.links)
    embedded = [base64.b64decode(link.split(",")[1]) for link in page.links if "image/png" in link]
    assert embedded == [(tmp_path / name).read_bytes() for name in ("images.png", "curves.png")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{script_hash()}'"


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"name": HOSTILE}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = RESULTS | {"arms": [RESULTS["arms"][0] | {"arm": HOSTILE}], "architecture": HOSTILE, "protocol": HOSTILE}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    page = read(folder)
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert page.texts.count(HOSTILE) == 4  # heading, arm, and both sides of the environment's row
    assert f"{HOSTILE} · fastdistill" in page.texts
    assert page.words.count(HOSTILE) >= 7


def test_a_run_of_which_only_the_configuration_is_there(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path, full=False))
    assert "Unfinished: no step is recorded." in page.words
    assert "Test accuracy not measured Protocol dc, architecture convnet-3-128." in page.words
    assert (
        "not drawn yet" in page.words
        and "not recorded yet" in page.words
        and "img" not in {tag for tag, _ in page.tags}
    )
    figures = ("distillation", "one step", "students per second", "distilling", "predicted", "hardware")
    assert all(f"{figure} not measured" in page.words for figure in figures)
    assert "Environment not recorded" in page.words


def test_an_unfinished_run_shows_what_its_metrics_tell(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "results.json").unlink()
    words = read(folder).words
    assert "Unfinished: step 30 of 1000 is the last one recorded." in words
    assert "distillation 1 min 00 s one step 500 ms students per second not measured" in words
    assert "peak memory, distilling 130 MB peak memory, predicted not measured" in words
    assert "peak memory, with evaluation not measured hardware a GPU" in words


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, ""), (45.8, "of that, the first compiled step, compilation with it 45.8 s ")]
)
def test_time_that_a_run_compiled_is_shown_apart(tmp_path: Path, seconds: float, shown: str) -> None:
    words = read(run_folder(tmp_path, results={"compiling_step_s": seconds})).words
    assert f"distillation 1 min 35 s {shown}one step 19.3 ms" in words
    unfinished = run_folder(tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    metrics = [{"step": 10, "time_s": 60.0, "perf/step_s": 0.5, "perf/compiling_step_s": seconds}]
    (unfinished / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    assert f"distillation 1 min 00 s {shown}one step 500 ms" in read(unfinished).words


def test_the_hardware_is_what_the_run_was_planned_for(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "results.json").write_text(json.dumps(RESULTS | {"plan": {"device": "cpu"}}))
    assert "hardware a CPU" in read(folder).words
    (folder / "results.json").write_text(json.dumps(RESULTS | {"plan": {"device": "cuda"}}))
    assert "hardware a GPU" in read(folder).words


def test_an_arm_without_numbers_is_not_measured(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    arms = [{"arm": "random real", "mean": None, "std": None}, {"arm": "nan", "mean": float("nan"), "std": 0.1}]
    (folder / "results.json").write_text(json.dumps({"arms": arms}))
    words = read(folder).words
    assert "random real" + 5 * " not measured" + " nan" + 5 * " not measured" in words
    assert "Protocol dc, architecture convnet-3-128." in words


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.00012, "0.12 ms"), (0.9994, "999 ms"), (1.0, "1.0 s"), (61.6, "1 min 02 s"), (3599.7, "1 h 00 min")],
)
def test_times_are_said_in_their_unit(tmp_path: Path, seconds: float, shown: str) -> None:
    folder = run_folder(tmp_path, full=False)
    (folder / "results.json").write_text(json.dumps({"distill_s": seconds}))
    assert f"distillation {shown} one step" in read(folder).words


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^expected the folder of a run, got .* without a config.yaml: give runs/NAME$"
    ):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_predicted_peak_stands_beside_the_measured_one(tmp_path: Path) -> None:
    words = read(run_folder(tmp_path, results={"predicted_peak_mb": 1300.2})).words
    assert "peak memory, distilling 1 234 MB peak memory, predicted 1 300 MB" in words


def test_operations_stand_beside_the_time(tmp_path: Path) -> None:
    words = read(
        run_folder(tmp_path, results={"step_flops": 4.1e9, "counted_flops": 4e9, "flops_per_s": 2.124e11})
    ).words
    assert "operations of a step, predicted 4.1 GFLOP operations of the first step, counted 4.0 GFLOP" in words
    assert "operations per second 212.4 GFLOP/s" in words


def test_images_that_were_not_trained_on_again_say_so(tmp_path: Path) -> None:
    arms = [RESULTS["arms"][0], RESULTS["arms"][0] | {"arm": "distilled (best on validation)", "seconds": 0.0}]
    words = read(run_folder(tmp_path, results={"arms": arms})).words
    assert "distilled (best on validation) 91.73 ± 0.51 20 10 1 000 the same images" in words


def test_an_unfinished_run_is_drawn_from_its_metrics_and_its_newest_picture(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for name in ("results.json", "curves.png"):
        (folder / name).unlink()
    picture = (folder / "images.png").read_bytes()
    (folder / "images.png").rename(folder / "images-000200.png")
    (folder / "images-000050.png").write_bytes(b"older")
    page = read(folder)
    assert "Distilled images after step 200" in page.words
    shown = [base64.b64decode(link.split(",")[1]) for link in page.links if "image/png" in link]
    assert shown[0] == picture and len(shown) == 2 and shown[1].startswith(b"\x89PNG")


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "results.json").write_text((folder / "results.json").read_text()[:200])
    (folder / "images.png").write_bytes((folder / "images.png").read_bytes()[:-4])
    page = read(folder)
    assert "Damaged and left out: images.png, results.json." in page.words
    assert "Unfinished: step 30 of 1000 is the last one recorded." in page.words and "hardware a GPU" in page.words


def test_later_evaluations_have_a_table(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    line = {"architecture": "lenet", "norm": "none", "protocol": "dsa", "images": "distilled.safetensors", "mean": 0.25}
    (folder / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    words = read(folder).words
    assert (
        "Later evaluations" in words and "dc-mnist-1 lenet none dsa distilled.safetensors 25.00 not measured" in words
    )


def test_the_page_may_be_written_elsewhere(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", full=False)
    assert write_report(folder, tmp_path / "pages" / "one.html") == tmp_path / "pages" / "one.html"
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["one.html"]
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("output", ["folder", None])
def test_a_folder_is_no_page(tmp_path: Path, output: str | None) -> None:
    run = run_folder(tmp_path / "run", full=False)
    place = run / "report.html" if output is None else tmp_path / output
    place.mkdir()
    with pytest.raises(ValueError, match=r"^expected the name of a page, got the folder .*: give .*/report\.html$"):
        write_report(run, None if output is None else place)
    assert list(place.iterdir()) == []
