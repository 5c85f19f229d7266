"""Whole runs on embedded digits with tiny students."""

import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.dual.primitive import Dual
from fastdistill.failures import Stopped
from fastdistill.loop.run import config_hash, run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.synthetic.load import load

GOLDEN = Path(__file__).parent / "golden.json"
EVALUATION = EvaluationConfig(
    protocol="default",
    students=2,
    whole_epochs=1,
    whole_students=2,
    validation_every=10,
    validation_students=2,
    validation_epochs=2,
)


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(folder, *, method="dc", ipc=1, steps=20, runs=1, students=2, dtype="float32", **changes):
    recipe = {"steps": steps, "real_batch": 8, "outer_loop": 1 if ipc == 1 else 4, "inner_loop": 2}
    return RunConfig(
        name="run",
        output=str(folder),
        ipc=ipc,
        runs=runs,
        students=students,
        dtype=dtype,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe(method, ipc, **recipe),
        evaluation=EVALUATION,
        checkpoint_every=5,
        log_every=1,
        threads=1,
        device="cpu",
        **changes,
    )


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def digest(folder, name="distilled.safetensors"):
    return hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest()


def losses(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["outer/loss"] for line in lines if "outer/loss" in line]


@pytest.mark.parametrize(("method", "ipc", "runs"), [("dc", 1, 1), ("dsa", 1, 2), ("dc", 2, 1), ("dsa", 2, 2)])
def test_stopping_and_going_on_equals_going_straight(tmp_path, digits, method, ipc, runs):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(config(straight, method=method, ipc=ipc, runs=runs), digits, judge=False)
    assert run(config(stopped, method=method, ipc=ipc, runs=runs), digits, stop_after=7) is None
    run(config(stopped, method=method, ipc=ipc, runs=runs), digits, judge=False)
    assert digest(straight) == digest(stopped)
    assert digest(straight, "distilled-best.safetensors") == digest(stopped, "distilled-best.safetensors")
    assert losses(straight) == losses(stopped)
    assert len(losses(straight)) == 20


def test_the_same_plan_gives_the_same_bits(tmp_path, digits):
    for name in ("a", "b"):
        run(config(tmp_path / name), digits, judge=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    run(config(tmp_path / "c", seed=1), digits, judge=False)
    assert losses(tmp_path / "c") != losses(tmp_path / "a")


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_golden_losses(tmp_path, digits, method):
    """A refactoring must reproduce these; they were written by this code (see `write_golden`)."""
    run(config(tmp_path, method=method, ipc=2, dtype="float64"), digits, judge=False)
    assert losses(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())[method], rel=1e-9)


def write_golden(folder):
    """Writes the golden losses anew, after a deliberate change: ``python tests/loop/test_run.py FOLDER``."""
    found = {}
    for method in ("dc", "dsa"):
        run(config(folder / method, method=method, ipc=2, dtype="float64"), load_source("digits"), judge=False)
        found[method] = losses(folder / method)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


def test_a_run_leaves_its_folder(tmp_path, digits):
    settings = config(tmp_path, picture_every=10)
    result = run(settings, digits)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "distilled.safetensors",
        "distilled-best.safetensors",
        "images.png",
        "images-000010.png",
        "images-000020.png",
        "curves.png",
        "report.html",
        "checkpoints",
        "tensorboard",
    }
    assert yaml.safe_load((folder / "config.yaml").read_text()) == settings.as_dict()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-000015", "step-000020"}
    table = json.loads((folder / "results.json").read_text())
    assert [arm["arm"] for arm in table["arms"]] == [
        "distilled (last)",
        "distilled (best on validation)",
        "random real",
        "whole training set",
    ]
    for arm in table["arms"]:
        assert 0 <= arm["mean"] <= 1
        assert len(arm["per_student"]) == 2
    assert table["arms"][0]["images"] == 10
    held_out = sum(round(0.1 * size) for size in digits.train.class_sizes)
    assert abs(table["arms"][3]["images"] - (len(digits.train) - held_out)) <= 10  # within one image a class
    assert table["plan"]["dtype"] == "float32"
    assert load(folder).config_hash == config_hash(settings.as_dict())
    assert (result.distilled.images == load(folder).images).all()
    assert "distilled (last)" in (folder / "report.html").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/acc_mean" in line] == [10, 20]
    assert lines[0]["perf/step_s"] > 0
    assert lines[0]["mem/peak_mb"] > 0


