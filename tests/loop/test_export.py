import os
import re
import sys
from dataclasses import replace

import pytest
import torch

import fastdistill
from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.normalization import Normalization
from fastdistill.data.sources import load_source
from fastdistill.loop.export import TARGETS, export_run
from fastdistill.loop.run import run
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import load_file
from fastdistill.synthetic.formats.eight_bit import eight_bit
from fastdistill.synthetic.schedule import Schedule

STUDENT = StudentConfig(width=4, depth=2)


@pytest.fixture(scope="module", params=[(1, False), (2, True)], ids=["one run", "two runs, zca"])
def folder(request, tmp_path_factory):
    runs, zca = request.param
    config = RunConfig(
        name="run",
        output=str(tmp_path_factory.mktemp("runs")),
        runs=runs,
        data=DataConfig(zca=zca),
        student=STUDENT,
        method=matching_recipe("dc", 1, steps=3, real_batch=8, start="real"),
        evaluation=EvaluationConfig(students=2, random_real=False, protocol="dc"),
        device="cpu",
    )
    return run(config, judge=False).folder


@pytest.fixture
def quick(monkeypatch):
    """Protocols of a few epochs, to measure in seconds."""
    from fastdistill.evaluation import protocols

    make = protocols._training
    monkeypatch.setattr(protocols, "_training", lambda name, epochs: make(name, min(epochs, 12)))


