"""Whole runs of unrolled training on embedded digits with tiny students."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdistill.config import EvaluationConfig, MatchingConfig, RunConfig, StudentConfig, UnrolledConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.functional import Functional
from fastdistill.evaluation.arms import Judge
from fastdistill.evaluation.replay import replay_students
from fastdistill.failures import RunFailed
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.setup import initial_state, replay_of
from fastdistill.students.ensemble import Ensemble
from fastdistill.students.training import count_correct, image_fetch
from fastdistill.synthetic.load import load


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(folder, *, steps=8, runs=1, students=2, student=None, evaluation=None, **recipe):
    given = {"batches": 2, "epochs": 2, "real_batch": 32, "inner_learning_rate": 0.1, "decay_every": 3}
    return RunConfig(
        output=str(folder),
        ipc=2,
        runs=runs,
        students=students,
        student=student or StudentConfig(width=4, depth=2),
        method=UnrolledConfig(steps=steps, **{**given, **recipe}),
        evaluation=evaluation or EvaluationConfig(protocol="own", students=3, validation_every=4),
        checkpoint_every=3,
        log_every=1,
        threads=1,
        device="cpu",
    )


def digest(folder, name="distilled.safetensors"):
    return (folder / "run" / name).read_bytes()


def saved(settings, digits):
    folder = Path(settings.output) / settings.name / "checkpoints"
    return load_checkpoint(folder, config_hash(settings.as_dict()), data_hash(digits)).state


@pytest.mark.parametrize(
    ("runs", "recipe"), [(1, {}), (2, {}), (1, {"optimizer": "adam", "inner_learning_rate": 0.01}), (1, {"keep": 2})]
)
def test_stopping_and_going_on_equals_going_straight(tmp_path, digits, runs, recipe):
    evaluation = EvaluationConfig(protocol="default", validation_epochs=2) if "optimizer" in recipe else None
    straight, stopped = (
        config(tmp_path / name, runs=runs, evaluation=evaluation, **recipe) for name in ("straight", "stopped")
    )
    run(straight, digits, judge=False)
    assert run(stopped, digits, judge=False, stop_after=5) is None
    assert saved(stopped, digits).step == 5
    run(stopped, digits, judge=False)
    assert digest(tmp_path / "straight") == digest(tmp_path / "stopped")
    first, second = saved(straight, digits), saved(stopped, digits)
    for left, right in ((first.learned, second.learned), (first.moments, second.moments)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert "rates.square" in first.moments
    if evaluation is None:
        assert digest(tmp_path / "straight", "distilled-best.safetensors") == digest(
            tmp_path / "stopped", "distilled-best.safetensors"
        )


def test_the_artefact_carries_its_steps_and_its_table_replays_them(tmp_path, digits):
    settings = config(tmp_path, runs=2, steps=4)
    result = run(settings, digits)
    schedule = load(tmp_path / "run").schedule
    assert schedule.rates.shape == (2, 4)
    assert schedule.images.shape == (4, 10)
    assert not torch.allclose(schedule.rates, torch.tensor(0.1))  # they are learned
    state = saved(settings, digits)
    assert torch.allclose(schedule.rates, torch.nn.functional.softplus(state.learned["rates"]))
    assert result.table["protocol"] == "own"
    arms = {arm["arm"]: arm for arm in result.table["arms"]}
    assert arms.keys() == {"distilled (last)", "distilled (best on validation)", "random real"}
    assert len(arms["random real"]["per_student"]) == len(arms["distilled (last)"]["per_student"]) == 6
    assert all(arm["images"] == 20 for arm in arms.values())
    assert all((arm["epochs"], arm["steps"]) == (0, 4) for arm in arms.values())
    assert "4 steps" in (tmp_path / "run" / "report.html").read_text()


def test_images_for_fixed_weights_are_judged_on_these(tmp_path, digits):
    """All students that are judged are the run's own one, so they do not differ; those of random images do."""
    fixed = StudentConfig(width=4, depth=2, initialization="fixed")
    settings = config(tmp_path, runs=2, students=1, steps=30, student=fixed, learning_rate=0.05)
    result = run(settings, digits)
    arms = {arm["arm"]: arm for arm in result.table["arms"]}
    shares = arms["distilled (last)"]["per_student"]
    assert len(set(shares[:3])) == len(set(shares[3:])) == 1
    assert len(set(arms["random real"]["per_student"])) > 1
    # trained by hand from the run's own weights, the images give the accuracy in the table
    plan = make_plan(settings, digits.train.shape, 10)
    state = saved(settings, digits)
    judge = Judge(
        settings,
        digits.train,
        digits.train,
        digits.test,
        plan.torch_dtype,
        replay=lambda learned: replay_of(settings, digits.train, learned),
    )
    found = judge.validate(state.learned)  # on the training images, by other students' indices
    assert len(set(found.per_student[:5])) == len(set(found.per_student[5:])) == 1

    ensemble = Ensemble(fixed, digits.train.shape, 10, seed=settings.seed, dtype=plan.torch_dtype)
    drawn = ensemble.draw(0, torch.arange(2))
    labels = torch.arange(10).repeat_interleave(2)
    primitive = Functional(ensemble.module, plan.synthetic)
    weights, _ = replay_students(
        primitive,
        drawn.weights,
        {},
        image_fetch(state.images.flatten(1, 2), labels),
        replay_of(settings, digits.train, state.learned),
    )
    whole = torch.arange(len(digits.test))
    correct = count_correct(primitive, weights, {}, digits.test.batch(whole), digits.test.labels)
    assert [float(share) for share in correct.double() / len(digits.test)] == pytest.approx([shares[0], shares[3]])