def test_a_finished_run_repeats_to_the_same_result(tmp_path, digits):
    first = run(config(tmp_path), digits)
    written = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    again = run(config(tmp_path), digits)
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == written  # nothing is judged twice
    assert (first.distilled.images == again.distilled.images).all()
    assert json.loads(json.dumps(first.table)) == again.table


def test_a_finished_run_with_damaged_images_is_written_again(tmp_path, digits):
    first = run(config(tmp_path), digits)
    path = tmp_path / "run" / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    told = Told()
    again = run(config(tmp_path), digits, progress=told)
    assert any("is finished but damaged" in text for text in told.said)
    assert (first.distilled.images == again.distilled.images).all()
    assert (load(path).images == first.distilled.images).all()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"arms": 3}', "[" * 5000])
def test_damaged_results_are_measured_again(tmp_path, digits, content):
    first = run(config(tmp_path), digits)
    (tmp_path / "run" / "results.json").write_text(content)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = run(config(tmp_path), digits)
    assert again.table["step_s"] is None
    assert [arm["per_student"] for arm in again.table["arms"]] == [arm["per_student"] for arm in first.table["arms"]]


def test_another_configuration_of_a_finished_folder_without_its_file_is_refused(tmp_path, digits):
    run(config(tmp_path), digits)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration"):
        run(config(tmp_path, seed=7), digits)


def test_small_classes_are_said(tmp_path, digits):
    told = Told()
    settings = config(tmp_path, steps=1)
    run(replace(settings, method=replace(settings.method, real_batch=500)), digits, progress=told, judge=False)
    assert any(text.startswith("real batches have 1") and "not 500" in text for text in told.said)


def test_another_machine_is_kept_beside_the_first(tmp_path, digits, monkeypatch):
    run(config(tmp_path), digits, stop_after=1)
    first = (tmp_path / "run" / "environment.json").read_text()
    monkeypatch.setattr("fastdistill.loop.run.describe_environment", lambda: {"cpu": "another"})
    run(config(tmp_path), digits, stop_after=2)
    assert (tmp_path / "run" / "environment.json").read_text() == first
    assert json.loads((tmp_path / "run" / "environments.jsonl").read_text()) == {"cpu": "another"}


def test_a_run_stopped_before_its_judgement_is_judged_when_repeated(tmp_path, digits):
    run(config(tmp_path), digits, judge=False)
    again = run(config(tmp_path), digits)
    assert again.table["arms"][0]["arm"] == "distilled (last)"


def test_a_judgement_goes_on_behind_its_last_arm(tmp_path, digits):
    class Interrupting(Silent):
        stages = ()

        @contextmanager
        def stage(self, name, total, done=0):
            self.stages = (*self.stages, name)
            if self.stop_at in name:
                raise Stopped("by hand")
            yield lambda count, remark: None

    straight = run(config(tmp_path / "straight"), digits)
    watching = Interrupting()
    for watching.stop_at in ("random", "whole", "nothing"):
        watching.stages = ()
        if watching.stop_at == "nothing":
            found = run(config(tmp_path), digits, progress=watching)
        else:
            with pytest.raises(Stopped):
                run(config(tmp_path), digits, progress=watching)
            assert not json.loads((tmp_path / "run" / "results.json").read_text())["judged"]
        judged = [name for name in watching.stages if name.startswith("testing")]
        assert len(judged) == {"random": 2, "whole": 2, "nothing": 1}[watching.stop_at]  # only what was not judged yet
    arms = [(arm["arm"], arm["per_student"]) for arm in found.table["arms"]]
    assert [(name, list(shares)) for name, shares in arms] == [
        (arm["arm"], list(arm["per_student"])) for arm in straight.table["arms"]
    ]
    assert found.table["judged"]