class Remembers(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def accuracies(distilled, test, **options):
    images, labels = test
    return fastdistill.evaluate(
        distilled, images, labels, students=2, student=STUDENT, device="cpu", **options
    ).per_student


@pytest.fixture(scope="module")
def digits():
    data = load_source("digits")
    return data.test.images, data.test.labels


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_loaded_again_trains_as_well(folder, digits, to, tmp_path):
    target = export_run(folder, to=to, output=tmp_path / "out", students=0, device="cpu")
    assert target == tmp_path / "out"
    original, found = load_file(folder), fastdistill.load(target)
    expected = eight_bit(original) if to == "png" else original
    assert torch.equal(found.images, expected.images)
    assert accuracies(found, digits, epochs=8) == accuracies(expected, digits, epochs=8)
    assert found.augmentation == original.augmentation
    assert found.config_hash == original.config_hash


@pytest.mark.parametrize("to", ["png", "hf"])
def test_the_card_states_the_accuracy_of_exact_and_eight_bit_images(folder, digits, to, tmp_path, quick):
    target = export_run(folder, to=to, output=tmp_path / "out", students=2, device="cpu")
    card = (target / "README.md").read_text()
    stated = [float(value) for value in re.findall(r"test accuracy of the (?:exact|8-bit) images: ([\d.]+) %", card)]
    exact = load_file(folder)
    for distilled, value in zip((exact, eight_bit(exact)), stated, strict=True):
        found = accuracies(distilled, digits, protocol="dc")
        assert f"{100 * sum(found) / len(found):.2f}" == f"{value:.2f}"
    pairs = [b - a for a, b in zip(accuracies(exact, digits, protocol="dc"), found, strict=True)]
    assert f"difference, student by student: {100 * sum(pairs) / len(pairs):+.2f} ±" in card
    assert f"with {2 * exact.runs} fresh students of convnet, protocol dc" in card


def test_exports_stand_in_the_run_folder_and_are_never_written_over(folder):
    for to in ("pt", "safetensors"):
        assert export_run(folder, to=to) == folder / "exports" / to
        before = sorted(os.listdir(folder / "exports" / to))
        with pytest.raises(ValueError, match="got something there: remove it or name another"):
            export_run(folder, to=to)
        assert sorted(os.listdir(folder / "exports" / to)) == before
    assert sorted(os.listdir(folder / "exports")) == ["pt", "safetensors"]
    copied = folder / "exports" / "safetensors" / "distilled.safetensors"
    assert copied.read_bytes() == (folder / "distilled.safetensors").read_bytes()
    assert "fastdistill.load(" in (copied.parent / "README.md").read_text()


def test_the_best_images_are_exported_beside_the_last(folder):
    load_file(folder).save(folder / "distilled-best.safetensors")
    try:
        assert export_run(folder, to="pt", images="best") == folder / "exports" / "pt-best"
    finally:
        (folder / "distilled-best.safetensors").unlink()
    with pytest.raises(ValueError, match="selected none: use last"):
        export_run(folder, to="pt", images="best")


def test_missing_test_data_are_no_obstacle(folder, tmp_path):
    progress = Remembers()
    target = export_run(
        folder,
        to="png",
        output=tmp_path / "out",
        source=f"npz:{tmp_path / 'moved.npz'}",
        device="cpu",
        progress=progress,
    )
    assert len(progress.said) == 1
    assert progress.said[0].startswith("the accuracy of the 8-bit images is not measured: ")
    card = (target / "README.md").read_text()
    assert "- accuracy: not measured, for want of the run's test set" in card
    assert str(tmp_path) not in card
    assert fastdistill.load(target).runs == load_file(folder).runs


def test_images_without_their_run_are_exported_too(folder, tmp_path):
    load_file(folder).save(tmp_path / "distilled.safetensors")
    progress = Remembers()
    target = export_run(tmp_path, to="png", device="cpu", progress=progress)
    assert "expected config.yaml beside the images" in progress.said[0]
    assert "not measured, for want" in (target / "README.md").read_text()


def test_no_students_measure_nothing(folder, tmp_path):
    progress = Remembers()
    target = export_run(folder, to="png", output=tmp_path / "out", students=0, progress=progress)
    assert progress.said == []
    assert "- accuracy: not measured\n" in (target / "README.md").read_text()


def test_images_with_steps_of_their_own_are_replayed_in_every_form(folder, digits, tmp_path):
    plain = load_file(folder)
    schedule = Schedule(
        rates=torch.linspace(0.02, 0.005, 6, dtype=torch.float64), images=torch.arange(30).view(6, 5) % 10
    )
    replace(plain, schedule=schedule).save(tmp_path / "distilled.safetensors")
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    expected = accuracies(tmp_path, digits)
    assert expected != accuracies(plain, digits, epochs=1)
    images, labels = digits
    for to in TARGETS:
        target = export_run(tmp_path, to=to, students=1, device="cpu")
        found = fastdistill.evaluate(target, images, labels, students=2, student=STUDENT, device="cpu")
        assert (found.protocol, found.steps) == ("own", 6)
        if to != "png":
            assert found.per_student == expected
        card = (target / "README.md").read_text()
        assert "only by replaying them" in card
        if to in ("png", "hf"):
            assert "protocol own, 6 steps of the images' own" in card
    assert torch.load(tmp_path / "exports" / "pt" / "lr.pt", weights_only=True).shape == (6,)


def test_soft_labels_train_as_well_in_every_form(folder, digits, tmp_path):
    plain = load_file(folder)
    rows = torch.rand(plain.runs, 10, 10, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(10)
    soft = replace(plain, labels=rows)
    soft.save(tmp_path / "distilled.safetensors")
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    assert accuracies(soft, digits, epochs=8) != accuracies(plain, digits, epochs=8)
    for to in TARGETS:
        target = export_run(tmp_path, to=to, students=0, device="cpu")
        found = fastdistill.load(target)
        assert torch.equal(found.labels, rows)
        expected = eight_bit(soft) if to == "png" else soft
        assert accuracies(found, digits, epochs=8) == accuracies(expected, digits, epochs=8)
        assert "The labels are soft" in (target / "README.md").read_text()


def test_what_cannot_be_exported_leaves_nothing(folder, tmp_path, monkeypatch):
    before = sorted(folder.parent.rglob("*"))
    for options, message in [
        ({"to": "jpeg"}, "expected an export to one of safetensors, png, pt, hf, got 'jpeg'"),
        ({"to": "png", "students": -1}, "expected 0 or more students"),
        ({"to": "png", "images": "first"}, "expected images among last, best"),
        ({"to": "png", "output": folder}, "got something there"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_run(folder, **options)
    with pytest.raises(ValueError, match="finish the run"):
        export_run(tmp_path, to="png")
    two = replace(
        load_file(folder),
        images=torch.zeros(1, 10, 2, 8, 8),
        normalization=Normalization(mean=(0.0, 0.0), std=(1.0, 1.0)),
    )
    two.save(tmp_path / "distilled.safetensors")
    for to in ("png", "hf"):
        with pytest.raises(ValueError, match="got 2: export to safetensors or pt"):
            export_run(tmp_path, to=to)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install"):
        export_run(folder, to="hf")
    assert os.listdir(tmp_path) == ["distilled.safetensors"]
    assert sorted(folder.parent.rglob("*")) == before


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_run(folder, to="pt", output=tmp_path / "out")
    assert os.listdir(tmp_path) == []
