"""What a run writes; the whole folder is checked in test_run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.loop.run import run
from fastdistill.method_configs import matching_recipe


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
