"""A comparison from end to end: distilled, tested, stopped, gone on with, refused."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from fastdistill.comparison_file import read_comparison
from fastdistill.failures import Stopped
from fastdistill.loop.comparison import run_comparison
from fastdistill.loop.stop import Stop
from fastdistill.progress import Silent

TINY = {
    "steps": 4,
    "base": {
        "data": {"source": "digits", "validation_fraction": 0.2},
        "student": {"depth": 2, "width": 4},
        "method": {"real_batch": 4},
        "evaluation": {"students": 2, "validation_every": 2, "validation_students": 1, "validation_epochs": 2},
        "device": "cpu",
        "threads": 1,
        "log_every": 1,
    },
    "arms": {
        "pixels": {},
        "generator-4": {"generator": {"architecture": "full", "width": 4, "noise_size": 4}},
        "generator-8": {"generator": {"architecture": "full", "width": 8, "noise_size": 4}},
    },
    "tests": {
        "mlp": {"student": {"architecture": "mlp"}, "students": 2, "epochs": 2},
        "pretrained": {"student": {"initialization": "pretrained"}, "students": 2, "epochs": 2},
    },
    "pretraining": {"networks": 2},
    "baselines": {"baselines": ["class_average"], "students": 2, "epochs": 2},
}
# arms with next to nothing beside them
ALONE = {"tests": {}, "pretraining": {}, "baselines": {"baselines": ["class_average"], "students": 1, "epochs": 1}}
FILES = {"config.yaml", "environment.json", "results.json", "table.md", "report.html", "accuracy-time.png"}


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def tiny(folder, **changes):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return read_comparison(str(path), output=str(folder / "out"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("comparison"))
    return config, run_comparison(config)


def test_every_arm_is_a_run_that_is_put_to_every_test(whole):
    config, results = whole
    assert results == json.loads((config.folder / "results.json").read_text())
    assert results["complete"]
    assert list(results["arms"]) == list(TINY["arms"])
    for name, row in results["arms"].items():
        assert not row["failed"] and set(row["tests"]) == {"mlp", "pretrained"}
        assert all(0 <= score["mean"] <= 1 and score["students"] == 2 for score in row["tests"].values())
        own = json.loads((config.folder / "arms" / name / "results.json").read_text())
        assert own["complete"] and own["steps"] == 4
        assert (config.folder / "arms" / name / "report.html").exists()
    assert set(results["random_real"]["1"]) == {"mlp", "pretrained"}
    pictures = {"accuracy-size.png"}
    inner = {"pretrained", "baselines", "arms"}
    assert {path.name for path in config.folder.iterdir()} == FILES | pictures | inner


def test_the_table_has_all_arms_random_real_images_and_the_baselines(whole):
    config, results = whole
    lines = (config.folder / "table.md").read_text().splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert rows[: lines.index("")] == ["trained on", "---", *TINY["arms"], "random real", "class average"]
    assert "- mlp: 2 networks, protocol default, 2 epochs." in lines
    score = results["arms"]["pixels"]["tests"]["mlp"]
    assert f"| {100 * score['mean']:.1f} ± {100 * score['std']:.1f} |" in lines[2]


def test_pretrained_networks_are_the_comparisons_own(whole):
    config, _ = whole
    networks = sorted(config.pretrained.glob("*.safetensors"))
    assert [path.name for path in networks] == ["00.safetensors", "01.safetensors"]
    first, second = map(load_file, networks)
    assert any(not (first[name] == second[name]).all() for name in first)


def written(config):
    """When the images of every arm were."""
    return {path.parent.name: path.stat().st_mtime_ns for path in config.folder.glob("arms/*/distilled.safetensors")}


def test_a_repeated_comparison_does_nothing_again(whole):
    config, results = whole
    progress, before = Heard(), written(config)
    assert run_comparison(config, progress=progress) == results
    assert written(config) == before
    assert not any("testing" in text for text in progress.said)


def test_damaged_results_are_measured_again(whole):
    config, results = whole
    (config.folder / "results.json").write_text("{")
    assert run_comparison(config) == results


def test_changed_tests_and_arms_distilled_again_are_tested_again_and_nothing_else_is(whole):
    config, results = whole
    path = config.folder.parent.parent
    tests = {"mlp": {**TINY["tests"]["mlp"], "epochs": 3}, "pretrained": TINY["tests"]["pretrained"]}
    progress, before = Heard(), written(config)
    changed = run_comparison(tiny(path, tests=tests), progress=progress)
    assert written(config) == before
    assert [text for text in progress.said if "testing" in text] == [f"{name}: testing mlp" for name in TINY["arms"]]
    assert changed["arms"]["pixels"]["tests"]["pretrained"] == results["arms"]["pixels"]["tests"]["pretrained"]
    assert changed["random_real"]["1"]["mlp"]["epochs"] == 3
    shutil.rmtree(config.folder / "arms" / "pixels")
    arms = {**TINY["arms"], "pixels": {"method": {"image_learning_rate": 3.0}}}
    progress = Heard()
    again = run_comparison(tiny(path, tests=tests, arms=arms), progress=progress)
    assert [text for text in progress.said if "testing" in text] == [
        "pixels: testing mlp",
        "pixels: testing pretrained",
    ]
    assert {name for name, time in written(config).items() if time != before[name]} == {"pixels"}
    assert again["arms"]["generator-4"] == changed["arms"]["generator-4"]
    assert again["arms"]["pixels"]["tests"]["mlp"]["of"] != changed["arms"]["pixels"]["tests"]["mlp"]["of"]


def test_an_arm_whose_settings_are_others_than_its_folders_is_refused_and_the_rest_goes_on(tmp_path):
    run_comparison(tiny(tmp_path, arms={"one": {}}, **ALONE))
    results = run_comparison(tiny(tmp_path, arms={"one": {"method": {"real_batch": 5}}, "two": {}}, **ALONE))
    assert "run it alone by --config " in results["arms"]["one"]["failed"]
    assert not results["arms"]["two"]["failed"]


def test_a_test_that_fails_is_said_and_the_rest_goes_on(tmp_path):
    tests = {"vgg11": {"student": {"architecture": "vgg11"}, "students": 1}, "mlp": TINY["tests"]["mlp"]}
    config = tiny(tmp_path, arms={"pixels": {}}, tests=tests, pretraining={})
    results = run_comparison(config)
    assert results["arms"]["pixels"]["tests"]["vgg11"]["failed"].startswith("expected ")
    assert 0 <= results["arms"]["pixels"]["tests"]["mlp"]["mean"] <= 1
    assert not results["complete"]
    assert "| failed |" in (config.folder / "table.md").read_text()


def test_an_arm_that_fails_is_left_out_and_said(tmp_path):
    arms = {"broken": {"method": {"image_learning_rate": 1e30}, "max_masked_share": 0.0}, "sound": {}}
    config = tiny(tmp_path, arms=arms, **ALONE)
    progress = Heard()
    results = run_comparison(config, progress=progress)
    assert results["arms"]["broken"]["failed"] and not results["arms"]["sound"]["failed"]
    assert not results["complete"]
    assert any(text.startswith("broken failed: ") for text in progress.said)
    assert "1 of 1 students non-finite at step 1" in results["arms"]["broken"]["failed"]
    assert "| broken (failed) |" in (config.folder / "table.md").read_text()


def test_a_stop_saves_the_arm(tmp_path):
    arms = {"long": {"method": {"steps": 100_000}, "checkpoint_every": 100_000}}
    config = tiny(tmp_path, arms=arms, tests={}, pretraining={}, steps=0)
    metrics = config.folder / "arms" / "long" / "metrics.jsonl"

    class Asking(Stop):
        """Is asked as soon as the arm has made a step."""

        @property
        def asked(self):
            return "SIGTERM" if metrics.exists() and metrics.stat().st_size else ""

        @asked.setter
        def asked(self, name):
            pass

    with pytest.raises(Stopped):
        run_comparison(config, stop=Asking())
    assert list((config.folder / "arms" / "long" / "checkpoints").iterdir())


def test_a_signal_stops_the_command_with_75(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "steps": 100_000, "arms": {"long": {}}, "tests": {}, "pretraining": {}}))
    words = [sys.executable, "-m", "fastdistill", "compare", str(path), "--output", str(tmp_path / "out")]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "tiny" / "arms" / "long" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=120)[1]
    assert child.returncode == 75, said
    assert said.endswith("fastdistill: stopped by SIGTERM: repeat the command to go on\n")
    done = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    again = subprocess.run([*words, "--seconds=0.001"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 1  # the arm's settings are others now
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while json.loads(metrics.read_text().splitlines()[-1])["step"] <= done[-1]:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)  # to the comparison alone
    assert "continuing long at step " in child.communicate(timeout=120)[1]
    assert child.returncode == 75
