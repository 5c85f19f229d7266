from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
import yaml

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.report.compare import write_comparison
from fastdistill.report.render import script_hash
from tests.report.pages import HOSTILE, RESULTS, Page, run_folder

LOW = [RESULTS["arms"][0] | {"mean": 0.5, "std": 0.01}, RESULTS["arms"][1] | {"mean": 0.6, "std": 0.02}]


def compare(*folders: Path) -> Page:
    output = folders[0].parent / "page.html"
    assert write_comparison(folders, output) == output and not list(output.parent.glob("*.tmp"))
    page = Page(output.read_text(encoding="utf-8"))
    assert not page.open
    return page


def test_every_distilled_arm_is_a_row_with_its_random_real_arm_beside_it(tmp_path: Path) -> None:
    arms = [*RESULTS["arms"], RESULTS["arms"][0] | {"arm": "distilled (best on validation)", "mean": 0.925}]
    first = run_folder(tmp_path / "a", name="a", results={"arms": arms, "predicted_peak_mb": 1300.0})
    second = run_folder(tmp_path / "b", name="b", results={"arms": LOW})
    words = compare(first, second).words
    facts = "99.61 ± 0.00 dc convnet-3-128 mnist 1 1 1 1 000 1 min 35 s 19.3 ms 1 234 MB 1 300 MB a GPU"
    assert f"a distilled (last) 91.73 ± 0.51 64.90 ± 3.50 +26.83 {facts}" in words
    assert f"a distilled (best on validation) 92.50 ± 0.51 64.90 ± 3.50 +27.60 {facts}" in words
    assert "b distilled (last) 50.00 ± 1.00 60.00 ± 2.00 −10.00 not measured dc convnet-3-128 mnist" in words
    assert "not comparable" not in words and "Unfinished" not in words


