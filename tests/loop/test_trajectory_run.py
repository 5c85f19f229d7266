"""Whole runs of trajectory matching on embedded digits with tiny students and experts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.experts_config import ExpertsConfig
from fastdistill.loop.artefact import as_distilled, labels_of, learning_rate_of, schedule_of
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.experts import train_experts
from fastdistill.loop.fingerprint import data_hash, seen_hash
from fastdistill.loop.opened_experts import open_experts
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.setup import initial_state, make_descent
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods.trajectory import followed
from fastdistill.students.experts import Experts
from tests.experts import HeldExperts

STUDENT = StudentConfig(width=4, depth=2)
SHORT = {"count": 3, "batch": 64, "augmentation": "none", "student": STUDENT, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


@pytest.fixture(scope="module")
def experts(tmp_path_factory, digits):
    """Three networks of six epochs."""
    folder = str(tmp_path_factory.mktemp("experts"))
    return train_experts(ExpertsConfig(output=folder, epochs=6, learning_rate=0.05, **SHORT), digits)


def config(folder, experts, *, steps=4, runs=1, students=2, student=STUDENT, **recipe):
    given = {"inner_steps": 3, "expert_epochs": 2, "max_start_epoch": 4, "inner_learning_rate": 0.05, "batch": 8}
    given |= {"augmentation": "color_crop_cutout_scale_rotate", "image_learning_rate": 10.0}
    return RunConfig(
        output=str(folder),
        ipc=2,
        runs=runs,
        students=students,
        student=student,
        method=TrajectoryConfig(experts=str(experts.folder) if experts else "", steps=steps, **{**given, **recipe}),
        evaluation=EvaluationConfig(protocol="dsa", students=2, validation_every=2, validation_epochs=1),
        checkpoint_every=3,
        log_every=1,
        threads=1,
        device="cpu",
    )


def saved(settings, digits):
    folder = Path(settings.output) / settings.name / "checkpoints"
    followed = Experts.open(settings.method.experts).identity
    return load_checkpoint(folder, config_hash(settings.as_dict()), f"{data_hash(digits)}+{followed}").state


def metrics(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("runs", "recipe"), [(1, {}), (2, {"gradient": "tesla", "halved": True}), (2, {"batch": 0, "keep": 2})]
)
def test_stopping_at_every_step_and_going_on_equals_going_straight(tmp_path, digits, experts, runs, recipe):
    straight, stopped = (config(tmp_path / name, experts, runs=runs, **recipe) for name in ("straight", "stopped"))
    run(straight, digits, judge=False)
    for step in (1, 2, 3):
        assert run(stopped, digits, judge=False, stop_after=step) is None
        assert saved(stopped, digits).step == step
    run(stopped, digits, judge=False)
    for name in ("distilled.safetensors", "distilled-best.safetensors"):
        assert (tmp_path / "straight" / "run" / name).read_bytes() == (tmp_path / "stopped" / "run" / name).read_bytes()
    first, second = saved(straight, digits), saved(stopped, digits)
    for left, right in ((first.learned, second.learned), (first.moments, second.moments)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    assert first.learned.keys() == {"images", "rate"}
    assert first.moments.keys() == {"images.velocity", "rate.velocity"}


@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_students_come_to_end_nearer_to_their_experts(tmp_path, digits, experts, gradient):
    settings = config(
        tmp_path,
        experts,
        steps=150,
        gradient=gradient,
        inner_steps=8,
        batch=0,
        image_learning_rate=30.0,
        rate_learning_rate=1e-4,
        augmentation="none",
    )
    settings = replace(settings, evaluation=EvaluationConfig(protocol="dsa"))
    run(settings, digits, judge=False)
    lines = [line for line in metrics(tmp_path) if "outer/loss" in line]
    losses = [line["outer/loss"] for line in lines]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
    rates = [line["inner/learning_rate"] for line in lines]
    assert rates[0] == pytest.approx(0.05)
    assert len(set(rates)) > 100


def test_a_run_ends_with_its_table_and_an_artefact_without_steps_of_its_own(tmp_path, digits, experts):
    result = run(replace(config(tmp_path, experts, steps=2), evaluation=EvaluationConfig(students=2)), digits)
    arms = {arm["arm"] for arm in result.table["arms"]}
    assert arms == {"distilled (last)", "random real"}
    assert result.distilled.schedule is None
    assert result.distilled.augmentation == "color_crop_cutout_scale_rotate"


def test_an_expert_that_is_not_finite_is_masked_and_named_in_the_log(tmp_path, digits, experts, monkeypatch):
    held = HeldExperts(experts.weights.clone())
    monkeypatch.setattr("fastdistill.loop.opened_experts.open_experts", lambda *given, **more: held)
    settings = replace(config(tmp_path, experts, steps=1, students=4), max_masked_share=0.9)
    chosen, epochs = followed(settings.method, held.count, seed=0, step=0, students=torch.arange(4))
    expert, epoch = int(chosen[1]), int(epochs[1])
    held.weights[expert, epoch, 0] = torch.inf
    run(settings, digits, judge=False)
    notes = " ".join(str(line.get("note", "")) for line in metrics(tmp_path))
    assert f"student 1: weights body.0.convolution.weight of expert {expert} after epoch {epoch}" in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": None}, "expected the folder of experts in method.experts, got none: make some with fastdistill"),
        ({"batch": 21}, "expected a batch of at most the 20 synthetic images, got 21: lower method.batch"),
        ({"max_start_epoch": 6}, "expected experts of at least 7 epochs, got ones of 6: lower method.max_start"),
        ({"student": StudentConfig(width=8, depth=2)}, "expected experts with width 8, got .* with width 4: choose"),
        ({"zca": True}, "expected experts with images whitened by ZCA, got .* with images without ZCA: choose others"),
    ],
)
def test_what_cannot_be_followed_leaves_no_folder(tmp_path, digits, experts, changes, message):
    changes = {"experts": experts, **changes}
    zca = changes.pop("zca", False)
    settings = config(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        run(replace(settings, data=DataConfig(zca=zca)), digits)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_experts_of_other_images_are_refused(tmp_path, digits, experts):
    settings = config(tmp_path, experts)
    seen = seen_hash(digits, settings.data.validation_fraction, settings.seed)
    assert open_experts(settings, digits.train, data_hash=seen).folder == experts.folder
    other = seen_hash(digits, settings.data.validation_fraction, settings.seed + 1)
    with pytest.raises(ValueError, match=r"^expected experts in .* trained on the images of this run"):
        open_experts(settings, digits.train, data_hash=other)
    missing = replace(settings, method=replace(settings.method, experts=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"^expected experts in .*nowhere, found none: make some with fastdistill exp"):
        open_experts(missing, digits.train)


def test_a_run_does_not_go_on_with_other_experts(tmp_path, digits, experts):
    shutil.copytree(experts.folder, tmp_path / "experts")
    settings = config(tmp_path, Experts.open(tmp_path / "experts"))
    assert run(settings, digits, judge=False, stop_after=2) is None
    shutil.rmtree(tmp_path / "experts")
    trained = ExpertsConfig(output=str(tmp_path), name="experts", **SHORT, learning_rate=0.5, epochs=6)
    other = train_experts(trained, digits)
    assert other.folder == tmp_path / "experts" and other.identity != experts.identity
    with pytest.raises(ValueError, match=r"these real images \(and experts\) .*: choose another --name, or remove"):
        run(settings, digits, judge=False)
    shutil.rmtree(tmp_path / "experts")
    shutil.copytree(experts.folder, tmp_path / "experts")
    table = run(settings, digits, judge=False).table
    assert table["data_hash"] == f"{data_hash(digits)}+{experts.identity}"


def test_the_state_begins_with_what_is_learned(tmp_path, digits, experts):
    settings = config(tmp_path, experts, runs=2, labels="learned")
    state = initial_state(settings, make_plan(settings, digits.train.shape, 10), digits.train)
    assert {name: tuple(value.shape) for name, value in state.learned.items()} == {
        "images": (2, 10, 2, 1, 8, 8),
        "rate": (2,),
        "labels": (2, 10, 2, 10),
    }
    assert state.learned["rate"].tolist() == pytest.approx([0.05, 0.05])
    assert schedule_of(settings, state.learned, 10) is None


def test_neither_step_size_nor_labels_fall_below_their_floor():
    method = TrajectoryConfig(
        labels="learned", rate_learning_rate=1.0, label_learning_rate=2.0, image_learning_rate=3.0, momentum=0.5
    )
    descent = make_descent(method)
    learned = {"images": torch.zeros(1, 2), "rate": torch.tensor([0.01]), "labels": torch.tensor([[1.0, 0.5]])}
    down = {name: torch.ones_like(value) for name, value in learned.items()}
    moved, moments = descent.step(learned, down, descent.start(learned), 0)
    assert moved["images"].tolist() == [[-3.0, -3.0]]
    assert moved["rate"].tolist() == pytest.approx([1e-6])
    assert moved["labels"].tolist() == [[0.0, 0.0]]
    up = {name: -torch.ones_like(value) for name, value in learned.items()}
    moved, _ = descent.step(moved, up, moments, 1)
    assert moved["images"].tolist() == [[-1.5, -1.5]]  # momentum 0.5
    assert moved["rate"].tolist() == pytest.approx([0.500001])
    assert moved["labels"].tolist() == [[1.0, 1.0]]
    hard = make_descent(replace(method, labels="hard"))
    assert hard.start({"images": learned["images"], "rate": learned["rate"]}).keys() == {
        "images.velocity",
        "rate.velocity",
    }


def test_labels_and_learning_rates_of_what_was_learned(tmp_path, digits, experts):
    learned = {"images": torch.randn(2, 10, 2, 1, 8, 8), "rate": torch.tensor([0.1, 0.2])}
    rows = torch.rand(2, 10, 2, 10)
    hard, own, said = (config(tmp_path, experts, labels=kind) for kind in ("hard", "learned", "expert"))
    assert learning_rate_of(hard, learned).tolist() == pytest.approx([0.1, 0.2])
    assert learning_rate_of(RunConfig(), learned) is None
    assert labels_of(hard, learned, digits.train) is None
    assert labels_of(own, {**learned, "labels": rows}, digits.train) is rows
    found = labels_of(said, learned, digits.train)
    assert found.shape == rows.shape
    assert torch.allclose(found.sum(-1), torch.ones(2, 10, 2))
    # trained experts tell real digits apart
    real = digits.train.batch(torch.stack([digits.train.class_indices(label)[:50] for label in range(10)]))
    found = labels_of(said, {"images": real[None]}, digits.train)
    assert (found[0].argmax(-1) == torch.arange(10)[:, None]).float().mean() > 0.7


def test_the_artefact_fits_the_configuration(tmp_path, digits, experts):
    settings = config(tmp_path, experts, runs=2, align_corners=False)
    state = initial_state(settings, make_plan(settings, digits.train.shape, 10), digits.train)
    distilled = as_distilled(settings, state.learned, digits.train, "digits", "hash")
    assert distilled.images.shape == (2, 20, 1, 8, 8)
    assert not distilled.align_corners
