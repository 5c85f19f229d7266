"""The page of results follows from the committed runs, and says of each what it is and how it differs."""

import json

import pytest
import yaml

from docs import make_results
from docs.make_results import identify, main, make_page, published_figures, read_preset
from fastdistill.config import presets
from fastdistill.report.folder import read_run

PNG = b"\x89PNG\r\n\x1a\n IEND\xaeB`\x82"


@pytest.fixture(scope="module")
def known():
    return [read_preset(name) for name in presets()]


def configuration(name, **changes):
    """What the run of a preset writes, as far as the page reads it."""
    preset = read_preset(name)
    _, source, ipc, _ = preset.cell  # of a data set in a folder, the folder's name stands for it
    method = {**preset.settings["method"], **changes}
    return {**preset.settings, "name": "any", "ipc": ipc, "data": {"source": source}, "method": method}


def make_run(folder, config, *arms, note=None):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if arms:
        named = [
            {"arm": name, "mean": mean, "std": std, "students": 7, "images": 10, "epochs": 3, "seconds": 1.0}
            for name, mean, std in arms
        ]
        plan = {"device": "cpu", "threads": 3}
        results = {"arms": named, "distill_s": 90.0, "plan": plan, "protocol": "own", "note": note}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_committed_page_follows_from_the_committed_runs():
    main(["--check"])


def test_a_page_that_is_out_of_date_exits_with_1(monkeypatch, tmp_path):
    monkeypatch.setattr(make_results, "PAGE", tmp_path / "results.md")
    with pytest.raises(SystemExit) as missing:
        main(["--check"])
    main([])
    main(["--check"])
    (tmp_path / "results.md").write_text("old")
    with pytest.raises(SystemExit) as old:
        main(["--check"])
    # an exit with text is printed and has the status 1
    assert "run python docs/make_results.py" in missing.value.code == old.value.code
    assert (tmp_path / "results.md").read_text() == "old"


@pytest.mark.parametrize("name", [name for name in presets() if not name.endswith("-cpu")])
def test_the_run_of_a_preset_is_known_for_its_cell(tmp_path, known, name):
    run = read_run(make_run(tmp_path / "run", configuration(name)))
    cell, recipe = identify(run, known)
    assert cell == read_preset(name).cell
    assert recipe is not None
    assert recipe.name == name


def test_a_run_on_a_budget_is_held_against_the_published_recipe(tmp_path):
    config = configuration("dd/mnist-fixed-cpu")
    run = make_run(
        tmp_path / "results" / "cpu" / "short",
        config,
        ("distilled (last)", 0.9012, 0.0),
        ("distilled (best on validation)", 0.9034, 0.001),
        ("random real", 0.4, 0.0555),
        note="a note that readers need",
    )
    (run / "images.png").write_bytes(PNG)
    page = make_page(tmp_path / "results", make_results.PUBLISHED, tmp_path / "docs")
    row = next(line for line in page.splitlines() if line.startswith("| [cpu/short]"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    head = next(line for line in page.splitlines() if line.startswith("| run"))
    assert dict(zip([name.strip() for name in head.strip("|").split("|")], cells, strict=True)) == {
        "run": "[cpu/short](../results/cpu/short)",
        "method": "dd",
        "data set": "mnist",
        "images per class": "1",
        "initialisation": "fixed",
        "student": "lenet",
        "protocol": "own",
        "networks": "7",
        "distilled": "90.1 ± 0.0 (best 90.3 ± 0.1)",
        "random real": "40.0 ± 5.5",
        "whole set": "not measured",
        "published": "93.8 [1]",
        "settings": "3 differ",
        "time to distil": "1 min 30 s",
        "machine": "not measured, 3 threads",
    }
    assert "1. Wang et al., 2018: the learned steps and rates, the one initialisation distilled for." in page
    assert "`method.steps` 4000 instead of 23600" in page
    assert "`method.real_batch` 256 instead of 1024" in page
    assert "`method.decay_every` 400 instead of 2360" in page
    assert "a note that readers need" in page
    assert '<img src="../results/cpu/short/images.png"' in page


def test_runs_without_results_or_a_published_figure_say_so(tmp_path):
    results = tmp_path / "results"
    make_run(results / "gpu" / "unfinished", configuration("dc/mnist-1"))
    own = configuration("dsa/cifar10-1") | {"data": {"source": "folder:somewhere/mine"}, "ipc": 3}
    make_run(results / "cpu" / "own", own, ("distilled (last)", 0.5, 0.1))
    tiny = configuration("mtt/tiny-1", experts="elsewhere/experts") | {
        "data": {"source": "folder:elsewhere/tiny-imagenet"}
    }
    make_run(results / "cpu" / "tiny", tiny, ("distilled (last)", 0.08, 0.01))
    page = make_page(results, make_results.PUBLISHED, tmp_path)
    assert "left out here: gpu/unfinished." in page
    assert "| dsa | mine | 3 | fresh |" in page
    assert "somewhere" not in page and "elsewhere" not in page
    assert "| 8.8 ± 0.3 [1] | as `mtt/tiny-1` |" in page
    assert "| none | no preset |" in page
    assert "<img" not in page


def test_published_figures_are_numbers_with_a_source():
    entries = yaml.safe_load(make_results.PUBLISHED.read_text(encoding="utf-8"))
    figures = published_figures(entries)
    assert figures["dc", "mnist", 1, "fresh"][0] == "91.7 ± 0.5"
    for cell, (accuracy, source) in figures.items():
        mean, _, deviation = accuracy.partition(" ± ")
        assert 0 < float(mean) < 100, cell
        assert 0 <= float(deviation or 0) < 10, cell
        assert source
    # no entry is shadowed by an earlier one of its cell
    assert len(figures) == sum(len(by_ipc) for entry in entries for by_ipc in entry["accuracy"].values())


def test_a_comparison_is_shown_with_its_table_plots_and_images(tmp_path):
    folder = tmp_path / "results" / "cpu" / "mine"
    arm = make_run(folder / "arms" / "pixels", configuration("dc/mnist-1"), ("distilled (last)", 0.9012, 0.01))
    (arm / "images.png").write_bytes(PNG)
    (folder / "accuracy-time.png").write_bytes(PNG)
    settings = {"images": "last", "arms": {"pixels": {}}, "tests": {"mlp": {}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    row = {"tests": {"mlp": {"mean": 0.5, "std": 0.02}}, "failed": ""}
    table = {"name": "mine", "arms": {"pixels": row}, "random_real": {}}
    (folder / "results.json").write_text(json.dumps(table))
    (folder / "environment.json").write_text(json.dumps({"cpu": "a CPU", "threads": 2, "git_commit": "abc"}))
    published = tmp_path / "published.yaml"
    published.write_text("[]")
    page = make_page(tmp_path / "results", published, tmp_path / "docs")
    assert "| pixels | 90.1 ± 1.0 | 50.0 ± 2.0 |" in page
    assert "[cpu/mine](../results/cpu/mine), a CPU, 2 threads, commit `abc`." in page
    assert "](../results/cpu/mine/accuracy-time.png)" in page
    assert "accuracy-size.png" not in page
    assert '<img src="../results/cpu/mine/arms/pixels/images.png" alt="pixels"' in page
    assert "left out here" not in page
