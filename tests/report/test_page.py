from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, matching_recipe
from fastdistill.report.figures import save_curves, save_image_grid
from fastdistill.report.page import write_report

HOSTILE = "<script>alert('x')</script>&\"{{ 7 * 7 }}"
RESULTS: dict[str, Any] = {
    "arms": [
        {
            "arm": "distilled (last)",
            "mean": 0.91734,
            "std": 0.0051,
            "students": 20,
            "images": 10,
            "epochs": 1000,
            "seconds": 41.25,
        },
        {
            "arm": "random real",
            "mean": 0.649,
            "std": 0.035,
            "students": 20,
            "images": 10,
            "epochs": 1000,
            "seconds": 0.25,
        },
        {"arm": "whole", "mean": 0.9961, "std": 0.0, "students": 10, "images": 60000, "epochs": 50, "seconds": 3900.0},
    ],
    "protocol": "dc",
    "architecture": "convnet-3-128",
    "distill_s": 95.4,
    "distill_peak_mb": 1234.5,
    "peak_mb": 12345.6,
    "step_s": 0.0193,
}
ENVIRONMENT = {"cpu": "a CPU", "gpu": {"name": "a GPU", "memory_gb": 1.5}, "argv": [1, 2]}
METRICS = [
    {"step": step, "time_s": 2.0 * step, "outer/loss": 3.0, "perf/step_s": 0.5, "mem/peak_mb": 100.0 + step}
    for step in (10, 20, 30)
]


class Page(HTMLParser):
    """The parts of a page, and that its tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())


def run_folder(folder: Path, *, name: str = "dc-mnist-1", full: bool = True) -> Path:
    config = RunConfig(
        name=name,
        data=DataConfig(source="mnist"),
        method=matching_recipe("dc", 1),
        evaluation=EvaluationConfig(protocol="dc"),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8")
    if full:
        (folder / "results.json").write_text(json.dumps(RESULTS))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS) + '{"step"')
        save_image_grid(folder / "images.png", torch.zeros(10, 1, 4, 4), torch.arange(10))
        save_curves(folder / "curves.png", METRICS, "curves")
    return folder


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
    assert "peak memory, distilling 1 234 MB peak memory, with evaluation 12 346 MB hardware a GPU" in words
    assert "no results yet" not in words


def test_the_configuration_is_there_as_it_was_written(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path))
    assert (tmp_path / "config.yaml").read_text() in page.texts
    assert "cpu a CPU gpu.name a GPU gpu.memory_gb 1.5 argv 1, 2" in page.words
    assert [tag for tag, _ in page.tags].count("details") == 2


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path))
    links = [value or "" for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert len(links) == 3 and all(link.startswith("data:") for link in links)
    embedded = [base64.b64decode(link.split(",")[1]) for link in links if "image/png" in link]
    assert embedded == [(tmp_path / name).read_bytes() for name in ("images.png", "curves.png")]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"name": HOSTILE}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = RESULTS | {"arms": [RESULTS["arms"][0] | {"arm": HOSTILE}], "architecture": HOSTILE, "protocol": HOSTILE}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    page = read(folder)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.texts.count(HOSTILE) == 4  # heading, arm, and both sides of the environment's row
    assert f"{HOSTILE} · fastdistill" in page.texts
    assert page.words.count(HOSTILE) >= 7


def test_a_run_of_which_only_the_configuration_is_there(tmp_path: Path) -> None:
    page = read(run_folder(tmp_path, full=False))
    assert "This run has no results yet: no step is recorded." in page.words
    assert "Test accuracy not measured Protocol dc, architecture convnet." in page.words
    assert page.words.count("not drawn yet") == 2 and "img" not in {tag for tag, _ in page.tags}
    figures = ("distillation", "one step", "students per second", "distilling", "with evaluation", "hardware")
    assert all(f"{figure} not measured" in page.words for figure in figures)
    assert "Environment not recorded" in page.words


def test_an_unfinished_run_shows_what_its_metrics_tell(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "results.json").unlink()
    words = read(folder).words
    assert "This run has no results yet: step 30 of 1000 is the last one recorded." in words
    assert "distillation 1 min 00 s one step 500 ms students per second not measured" in words
    assert "peak memory, distilling 130 MB peak memory, with evaluation not measured hardware a GPU" in words


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
    assert "Protocol dc, architecture convnet." in words


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
