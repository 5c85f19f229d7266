"""Whole runs of distribution matching on embedded digits with tiny networks."""

import json

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.loop.memory import forecast
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import run
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import DistributionConfig
from fastdistill.synthetic.load import load

STUDENT = StudentConfig(width=4, depth=2)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(folder, *, steps=8, runs=1, students=2, student=STUDENT, validation_every=4, **recipe):
    return RunConfig(
        output=str(folder),
        ipc=2,
        runs=runs,
        students=students,
        student=student,
        method=DistributionConfig(steps=steps, **{"real_batch": 16, **recipe}),
        evaluation=EvaluationConfig(
            protocol="dsa", students=2, validation_every=validation_every, validation_epochs=1, validation_students=1
        ),
        checkpoint_every=3,
        log_every=1,
        threads=1,
        device="cpu",
    )


@pytest.mark.parametrize("runs", [1, 2])
def test_stopping_and_going_on_equals_going_straight(tmp_path, digits, runs):
    straight, stopped = (config(tmp_path / name, runs=runs) for name in ("straight", "stopped"))
    run(straight, digits, judge=False)
    assert run(stopped, digits, judge=False, stop_after=5) is None
    run(stopped, digits, judge=False)
    for name in ("distilled.safetensors", "distilled-best.safetensors"):
        left, right = ((tmp_path / folder / "run" / name).read_bytes() for folder in ("straight", "stopped"))
        assert left == right


def test_mean_features_come_together(tmp_path, digits):
    settings = config(tmp_path, steps=60, students=4, start="noise", augmentation="none", validation_every=0)
    run(settings, digits, judge=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["outer/loss"] for line in lines if "outer/loss" in line]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_artefact_says_how_images_are_shown(tmp_path, digits):
    result = run(config(tmp_path, steps=2, augmentation="crop_rotate", align_corners=False), digits)
    kept = load(tmp_path / "run")
    assert (kept.augmentation, kept.align_corners) == ("crop_rotate", False)
    assert kept.labels.tolist() == torch.arange(10).repeat_interleave(2).tolist()
    assert [arm["arm"] for arm in result.table["arms"]] == [
        "distilled (last)",
        "distilled (best on validation)",
        "random real",
    ]


def test_batch_norm_networks_are_taken(tmp_path, digits):
    student = StudentConfig(width=4, depth=2, norm="batch")
    run(config(tmp_path, steps=2, student=student, validation_every=0), digits, judge=False)
    assert bool(load(tmp_path / "run").images.isfinite().all())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_memory_and_operations_are_predicted(norm):
    """More networks at once hold more, in chunks they do not; every network takes as many operations."""
    sizes = Sizes(shape=(1, 8, 8), classes=(150,) * 10, test=300)

    def predicted(students, chunk=0, **recipe):
        student = StudentConfig(width=16, depth=2, norm=norm)
        settings = config("runs", students=students, student=student, validation_every=0, **recipe)
        settings = RunConfig(**{**vars(settings), "chunk": chunk})
        return forecast(settings, make_plan(settings, sizes.shape, 10, sizes=sizes), sizes, judge=False)

    few, many, parts = predicted(4), predicted(8), predicted(8, chunk=4)
    assert few.step <= parts.step < 1.1 * few.step < many.step
    assert many.flops == parts.flops == 2 * few.flops
    # features of the real images once, of the synthetic ones twice, and the way back to these
    assert predicted(4, real_batch=32).flops > 1.6 * few.flops
