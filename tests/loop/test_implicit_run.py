"""Whole runs of implicit differentiation on embedded digits with tiny students."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.layout import Layout
from fastdistill.failures import RunFailed
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.setup import initial_state
from fastdistill.method_configs import ImplicitConfig
from fastdistill.progress import Silent
from fastdistill.students.ensemble import Ensemble


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(folder, *, steps=7, runs=1, students=2, student=None, selecting=0, **recipe):
    given = {"inner_steps": 3, "real_batch": 32, "terms": 3, "inner_learning_rate": 0.1, "alpha": 0.1}
    return RunConfig(
        output=str(folder),
        ipc=2,
        runs=runs,
        students=students,
        student=student or StudentConfig(width=4, depth=2),
        method=ImplicitConfig(steps=steps, **{**given, **recipe}),
        evaluation=EvaluationConfig(validation_every=selecting, validation_students=2, validation_epochs=2),
        checkpoint_every=3,
        log_every=1,
        threads=1,
        device="cpu",
    )


def saved(settings, digits):
    folder = Path(settings.output) / settings.name / "checkpoints"
    return load_checkpoint(folder, config_hash(settings.as_dict()), data_hash(digits)).state


def metrics(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("runs", "recipe"),
    [
        (1, {"solver": "cg", "damping": 0.5, "warm_start": True, "optimizer": "adam", "inner_learning_rate": 0.01}),
        (2, {"learn_labels": True, "outer_optimizer": "adam", "learning_rate": 0.01, "augmentation": "crop_rotate"}),
    ],
    ids=["warm start", "two runs"],
)
def test_stopping_after_every_step_and_going_on_equals_going_straight(tmp_path, digits, runs, recipe):
    straight, stopped = (
        config(tmp_path / name, runs=runs, selecting=4, hypersteps=3, eigenvalue_every=2, **recipe)
        for name in ("straight", "stopped")
    )
    run(straight, digits, judge=False)
    for step in range(1, 7):
        assert run(stopped, digits, judge=False, stop_after=step) is None
        state = saved(stopped, digits)
        assert state.step == step
        assert (state.students is None) == (step % 3 == 0)
        if state.students is not None:
            kept = {"optimizer", "solution"} if "warm_start" in recipe else {"optimizer"}
            assert state.students.carried.keys() == kept
    run(stopped, digits, judge=False)
    first, second = saved(straight, digits), saved(stopped, digits)
    for left, right in (
        (first.learned, second.learned),
        (first.moments, second.moments),
        (first.students.carried, second.students.carried),
        ({"weights": first.students.weights}, {"weights": second.students.weights}),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    for name in ("distilled.safetensors", "distilled-best.safetensors"):
        assert (tmp_path / "straight" / "run" / name).read_bytes() == (tmp_path / "stopped" / "run" / name).read_bytes()
    lines = [
        [{name: value for name, value in line.items() if name.startswith(("outer", "implicit"))} for line in found]
        for found in (metrics(tmp_path / "straight"), metrics(tmp_path / "stopped"))
    ]
    assert lines[0] == lines[1]


def test_an_alpha_that_diverges_is_said_once(tmp_path, digits):
    told = Told()
    run(config(tmp_path, steps=3, alpha=30.0, eigenvalue_every=1), digits, progress=told, judge=False)
    sentences = [text for text in told.said if "expected a Neumann alpha below" in text]
    assert len(sentences) == 1
    assert sentences[0].startswith("step 0: ")
    assert "got 30, with which the series diverges: choose" in sentences[0]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if "alpha" in line.get("note", "")] == [0]
    eigenvalue = next(line["implicit/eigenvalue_max"] for line in lines if "implicit/eigenvalue_max" in line)
    assert 30 * eigenvalue >= 2
    told = Told()
    run(replace(config(tmp_path, steps=1, alpha=0.001), name="small"), digits, progress=told, judge=False)
    assert not [text for text in told.said if "alpha" in text]


def test_an_estimate_between_two_lines_reaches_the_next_one(tmp_path, digits):
    run(replace(config(tmp_path), log_every=3), digits, judge=False)
    lines = [line for line in metrics(tmp_path) if "outer/loss" in line]
    assert [("implicit/eigenvalue_max" in line, "implicit/residual" in line) for line in lines] == [
        (True, True),
        (False, True),
        (False, True),
    ]


def test_the_outer_loss_falls(tmp_path, digits):
    settings = config(
        tmp_path,
        steps=36,
        students=1,
        inner_steps=10,
        inner_momentum=0.9,
        hypersteps=6,
        solver="cg",
        curvature="gauss_newton",
        damping=0.1,
        outer_optimizer="adam",
        learning_rate=0.1,
        clip_norm=0.0,
        student=StudentConfig(width=8, depth=2, initialization="fixed"),
    )
    run(settings, digits, judge=False)
    losses = [line["outer/loss"] for line in metrics(tmp_path) if "outer/loss" in line]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])  # of the first and of the last life


def test_the_gradient_is_clipped_and_labels_stay_above_zero(tmp_path, digits):
    settings = config(tmp_path, steps=2, learn_labels=True, learning_rate=1e4, clip_norm=1e-4)
    plan = make_plan(settings, digits.train.shape, 10)
    begun = initial_state(settings, plan, digits.train)
    assert {name: tuple(value.shape) for name, value in begun.learned.items()} == {
        "images": (1, 10, 2, 1, 8, 8),
        "labels": (1, 10, 2, 10),
    }
    run(settings, digits, judge=False)
    after = saved(settings, digits)
    assert float((after.images - begun.images).norm()) <= 2 * 1e4 * 1e-4 * (1 + 1e-5)
    assert float(after.learned["labels"].min()) == 0.0


def test_a_poisoned_student_is_named_and_its_run_goes_on_without_it(tmp_path, digits, monkeypatch):
    plain = Ensemble.draw

    def draw(self, at, indices, *rest):
        drawn = plain(self, at, indices, *rest)
        if at == 3:
            Layout.of(self.module).views(drawn.weights)["classifier.bias"][2] = torch.nan
        return drawn

    monkeypatch.setattr(Ensemble, "draw", draw)
    told = Told()
    settings = config(tmp_path, students=4, hypersteps=3, inner_steps=1)
    assert run(settings, digits, progress=told, judge=False).distilled.images.isfinite().all()
    assert [text for text in told.said if "masked" in text] == [
        "step 3: masked 1 non-finite of 4 students (student 2: weights classifier.bias)"
    ]
    masked = [line["outer/masked"] for line in metrics(tmp_path) if "outer/masked" in line]
    assert masked == [0, 0, 0, 1, 1, 1, 0]  # until its life ends


def test_training_that_diverges_stops_the_run_and_names_the_step(tmp_path, digits):
    settings = config(tmp_path, inner_learning_rate=1e30, student=StudentConfig(width=4, depth=2, norm="none"))
    with pytest.raises(RunFailed, match=r"2 of 2 students non-finite at step 0 \(student 0: .* inner step [12]"):
        run(settings, digits, judge=False)


def test_batch_norm_students_leave_no_folder(tmp_path, digits):
    settings = config(tmp_path, student=StudentConfig(width=4, depth=2, norm="batch"))
    with pytest.raises(ValueError, match="got batch norm"):
        run(settings, digits)
    assert not (tmp_path / "run" / "config.yaml").exists()
