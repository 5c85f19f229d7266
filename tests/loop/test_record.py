"""What a run writes; the whole folder is checked in test_run."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.evaluation.arms import Judge
from fastdistill.loop.run import run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent


@pytest.fixture
def config(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (60, 8, 8)).astype(np.float32)  # floats in a unit of their own
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(60) % 3)
    return RunConfig(
        output=str(tmp_path),
        data=DataConfig(source=f"npz:{tmp_path / 'own.npz'}", validation_fraction=0.2),
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, steps=6, real_batch=4, start="real"),
        evaluation=EvaluationConfig(validation_every=3, validation_students=2, validation_epochs=2),
        log_every=4,
        picture_every=3,
        checkpoint_every=2,
        device="cpu",
    )


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_things_are_written_as_often_as_configured(config, tmp_path):
    run(config, judge=False)
    folder = tmp_path / "run"
    assert [line["step"] for line in lines(folder) if "outer/loss" in line] == [4, 6]  # and at the last step
    assert [line["step"] for line in lines(folder) if "validation/acc_mean" in line] == [3, 6]
    assert sorted(path.name for path in folder.glob("images-*.png")) == ["images-000003.png", "images-000006.png"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    times = [line["time_s"] for line in lines(folder)]
    assert times == sorted(times)


def test_a_stop_between_two_checkpoints_saves_one(config, tmp_path):
    assert run(config, stop_after=5) is None
    assert (tmp_path / "run" / "checkpoints" / "step-000005").exists()
    run(config, judge=False)
    assert [line["step"] for line in lines(tmp_path / "run") if "validation/acc_mean" in line] == [3, 6]


def test_pictures_of_floats_span_their_own_range(config, tmp_path):
    run(replace(config, method=replace(config.method, steps=1)), judge=False)
    gray = np.asarray(Image.open(tmp_path / "run" / "images.png").convert("L"), dtype=float)
    cells = gray[:, gray.shape[1] // 2 :]  # right of the class names
    assert ((cells > 20) & (cells < 235)).mean() > 0.5


class Told(Silent):
    """Remembers its stages and how far the first came."""

    def __init__(self):
        self.stages, self.counts = [], []

    @contextmanager
    def stage(self, name, total, done=0):
        self.stages.append((name, total))
        first = len(self.stages) == 1
        yield lambda count, remark: self.counts.append(count) if first else None


class Clock:
    """Moves on by a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


def test_a_run_ends_when_its_time_is_over_and_a_selection_takes_none_of_it(config, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fastdistill.loop.record.time", clock)
    validate = Judge.validate

    def slowly(judge, learned):
        clock.now += 1000
        return validate(judge, learned)

    monkeypatch.setattr(Judge, "validate", slowly)
    method = replace(config.method, steps=500)
    told = Told()
    result = run(replace(config, method=method, seconds=60.0), progress=told)
    assert told.stages[0] == ("distilling, seconds", 60)
    assert told.counts == sorted(told.counts) and told.counts[-1] == 60
    steps = result.table["steps"]
    assert 3 < steps < 60 and 60 <= result.table["distill_s"] < 80
    assert result.table["complete"] and result.distilled.details["seconds"] == "60"
    assert [line["step"] for line in lines(tmp_path / "run") if "validation/acc_mean" in line][-1] == steps
    again = run(replace(config, method=method, seconds=60.0))
    assert again.table == json.loads(json.dumps(result.table))


def test_a_run_without_any_time_takes_one_step_and_one_that_was_stopped_late_no_further(config, tmp_path):
    assert run(replace(config, seconds=1e-9, name="short"), judge=False).table["steps"] == 1
    assert run(replace(config, seconds=1e9, name="long"), judge=False).table["steps"] == 6
