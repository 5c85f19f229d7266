"""Whole runs of unrolled training on embedded digits with tiny students."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.layout import Layout
from fastdistill.evaluation.arms import Judge
from fastdistill.evaluation.replay import replay_students
from fastdistill.failures import RunFailed
from fastdistill.loop.artefact import replay_of
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.evaluation import evaluate_run
from fastdistill.loop.examination import examination
from fastdistill.loop.export import export_run
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.setup import initial_state
from fastdistill.method_configs import MatchingConfig, UnrolledConfig
from fastdistill.students.architectures import build_student
from fastdistill.students.ensemble import Ensemble
from fastdistill.students.training import count_correct, image_fetch
from fastdistill.students.weights import initial_weights
from fastdistill.synthetic.load import load
from tests import gtn


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


RAT = {  # drawn batches, a random window, learned labels, clipping by an average: all that outlives a step
    "optimizer": "adam",
    "inner_learning_rate": 0.01,
    "drawn": True,
    "window": 2,
    "learn_rates": False,
    "learn_labels": True,
    "augmentation": "crop_rotate",
    "clip": 2.0,
}


@pytest.mark.parametrize(
    ("runs", "recipe"),
    [(1, {}), (2, {}), (1, {"optimizer": "adam", "inner_learning_rate": 0.01}), (1, {"keep": 2}), (2, RAT)],
    ids=["dd", "two runs", "adam", "keep", "rat"],
)
def test_stopping_and_going_on_equals_going_straight(tmp_path, digits, runs, recipe):
    straight, stopped = (config(tmp_path / name, runs=runs, **recipe) for name in ("straight", "stopped"))
    run(straight, digits, judge=False)
    assert run(stopped, digits, judge=False, stop_after=5) is None
    assert saved(stopped, digits).step == 5
    run(stopped, digits, judge=False)
    assert digest(tmp_path / "straight") == digest(tmp_path / "stopped")
    first, second = saved(straight, digits), saved(stopped, digits)
    for left, right in ((first.learned, second.learned), (first.moments, second.moments)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert ("rates.square" in first.moments) == (recipe != RAT) and ("images.average_norm" in first.moments) == (
        recipe == RAT
    )
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


def test_a_run_is_judged_again_and_exported_by_its_own_steps(tmp_path, digits):
    settings = config(tmp_path)
    folder = run(settings, digits, judge=False).folder
    evaluation, line = evaluate_run(folder, student={}, students=2, device="cpu")
    assert (evaluation.protocol, evaluation.steps) == ("own", settings.method.inner_steps)
    assert "random_real_mean" in line
    written = export_run(folder, to="png", students=1, device="cpu")
    assert "not measured" not in (written / "README.md").read_text()


def pool(folder, student):
    """A folder of three networks."""
    module = build_student("convnet", channels=1, height=8, width=8, num_classes=10, net_width=4, depth=2)
    layout = Layout.of(module)
    folder.mkdir()
    for number, weights in enumerate(initial_weights(module, "default", seed=9, step=0, students=torch.arange(3))):
        save_file(
            {name: view.contiguous() for name, view in layout.views(weights).items()}, folder / f"{number}.safetensors"
        )
    return replace(student, initialization="pretrained", pretrained=str(folder))


@pytest.mark.parametrize("kind", ["fixed", "pretrained"])
def test_images_for_certain_weights_are_judged_on_these_again(tmp_path, digits, kind):
    student = StudentConfig(width=4, depth=2)
    student = replace(student, initialization="fixed") if kind == "fixed" else pool(tmp_path / "pool", student)
    evaluation = EvaluationConfig(protocol="own", students=3)
    settings = config(tmp_path, runs=2, student=student, evaluation=evaluation, learning_rate=0.05)
    result = run(replace(settings, seed=5), digits)
    folder, arms = result.folder, {arm["arm"]: arm for arm in result.table["arms"]}
    found, line = evaluate_run(folder, student={}, students=3, seed=5, device="cpu")
    assert found.per_student == tuple(arms["distilled (last)"]["per_student"])
    test = examination(folder, load(folder), student={}, students=3, seed=5, device="cpu")
    assert replace(test, born=None).judge(load(folder)).per_student != found.per_student
    assert line["random_real_mean"] == pytest.approx(arms["random real"]["mean"])
    assert line["initialization"] == kind
    other, _ = evaluate_run(folder, student={}, students=3, seed=6, random_real=False, device="cpu")
    assert (other.per_student == found.per_student) == (kind == "fixed")  # a pool is drawn from by the seed
    written = export_run(folder, to="png", students=1, device="cpu")
    assert f"with 2 {kind} students of convnet, protocol own" in (written / "README.md").read_text()
    for options in ({"student": {"width": 6}}, {"student": {"architecture": "mlp"}}):
        with pytest.raises(ValueError, match=f"learned for, together with its {kind} weights, got other settings"):
            evaluate_run(folder, students=2, device="cpu", **options)
    fresh, line = evaluate_run(folder, student={"width": 6}, students=2, protocol="dc", epochs=2, device="cpu")
    assert fresh.protocol == "dc" and "initialization" not in line
    (tmp_path / "one").mkdir()
    load(folder).run(1).save(tmp_path / "one" / "distilled.safetensors")
    (tmp_path / "one" / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match=r"expected the images of the 2 runs in .*, got those of 1: name the run"):
        evaluate_run(tmp_path / "one", student={}, students=2, device="cpu")
    if kind == "pretrained":
        (tmp_path / "pool").rename(tmp_path / "moved")
        with pytest.raises(ValueError, match=r"expected \.safetensors files of weights in .*pool, got none"):
            evaluate_run(folder, student={}, students=2, device="cpu")


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


def test_students_with_means_go_on_where_they_stopped_and_are_judged(tmp_path, digits, monkeypatch):
    gtn.narrow(monkeypatch)
    student = StudentConfig(architecture="gtn")
    recipe = {"optimizer": "momentum", "intermediate_every": 1, "student": student, "steps": 5}
    straight, stopped = (config(tmp_path / name, **recipe) for name in ("straight", "stopped"))
    result = run(straight, digits)
    assert run(stopped, digits, judge=False, stop_after=4) is None
    run(stopped, digits, judge=False)
    assert digest(tmp_path / "straight") == digest(tmp_path / "stopped")
    again, _ = evaluate_run(result.folder, student={}, students=3, device="cpu")
    assert again.per_student == tuple(result.table["arms"][0]["per_student"])
    other, _ = evaluate_run(result.folder, student={"architecture": "mlp"}, students=3, device="cpu")
    assert other.per_student != again.per_student


def test_images_for_students_with_means_are_learned(tmp_path, digits):
    settings = config(tmp_path, steps=30, students=1, learning_rate=0.1, decay_every=0)
    student = StudentConfig(architecture="gtn", initialization="fixed")
    run(replace(settings, student=student), digits, judge=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["outer/loss"] for line in lines if "outer/loss" in line]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_rates_that_diverge_for_students_with_means_stop_the_run(tmp_path, digits, monkeypatch):
    gtn.narrow(monkeypatch)
    settings = config(tmp_path, inner_learning_rate=1e30, student=StudentConfig(architecture="gtn"))
    with pytest.raises(RunFailed, match=r"2 of 2 students non-finite at step 0 \(student 0: "):
        run(replace(settings, max_masked_share=0.0), digits, judge=False)


def test_rates_that_diverge_stop_the_run_with_what_is_sound(tmp_path, digits):
    settings = replace(config(tmp_path, inner_learning_rate=1e30), max_masked_share=0.0)
    with pytest.raises(RunFailed, match=r"2 of 2 students non-finite at step 0 \(student 0: "):
        run(settings, digits, judge=False)


def test_own_is_for_images_with_rates_of_their_own_and_for_no_other_method(tmp_path):
    own, default = EvaluationConfig(protocol="own"), EvaluationConfig(protocol="default")
    with pytest.raises(ValueError, match="got own for the method matching: change"):
        RunConfig(method=MatchingConfig(), evaluation=own)
    for recipe in ({}, {"optimizer": "momentum"}, {"inner_decay": 0.1}):
        with pytest.raises(ValueError, match="got default for the method unrolled: change"):
            config(tmp_path, evaluation=default, **recipe)
        assert config(tmp_path, evaluation=own, **recipe).evaluation == own
    for either in (own, default):
        assert config(tmp_path, evaluation=either, learn_rates=False).evaluation == either


@pytest.mark.parametrize("recipe", [{"learn_rates": False}, {**RAT, "drawn_classes": 4}], ids=["cycled", "drawn"])
def test_momenta_decay_and_labels_are_kept_and_replayed(tmp_path, digits, recipe):
    given = {"optimizer": "momentum", "inner_decay": 0.01, "learn_labels": True, **recipe}
    result = run(config(tmp_path, **given), digits)
    kept = result.distilled
    assert kept.schedule.optimizer == given["optimizer"] and kept.schedule.decay == 0.01
    assert kept.schedule.momenta.shape == kept.schedule.rates.shape == (1, 4)
    assert kept.schedule.images.shape == (4, 4 if "drawn_classes" in recipe else 10)
    assert kept.labels.shape == (1, 20, 10) and bool((kept.labels >= 0).all())
    assert not torch.equal(kept.labels, kept.labels.round())
    again, _ = evaluate_run(result.folder, student={}, students=3, device="cpu")
    assert again.per_student == tuple(result.table["arms"][0]["per_student"])


def test_the_state_begins_with_what_is_learned(tmp_path, digits):
    settings = config(tmp_path, runs=2, optimizer="momentum", learn_momenta=True)
    plan = make_plan(settings, digits.train.shape, 10)
    state = initial_state(settings, plan, digits.train)
    assert {name: tuple(value.shape) for name, value in state.learned.items()} == {
        "images": (2, 10, 2, 1, 8, 8),
        "rates": (2, 4),
        "momenta": (2, 4),
    }
    assert len(state.moments) == 6
    replay = replay_of(settings, digits.train, state.learned)
    assert replay.optimizer == "momentum" and replay.momenta.flatten().tolist() == pytest.approx([0.9] * 8)
