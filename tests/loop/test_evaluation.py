import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.loop import evaluation as evaluation_module
from fastdistill.loop.evaluation import evaluate_run
from fastdistill.loop.examination import Examination
from fastdistill.loop.run import run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import load_file as load
from fastdistill.synthetic.schedule import Schedule


@pytest.fixture(scope="module", params=[1, 2], ids=["one run", "two runs"])
def folder(request, tmp_path_factory):
    config = RunConfig(
        name="run",
        output=str(tmp_path_factory.mktemp("runs")),
        runs=request.param,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, steps=4, real_batch=8),
        evaluation=EvaluationConfig(students=2, random_real=False),
        device="cpu",
    )
    return run(config, judge=False).folder


class Remembers(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_run_is_judged_by_other_students(folder):
    evaluation, line = evaluate_run(
        folder, student={"architecture": "mlp"}, students=3, protocol="dc", epochs=5, device="cpu"
    )
    assert len(evaluation.per_student) == 3 * load(folder).runs
    assert (line["architecture"], line["protocol"], line["epochs"]) == ("mlp", "dc", 5)
    written = [json.loads(text) for text in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert written[-1]["images"] == "distilled.safetensors"
    assert written[-1]["per_student"] == list(evaluation.per_student)
    assert 0 <= written[-1]["random_real_mean"] <= 1
    assert written[-1]["source"] == "digits"
    assert not {"depth", "width", "activation", "pooling"} & set(line)
    again, _ = evaluate_run(folder, student={"architecture": "mlp"}, students=3, protocol="dc", epochs=5, device="cpu")
    assert again.per_student == evaluation.per_student


def test_the_runs_own_student_and_protocol_are_the_default(folder):
    evaluation, line = evaluate_run(folder, student={}, students=2, epochs=2, random_real=False, device="cpu")
    assert "random_real_mean" not in line
    assert [line[name] for name in ("architecture", "depth", "width", "norm", "activation", "pooling")] == [
        "convnet",
        2,
        4,
        "instance",
        "relu",
        "avg",
    ]
    assert evaluation.protocol == "default"


@pytest.mark.parametrize(("architecture", "protocol"), [("lenet", "default"), ("convnet", "dsa"), ("alexnet", "dc")])
def test_any_architecture_and_protocol(architecture, protocol, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 16, 16), generator=generator, dtype=torch.uint8).numpy()
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(30) % 3)
    config = RunConfig(
        name="run",
        output=str(tmp_path),
        data=DataConfig(source=f"npz:{tmp_path / 'own.npz'}", validation_fraction=0.0),
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dsa", 1, steps=1, real_batch=4),
        device="cpu",
    )
    folder = run(config, judge=False).folder
    (tmp_path / "own.npz").rename(tmp_path / "moved.npz")
    evaluation, line = evaluate_run(
        folder / "distilled.safetensors",
        student={"architecture": architecture},
        students=2,
        protocol=protocol,
        epochs=2,
        source=f"npz:{tmp_path / 'moved.npz'}",
        device="cpu",
    )
    assert (line["architecture"], evaluation.protocol, len(evaluation.per_student)) == (architecture, protocol, 2)
    assert line["source"] == f"npz:{tmp_path / 'moved.npz'}"


def test_images_with_steps_of_their_own_are_replayed(folder, tmp_path):
    schedule = Schedule(rates=torch.full((2,), 0.01), images=torch.tensor([[0, 1], [2, 3]]))
    replace(load(folder), schedule=schedule).save(tmp_path / "distilled.safetensors")
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    progress = Remembers()
    evaluation, line = evaluate_run(tmp_path, student={}, students=2, device="cpu", progress=progress)
    assert progress.said == [line["note"]] and "train networks only by replaying them" in line["note"]
    assert (evaluation.protocol, line["protocol"], line["steps"], line["epochs"]) == ("own", "own", 2, 0)
    _, line = evaluate_run(tmp_path, student={}, students=2, protocol="dc", epochs=2, device="cpu")
    assert (line["protocol"], line["steps"], line["epochs"]) == ("dc", 0, 2)
    with pytest.raises(ValueError, match="expected no epochs for the protocol own"):
        evaluate_run(tmp_path, student={}, students=2, epochs=2, device="cpu")


def test_what_does_not_exist_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="expected a run folder or a distilled"):
        evaluate_run(tmp_path, student={})
    with pytest.raises(ValueError, match="selected none: use last"):
        evaluate_run(folder, student={}, images="best")
    with pytest.raises(ValueError, match="expected images among last, best"):
        evaluate_run(folder, student={}, images="first")
    with pytest.raises(ValueError, match="at least one student"):
        evaluate_run(folder, student={}, students=0)
    with pytest.raises(ValueError, match="expected a protocol among"):
        evaluate_run(folder, student={}, protocol="mtt", device="cpu")


def alone(folder, place):
    """The run's images and configuration in another folder."""
    place.mkdir()
    for name in ("config.yaml", "distilled.safetensors"):
        (place / name).write_bytes((folder / name).read_bytes())
    return place


def test_a_folder_that_cannot_be_written_is_found_before_any_training(folder, tmp_path, monkeypatch):
    place = alone(folder, tmp_path / "run")
    (place / "evaluations.jsonl").mkdir()
    monkeypatch.setattr(Examination, "judge", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(OSError, match=r"evaluations\.jsonl"):
        evaluate_run(place, student={}, students=1, epochs=1, device="cpu")


def test_a_disk_that_fills_meanwhile_costs_no_evaluation(folder, tmp_path, monkeypatch):
    def full(path, content):
        if content:
            raise OSError(28, "No space left on device", str(path))

    place, progress = alone(folder, tmp_path / "run"), Remembers()
    monkeypatch.setattr(evaluation_module, "append", full)
    evaluation, line = evaluate_run(
        place, student={}, students=1, epochs=1, random_real=False, device="cpu", progress=progress
    )
    assert line["per_student"] == evaluation.per_student
    (said,) = progress.said
    assert said.startswith("the evaluation is not kept: expected to write ") and "No space left on device" in said