def test_numbers_are_sorted_by_their_full_value(tmp_path: Path) -> None:
    page = compare(run_folder(tmp_path / "a"))
    keys = [attrs["data-sort"] for tag, attrs in page.tags if tag == "td" and "data-sort" in attrs]
    assert keys[:5] == ["dc-mnist-1 distilled (last)", "0.91734", "0.649", repr(100 * (0.91734 - 0.649)), "0.9961"]
    assert keys[12:17] == ["95.4", "0.0193", "1234.5", "", "a gpu"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": EvaluationConfig(protocol="dsa")}, "protocol (dc / dsa)"),
        ({"student": StudentConfig(width=64)}, "architecture (convnet-3-128 / convnet-3-64)"),
        ({"student": StudentConfig(norm="batch")}, "layers (instance norm, relu, avg pooling / batch norm, relu, avg"),
    ],
)
def test_runs_judged_differently_are_said_not_to_compare(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    plain = RunConfig(**changes).as_dict()  # type: ignore[arg-type]
    values = {key: plain[key] for key in changes}
    judged = {"protocol": plain["evaluation"]["protocol"]} if "evaluation" in changes else {"architecture": "convnet"}
    first = run_folder(tmp_path / "a", name="a", results={"architecture": "convnet"})
    second = run_folder(tmp_path / "b", name="b", results={"architecture": "convnet"} | judged, **values)
    words = compare(first, second).words
    assert words.count("Accuracies of these runs are not comparable with each other.") == 1 and said in words


def test_only_settings_that_differ_are_listed_beside_each_other(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a", name="a", ipc=10, extra=1)
    second = run_folder(tmp_path / "b", name="b", ipc=50)
    words = compare(first, second).words
    table = words[words.index("Settings that differ") : words.index("Course of the runs")]
    assert table.strip() == "Settings that differ setting a b ipc 10 50 extra 1 not set"


def test_runs_that_differ_in_nothing_but_the_name(tmp_path: Path) -> None:
    assert (
        "Settings that differ none but the name"
        in compare(run_folder(tmp_path / "a", name="a"), run_folder(tmp_path / "b", name="b")).words
    )


def test_one_run_has_nothing_to_differ_from(tmp_path: Path) -> None:
    words = compare(run_folder(tmp_path / "a")).words
    assert words.startswith("dc-mnist-1 · fastdistill") and "Settings that differ" not in words


def test_images_configuration_and_environment_of_every_run_are_there(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, name=name) for name in ("a", "b")]
    page = compare(*folders)
    pictures = [base64.b64decode(link.split(",")[1]) for link in page.links if "image/png" in link]
    assert pictures[1:] == [(folder / "images.png").read_bytes() for folder in folders]  # the first are the curves
    assert all((folder / "config.yaml").read_text() in page.texts for folder in folders)
    assert [tag for tag, _ in page.tags].count("details") == 2
    assert page.words.count("cpu a CPU gpu.name a GPU gpu.memory_gb 1.5 argv 1, 2") == 2


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = compare(run_folder(tmp_path / "a"), run_folder(tmp_path / "b"))
    assert {link for link in page.links if not link.startswith("data:")} == {"#run-1", "#run-2"}
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert targets == {"run-1", "run-2"}
    assert not re.search(r"https?://|url\(|@import", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{script_hash()}'"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    results = {
        "arms": [RESULTS["arms"][0] | {"arm": f"distilled {HOSTILE}"}],
        "protocol": HOSTILE,
        "architecture": HOSTILE,
    }
    first = run_folder(tmp_path / "a", name=HOSTILE, results=results)
    second = run_folder(tmp_path / "b", name=f"{HOSTILE}2", full=False, **{HOSTILE: HOSTILE})
    (first / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (first / "evaluations.jsonl").write_text(
        json.dumps({"architecture": HOSTILE, HOSTILE: HOSTILE, "mean": 0.5}) + "\n"
    )
    page = compare(first, second)
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts) == 1
    assert "alert" not in page.scripts[0] and page.words.count(HOSTILE) > 10
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "49" not in "".join(re.findall(r"\{\{.*?\}\}", text))


def test_runs_of_one_name_are_told_apart_and_one_given_twice_counts_once(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / place / "x", name="x") for place in ("cpu", "gpu"))
    page = Page(write_comparison([first, second, second / ".." / "x"], tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "Comparison of 2 runs cpu/x gpu/x Test accuracy" in page.words


def test_runs_that_are_not_whole_are_shown_with_what_they_have_and_marked(tmp_path: Path) -> None:
    whole, begun = run_folder(tmp_path / "w", name="w"), run_folder(tmp_path / "u", name="u", full=False)
    damaged = run_folder(tmp_path / "d", name="d")
    (damaged / "results.json").write_text("{")
    lost = run_folder(tmp_path / "lost")
    (lost / "config.yaml").write_text("[")
    words = compare(whole, begun, damaged, lost).words
    assert "u · Unfinished: no step is recorded." in words
    assert "d · Unfinished: step 30 of 1000 is the last one recorded. d · Damaged and left out: results.json." in words
    assert "lost · Damaged and left out: config.yaml." in words
    # what is not known of a damaged run makes no difference
    assert "not comparable" not in words and "none but the name" in words
    empty, facts = 4 * " not measured", "dc convnet-3-128 mnist 1 1 1 1 000"
    assert f"u Unfinished{empty} {facts}{empty} not measured" in words
    assert f"d Unfinished{empty} {facts} 1 min 00 s 500 ms 130 MB not measured a GPU" in words


def test_later_evaluations_of_all_runs_share_a_table(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, name=name) for name in ("a", "b")]
    for folder, mean in zip(folders, (0.25, 0.75), strict=True):
        (folder / "evaluations.jsonl").write_text(json.dumps({"architecture": "lenet", "mean": mean}) + "\n")
    words = compare(*folders).words
    assert re.search(r"Later evaluations run .* a lenet \? \? \? 25\.00 .* b lenet \? \? \? 75\.00", words)


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", full=False)
    page = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"^expected the folder of a run, got .*absent without a config.yaml: give "):
        write_comparison([run, tmp_path / "absent"], page)
    with pytest.raises(ValueError, match=r"^expected the folders of runs, got none: give runs/NAME$"):
        write_comparison([], page)
    with pytest.raises(ValueError, match=r"^expected the name of a page, got the folder .*: give .*/report.html$"):
        write_comparison([run], tmp_path)
    assert not page.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert yaml.safe_load((run / "config.yaml").read_text())["name"] == "dc-mnist-1"