def test_the_outer_loss_falls(tmp_path, digits):
    settings = config(tmp_path, steps=60, students=1, learning_rate=0.1, decay_every=0)
    settings = replace(settings, student=replace(settings.student, initialization="fixed"))
    run(settings, digits, judge=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["outer/loss"] for line in lines if "outer/loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_batch_norm_students_leave_no_folder(tmp_path, digits):
    settings = config(tmp_path, student=StudentConfig(width=4, depth=2, norm="batch"))
    with pytest.raises(ValueError, match="got batch norm"):
        run(settings, digits)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_rates_that_diverge_stop_the_run_with_what_is_sound(tmp_path, digits):
    settings = replace(config(tmp_path, inner_learning_rate=1e30), max_masked_share=0.0)
    with pytest.raises(RunFailed, match=r"2 of 2 students non-finite at step 0 \(student 0: "):
        run(settings, digits, judge=False)


def test_own_is_for_images_with_steps_of_plain_sgd(tmp_path):
    own, default = EvaluationConfig(protocol="own"), EvaluationConfig(protocol="default")
    with pytest.raises(ValueError, match="got own for the method matching: change"):
        RunConfig(method=MatchingConfig(), evaluation=own)
    with pytest.raises(ValueError, match="got default for the method unrolled: change"):
        config(tmp_path, evaluation=default)
    for recipe in ({"optimizer": "momentum"}, {"inner_decay": 0.1}):
        with pytest.raises(ValueError, match="got own for the method unrolled"):
            config(tmp_path, evaluation=own, **recipe)
        assert config(tmp_path, evaluation=default, **recipe).evaluation == default


def test_the_state_begins_with_what_is_learned(tmp_path, digits):
    settings = config(tmp_path, runs=2, optimizer="momentum", learn_momenta=True, evaluation=EvaluationConfig())
    plan = make_plan(settings, digits.train.shape, 10)
    state = initial_state(settings, plan, digits.train)
    assert {name: tuple(value.shape) for name, value in state.learned.items()} == {
        "images": (2, 10, 2, 1, 8, 8),
        "rates": (2, 4),
        "momenta": (2, 4),
    }
    assert len(state.moments) == 6
    assert replay_of(settings, digits.train, state.learned) is None
