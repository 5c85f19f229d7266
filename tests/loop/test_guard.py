"""The non-finite guard, on a whole tiny run and by itself."""

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
from fastdistill.loop.guard import Guard
from fastdistill.loop.outer import State, Step
from fastdistill.loop.run import config_hash, run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.students.ensemble import Ensemble, Students


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def config(tmp_path):
    return RunConfig(
        output=str(tmp_path),
        students=4,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, steps=8, real_batch=8),
        evaluation=EvaluationConfig(students=2),
        device="cpu",
        threads=1,
        log_every=3,
        checkpoint_every=2,
    )


@pytest.fixture
def poison(monkeypatch):
    """Puts a NaN into one tensor of some students that are drawn at a step."""

    def put(step, students, tensor):
        plain = Ensemble.draw

        def draw(self, at, indices, *rest):
            drawn = plain(self, at, indices, *rest)
            if at == step:
                Layout.of(self.module).views(drawn.weights)[tensor][students] = torch.nan
            return drawn

        monkeypatch.setattr(Ensemble, "draw", draw)

    return put


def saved(config):
    folder = Path(config.output) / config.name / "checkpoints"
    return load_checkpoint(folder, config_hash(config.as_dict()), data_hash(load_source("digits")))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_poisoned_student_is_named_and_the_run_goes_on(config, tmp_path, poison):
    poison(4, [2], "body.1.convolution.weight")
    told = Told()
    assert run(config, load_source("digits"), progress=told, judge=False).distilled.images.isfinite().all()
    expected = "masked 1 non-finite of 4 students (student 2: weights body.1.convolution.weight)"
    assert f"step 4: {expected}" in told.said
    lines = metrics(tmp_path / "run")
    assert [(line["step"], line["note"]) for line in lines if "note" in line] == [(4, expected)]
    assert [line["outer/masked"] for line in lines if "outer/masked" in line] == [0, 0, 0]  # of steps 3, 6 and 8


def test_more_than_the_set_share_stops_before_the_update(config, tmp_path, poison):
    poison(5, [0, 3], "classifier.bias")
    with pytest.raises(RunFailed, match=r"got 2 of 4 students non-finite at step 5 \(student 0: weights classifier.bi"):
        run(config, load_source("digits"))
    folder = tmp_path / "run"
    kept = saved(config)
    assert kept.state.step == 4
    assert kept.state.images.isfinite().all()
    assert not (folder / "distilled.safetensors").exists()
    assert metrics(folder)[-1]["note"].startswith("failed: expected finite losses")
    # the same run goes on from there when more students may be masked
    result = run(replace(config, max_masked_share=0.5), load_source("digits"), judge=False)
    assert result.distilled.images.isfinite().all()
    assert result.table["steps"] == 8


def test_a_masked_student_moves_nothing(config, tmp_path, poison):
    """φ after a step with a poisoned student is φ after the step with the others alone."""
    alone = replace(config, name="alone", students=3, method=replace(config.method, steps=1))
    run(alone, load_source("digits"), judge=False)
    poison(0, [3], "body.0.convolution.weight")
    run(replace(alone, name="four", students=4), load_source("digits"), judge=False)
    states = [
        saved(replace(alone, name=name, students=students)).state for name, students in (("alone", 3), ("four", 4))
    ]
    difference = (states[0].images - states[1].images).norm() / states[0].moments["images.velocity"].norm()
    assert difference < 5e-6  # float32: the sum of four, one of them zero, is rounded in another order


class Quiet:
    """A method that can say where."""

    def fresh(self, step):
        return Students(indices=torch.arange(6), weights=torch.zeros(6, 1), buffers={})

    def prepare(self, learned, students, step):
        return students

    def locate(self, learned, students, step, student):
        return f"layer {step}.{student}"


def found(finite, sound=True):
    return Step(values={}, finite=torch.tensor(finite), sound=torch.tensor(sound))


def at(step):
    images = torch.zeros(1, 1, 1, 1, 1, 1)
    return State(step=step, learned={"images": images}, moments={"images.velocity": images})


def test_a_student_is_named_when_it_becomes_non_finite_and_not_at_every_step():
    said = []
    guard = Guard(Quiet(), lambda step, text: said.append((step, text)))
    guard.watch(at(0), found([True] * 6))
    guard.watch(at(1), found([True, False, True, True, True, True]))
    guard.watch(at(2), found([True, False, False, True, True, True]))
    guard.watch(at(3), found([True] * 6))
    guard.watch(at(4), found([True, False, True, True, True, True]))
    assert [step for step, _ in said] == [1, 2, 4]
    assert said[1][1] == "masked 1 non-finite of 6 students (student 2: layer 2.2)"


def test_every_run_fares_as_it_would_alone(config, tmp_path, poison):
    """One of two runs' only student is a run without any: the share is of a run's students."""
    poison(5, [1], "classifier.bias")
    with pytest.raises(RunFailed, match="got 1 of 2 students non-finite at step 5"):
        run(replace(config, students=1, runs=2, max_masked_share=0.9), load_source("digits"))
    assert saved(replace(config, students=1, runs=2)).state.step == 4


def test_images_that_would_be_infinite_are_not_kept(config, tmp_path):
    huge = replace(config, method=replace(config.method, image_learning_rate=3e38), checkpoint_every=1)
    with pytest.raises(RunFailed, match="an update that would not be finite"):
        run(huge, load_source("digits"))
    kept = saved(huge)
    assert kept is None or kept.state.images.isfinite().all()


def test_many_are_counted():
    with pytest.raises(RunFailed, match=r"student 2: layer 7\.2; and 3 more"):
        Guard(Quiet(), print).watch(at(7), found([False] * 6, sound=False))


def test_an_infinite_image_gradient_of_finite_students_stops_too():
    with pytest.raises(RunFailed, match="an update that would not be finite"):
        Guard(Quiet(), print).watch(at(7), found([True] * 6, sound=False))
