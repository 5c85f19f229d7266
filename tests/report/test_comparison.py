from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastdistill.generator_config import GeneratorConfig
from fastdistill.report.comparison import markdown, read_comparison_folder, write_comparison_report
from tests.report.pages import RESULTS, Page, run_folder

SCORE = {"mean": 0.5, "std": 0.01, "protocol": "default", "epochs": 3, "steps": 0, "students": 4}


def generator(width: int) -> dict[str, Any]:
    return vars(GeneratorConfig(architecture="full", width=width))


def folder_of(tmp_path: Path, arms: dict[str, dict[str, Any]], failed: str = "", **settings: Any) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for index, (name, values) in enumerate(arms.items()):
        rows = [dict(RESULTS["arms"][0], mean=0.5 + 0.1 * index), *RESULTS["arms"][1 : 2 if index == 0 else 1]]
        run_folder(tmp_path / "arms" / name, name=name, results={"arms": rows}, **values)
    table = {
        "name": "mine",
        "arms": {name: {"tests": {"mlp": SCORE}, "failed": failed} for name in arms},
        "random_real": {"1": {"mlp": dict(SCORE, mean=0.25)}},
    }
    (tmp_path / "results.json").write_text(json.dumps(table))
    config = {"images": "last", "tests": {"mlp": {}}, "arms": {name: {} for name in arms}, **settings}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(
        tmp_path / "mine", {"pixels": {}, "small": {"generator": generator(16)}, "large": {"generator": generator(64)}}
    )


def test_rows_are_arms_then_random_real_images_then_baselines(folder: Path) -> None:
    (folder / "baselines").mkdir()
    arms = [{"arm": "random real", "mean": 0.1, "std": 0.0}, {"arm": "herding", "mean": 0.2, "std": 0.0}]
    (folder / "baselines" / "results.json").write_text(json.dumps({"arms": arms}))
    found = read_comparison_folder(folder)
    assert [row.name for row in found.rows] == ["pixels", "small", "large", "random real", "herding"]
    assert (found.own, found.tests) == ("convnet-3-128", ("mlp",))
    assert [row.decoder for row in found.rows[:3]] == ["pixels", "generator full-16", "generator full-64"]
    assert [row.own["mean"] for row in found.rows] == pytest.approx([0.5, 0.6, 0.7, 0.649, 0.2])
    assert found.rows[3].tests["mlp"]["mean"] == 0.25
    assert "mlp" not in found.rows[4].tests
    text = markdown(found)
    assert text.startswith("| trained on | convnet-3-128 | mlp | steps | a step | distilled in | peak memory |\n")
    assert "| small | 60.0 ± 0.5 | 50.0 ± 1.0 |" in text
    assert "19.3 ms | 1 min 35 s |" in text
    assert text.endswith("\n- mlp: 4 networks, protocol default, 3 epochs.\n")
    assert "| herding | 20.0 ± 0.0 |  |  |  |  |  |" in text


def test_the_page_shows_the_table_and_the_plots(folder: Path) -> None:
    assert write_comparison_report(folder) == folder / "report.html"
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not page.open
    assert "What the arms reach" in page.words
    assert "small matching generator full-16 60.00 ± 0.51 50.00 ± 1.00" in page.words
    assert "random real real images 64.90 ± 3.50 25.00 ± 1.00" in page.words
    assert sum(tag == "img" for tag, _ in page.tags) >= 2
    assert (folder / "table.md").read_text() == markdown(read_comparison_folder(folder))
    assert (folder / "accuracy-size.png").exists()


def test_a_failed_arm_is_marked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", {"pixels": {}}, failed="its process ended with 1")
    write_comparison_report(folder)
    assert "| pixels (failed) |" in (folder / "table.md").read_text()
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "pixels failed: its process ended with 1" in page.words


def test_a_test_that_failed_and_a_single_network_have_no_deviation(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results["arms"]["small"]["tests"]["mlp"] = {"failed": "expected another"}
    results["arms"]["large"]["tests"]["mlp"] = dict(SCORE, students=1, std=0.0)
    (folder / "results.json").write_text(json.dumps(results))
    text = markdown(read_comparison_folder(folder))
    assert "| small | 60.0 ± 0.5 | failed |" in text
    assert "| large | 70.0 ± 0.5 | 50.0 |" in text


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    arms = {"short": {"seconds": 200.0}, "long": {"seconds": 95.0}, "other": {}}
    folder = folder_of(tmp_path / "mine", arms)
    other = json.loads((folder / "arms" / "other" / "results.json").read_text())
    (folder / "arms" / "other" / "results.json").write_text(json.dumps(dict(other, protocol="dsa")))
    said = read_comparison_folder(folder).conditions
    assert "short ended by its own steps after 1 min 35 s of 3 min 20 s." in said
    assert not any(sentence.startswith("long") for sentence in said)
    assert "Arms are judged by different protocols (dc, dsa) and do not compare." in said


def test_random_real_images_stand_for_arms_of_as_many_images_judged_alike(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", {"one": {}, "two": {}})
    both = json.loads((folder / "arms" / "one" / "results.json").read_text())
    (folder / "arms" / "two" / "results.json").write_text(json.dumps(both))  # two networks of their own
    row = read_comparison_folder(folder).rows[-1]
    assert (row.name, row.own, row.tests["mlp"]["mean"]) == ("random real", {}, 0.25)
    several = folder_of(tmp_path / "sizes", {"one": {}, "two": {"ipc": 10}})
    assert [row.name for row in read_comparison_folder(several).rows[2:]] == ["random real, 1 a class"]


def test_the_whole_sets_epochs_are_named(folder: Path) -> None:
    (folder / "baselines").mkdir()
    arms = [{"arm": "whole set", "mean": 0.9, "std": 0.0, "epochs": 1}]
    (folder / "baselines" / "results.json").write_text(json.dumps({"arms": arms}))
    assert read_comparison_folder(folder).rows[-1].name == "whole set, 1 epoch"


def test_the_best_images_scores_are_shown_where_they_were_tested(folder: Path, tmp_path: Path) -> None:
    best = [RESULTS["arms"][0], dict(RESULTS["arms"][0], arm="distilled (best on validation)", mean=0.99)]
    made = folder_of(tmp_path / "best", {"pixels": {}}, images="best")
    (made / "arms" / "pixels" / "results.json").write_text(json.dumps(dict(RESULTS, arms=best)))
    assert read_comparison_folder(made).rows[0].own["mean"] == 0.99


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected the folder of a comparison at .*: name one that fastdistill compare"
    ):
        read_comparison_folder(tmp_path)