def test_a_run_out_of_memory_goes_on_in_smaller_chunks(tmp_path, digits, monkeypatch):
    plain = Dual.products

    def small(self, weights, *arguments, **options):
        if len(weights) > 2 and not weights.is_meta:  # the forecast counts on the meta device
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, weights, *arguments, **options)

    settings = config(tmp_path / "whole", students=8, dtype="float64", steps=4)
    whole = run(settings, digits, judge=False)
    monkeypatch.setattr(Dual, "products", small)
    told = Told()
    found = run(replace(settings, output=str(tmp_path / "small")), digits, progress=told, judge=False)
    assert [text for text in told.said if text.startswith("out of memory")] == [
        f"out of memory: going on with chunks of {chunk} students, 8 real images at once" for chunk in (4, 2)
    ]
    assert (found.table["plan"]["chunk"], whole.table["plan"]["chunk"]) == (2, 8)
    difference = (found.distilled.images - whole.distilled.images).norm() / whole.distilled.images.norm()
    assert difference < 1e-6


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("fastdistill.loop.run.available_memory", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"predicted to need \d.*: (lower|use|free)"):
        run(config(tmp_path, students=200), digits)
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_it_will_need(tmp_path, digits):
    told = Told()
    table = run(config(tmp_path), digits, progress=told, judge=False).table
    assert any(re.fullmatch(r"predicted: (\d+ MB|\d+\.\d GB) of .*B, \d+\.\d MFLOP a step", text) for text in told.said)
    assert table["predicted_peak_mb"] >= table["predicted_distill_peak_mb"] > 100
    assert table["counted_flops"] == table["step_flops"] > 0
    assert table["step_flops"] == pytest.approx(table["flops_per_s"] * table["step_s"])


def test_a_folder_of_another_run_is_refused(tmp_path, digits):
    run(config(tmp_path), digits, stop_after=1)
    with pytest.raises(ValueError, match=r"differs in students \(2 there, 3 here\): choose another --name"):
        run(config(tmp_path, students=3), digits)
    run(config(tmp_path), digits, stop_after=2)  # the same run may go on


def test_settings_that_fail_leave_no_folder_behind(tmp_path, digits):
    with pytest.raises(ValueError, match="expected tensors among"):
        wrong = config(tmp_path)
        run(replace(wrong, method=replace(wrong.method, tensors=["nothing"])), digits)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert run(config(tmp_path), digits, stop_after=1) is None


def test_batch_norm_students_go_on_to_the_same_bits(tmp_path, digits):
    def batch_norm(folder):
        settings = config(folder, ipc=2)
        return replace(settings, student=replace(settings.student, norm="batch"))

    run(batch_norm(tmp_path / "a"), digits, judge=False)
    assert run(batch_norm(tmp_path / "b"), digits, stop_after=7) is None
    run(batch_norm(tmp_path / "b"), digits, judge=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_every_run_is_selected_and_reported_by_itself(tmp_path, digits):
    table = run(config(tmp_path, runs=2), digits).table
    assert len(table["best_step"]) == 2
    assert len(table["arms"][0]["per_run"]) == 2


@pytest.mark.parametrize("source", ["folder", "npz"])
@pytest.mark.parametrize("zca", [False, True])
def test_own_data_runs_from_end_to_end(tmp_path, digits, source, zca):
    images, labels = digits.train.images[:200, 0].numpy(), digits.train.labels[:200].numpy()
    if source == "npz":
        np.savez(tmp_path / "own.npz", images=images, labels=labels)
        where = f"npz:{tmp_path / 'own.npz'}"
    else:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            (tmp_path / "own" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "own" / str(label) / f"{index}.png")
        where = f"folder:{tmp_path / 'own'}"
    result = run(config(tmp_path, steps=10, data=DataConfig(source=where, zca=zca)))
    assert result.distilled.images.shape == (1, 10, 1, 8, 8)
    assert (load(tmp_path / "run").normalization.whitening is not None) == zca
    assert result.table["arms"][2]["arm"] == "random real"


def test_selection_needs_a_validation_split(tmp_path, digits):
    with pytest.raises(ValueError, match=r"raise data\.validation_fraction"):
        run(config(tmp_path, data=DataConfig(validation_fraction=0.0)), digits)


def test_images_move_towards_the_real_gradients(tmp_path, digits):
    run(config(tmp_path, steps=60, students=4), digits, judge=False)
    found = losses(tmp_path)
    assert sum(found[-10:]) < 0.8 * sum(found[:10])


if __name__ == "__main__":
    import sys

    write_golden(Path(sys.argv[1]))
