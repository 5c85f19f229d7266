from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fastdistill.generator_config import GeneratorConfig
from fastdistill.report.comparison import markdown, read_comparison_folder, size_plot, write_comparison_report
from tests.report.pages import RESULTS, Page, run_folder

SCORE = {"mean": 0.5, "std": 0.01, "protocol": "default", "epochs": 3, "steps": 0}


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
    assert found.columns == ("convnet-3-128", "mlp")
    assert [row.decoder for row in found.rows[:3]] == ["pixels", "generator full-16", "generator full-64"]
    assert [row.scores["convnet-3-128"]["mean"] for row in found.rows] == pytest.approx([0.5, 0.6, 0.7, 0.649, 0.2])
    assert found.rows[3].scores["mlp"]["mean"] == 0.25 and "mlp" not in found.rows[4].scores
    text = markdown(found)
    assert text.startswith("| trained on | convnet-3-128 | mlp | steps | a step | distilled in | peak memory |\n")
    assert "| small | 60.0 ± 0.5 | 50.0 ± 1.0 |" in text and "19.3 ms | 1 min 35 s |" in text
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


def test_sizes_are_plotted_where_there_are_two(folder: Path, tmp_path: Path) -> None:
    picture = Image.open(BytesIO(size_plot(read_comparison_folder(folder))))
    assert picture.size == (960, 600)
    alone = folder_of(tmp_path / "alone", {"pixels": {}, "small": {"generator": generator(16)}})
    assert size_plot(read_comparison_folder(alone)) == b""


def test_the_best_images_scores_are_shown_where_they_were_tested(folder: Path, tmp_path: Path) -> None:
    best = [RESULTS["arms"][0], dict(RESULTS["arms"][0], arm="distilled (best on validation)", mean=0.99)]
    made = folder_of(tmp_path / "best", {"pixels": {}}, images="best")
    (made / "arms" / "pixels" / "results.json").write_text(json.dumps(dict(RESULTS, arms=best)))
    assert read_comparison_folder(made).rows[0].scores["convnet-3-128"]["mean"] == 0.99


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected the folder of a comparison at .*: name one that fastdistill compare"
    ):
        read_comparison_folder(tmp_path)
