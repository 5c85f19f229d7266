"""Folders of baselines: judged, stopped, gone on with, refused."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
import yaml

import fastdistill.loop.baseline
from fastdistill.baseline_config import LABELS, BaselineConfig
from fastdistill.config import StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.files import held
from fastdistill.loop.baseline import run_baselines
from fastdistill.progress import Silent
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.load import load

NAMES = ("random_real", "class_average", "herding", "whole_set")


def tiny(output, **changes):
    return BaselineConfig(
        **{
            "name": "tiny",
            "output": str(output),
            "ipc": 2,
            "baselines": NAMES,
            "epochs": 2,
            "students": 2,
            "whole_epochs": 1,
            "whole_students": 1,
            "networks": 1,
            "network_epochs": 1,
            "student": StudentConfig(width=4, depth=2),
            "device": "cpu",
            "threads": 1,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def digits():
    data = load_source("digits")
    some = torch.arange(0, len(data.train), 5)
    return replace(data, train=data.train.subset(some), test=data.test.subset(torch.arange(60)))


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory):
    """Baselines that nothing came between, and where they are."""
    config = tiny(tmp_path_factory.mktemp("straight"))
    return run_baselines(config, digits), config.folder


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def timeless(results):
    """Results without the seconds, which no two starts share."""
    return {
        **results,
        "arms": [{**arm, "seconds": 0, "per_student": list(arm["per_student"])} for arm in results["arms"]],
    }


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_a_folder_holds_the_table_and_the_images(digits, straight):
    results, folder = straight
    images = {f"{name}.{suffix}" for name in NAMES if name != "whole_set" for suffix in ("png", "safetensors")}
    assert {path.name for path in folder.iterdir()} == images | {"config.yaml", "environment.json", "results.json"}
    kept = json.loads((folder / "results.json").read_text())
    assert timeless(kept) == timeless(results)
    assert kept["complete"]
    assert [arm["arm"] for arm in kept["arms"]] == [LABELS[name] for name in NAMES]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == tiny(folder.parent).as_dict()
    for name in ("class_average", "herding", "random_real"):
        found = load(folder / f"{name}.safetensors")
        assert found.images.shape == (1, 20, 1, 8, 8)
        assert found.class_names == digits.train.class_names
        assert found.config_hash == kept["config_hash"]
        assert found.details["baseline"] == name
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert load(folder / "random_real.safetensors").details["draw"] == "the first of 2"


def test_no_validation_image_is_chosen(digits, tmp_path):
    config = tiny(tmp_path, baselines=("forgetting",), data=replace(tiny(tmp_path).data, validation_fraction=0.5))
    run_baselines(config, digits)
    chosen = load(config.folder / "forgetting.safetensors").pixels()[0].flatten(1)
    kept, held_out = fastdistill.loop.baseline.stratified_split(digits.train.labels, 0.5, config.seed)
    away = [torch.cdist(chosen, digits.train.images[part].flatten(1) / 255).amin(1).max() for part in (kept, held_out)]
    assert float(away[0]) < 1e-2 < float(away[1])


def test_what_was_judged_before_a_stop_is_kept(digits, straight, tmp_path, monkeypatch):
    config, judge = tiny(tmp_path), fastdistill.loop.baseline.judge_baselines

    def stopping(*words, **options):
        for count, one in enumerate(judge(*words, **options)):
            if count == 2:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(fastdistill.loop.baseline, "judge_baselines", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_baselines(config, digits)
    path = config.folder / "results.json"
    half = json.loads(path.read_text())
    assert [arm["arm"] for arm in half["arms"]] == ["random real", "class average"]
    assert not half["complete"]
    half["arms"][0]["seconds"] = -1.0
    path.write_text(json.dumps(half))
    results = run_baselines(config, digits)
    assert results["arms"][0]["seconds"] == -1.0
    results["arms"][0]["seconds"] = 0
    assert timeless(results)["arms"] == timeless(straight[0])["arms"]
    assert {**digests(config.folder)} == digests(straight[1])


def test_a_finished_folder_is_left_as_it_is(digits, straight):
    results, folder = straight
    before, heard = {path: path.stat().st_mtime_ns for path in folder.iterdir()}, Heard()
    again = run_baselines(tiny(folder.parent), digits, progress=heard)
    assert timeless(again) == timeless(results)
    assert heard.said == [f"{folder} is finished already"]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_baseline_whose_images_are_gone_is_judged_again(digits, straight, tmp_path):
    config = tiny(tmp_path, baselines=("class_average",))
    run_baselines(config, digits)
    (config.folder / "class_average.safetensors").unlink()
    run_baselines(config, digits)
    assert digests(config.folder)["class_average.safetensors"]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"arms": 3}', b"{}"])
def test_a_damaged_table_is_said_and_written_again(digits, tmp_path, damage):
    config, heard = tiny(tmp_path, baselines=("class_average",)), Heard()
    first = run_baselines(config, digits)
    (config.folder / "results.json").write_bytes(damage)
    again = run_baselines(config, digits, progress=heard)
    assert timeless(again) == timeless(first)
    assert heard.said == [f"{config.folder / 'results.json'} is damaged: judging all baselines again"]


def test_other_images_are_said_and_judged(digits, tmp_path):
    config, heard = tiny(tmp_path, baselines=("class_average",)), Heard()
    first = run_baselines(config, digits)
    other = replace(digits, train=digits.train.subset(torch.arange(200)))
    again = run_baselines(config, other, progress=heard)
    assert again["data_hash"] != first["data_hash"]
    assert heard.said == ["the images are others than at the last start: judging all baselines again"]


def test_another_configuration_is_refused(digits, straight):
    _, folder = straight
    with pytest.raises(ValueError, match=r"differs in ipc \(2 there, 1 here\): choose another --name"):
        run_baselines(tiny(folder.parent, ipc=1), digits)


def test_a_folder_of_something_else_or_in_use_is_refused(digits, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"got thesis\.txt and no config\.yaml"):
        run_baselines(tiny(tmp_path), digits)
    with held(tmp_path / "other"), pytest.raises(ValueError, match="another process is writing to"):
        run_baselines(tiny(tmp_path, name="other"), digits)


def against(digits, folder, ipc=2, shape=(1, 8, 8)):
    Distilled(
        images=torch.zeros(1, 10 * ipc, *shape),
        labels=torch.arange(10).repeat_interleave(ipc),
        class_names=digits.train.class_names,
        normalization=digits.train.normalization,
    ).save(folder / "distilled.safetensors")
    return str(folder)


def test_settings_that_do_not_work_out_leave_no_folder(digits, tmp_path):
    neighbours = {"baselines": ("nearest_neighbour",)}
    cases = [
        ({"ipc": 500, "baselines": ("herding",)}, "expected at least 500 training images in every class, got 2"),
        ({**neighbours, "against": str(tmp_path / "none")}, "expected a run folder"),
        ({**neighbours, "against": against(digits, tmp_path / "ipc", ipc=3)}, "expected 2 distilled images of every"),
        ({**neighbours, "against": against(digits, tmp_path / "shape", shape=(1, 9, 9))}, "training images' shape"),
    ]
    for changes, expected in cases:
        with pytest.raises(ValueError, match=expected):
            run_baselines(tiny(tmp_path, **changes), digits)
        assert not (tmp_path / "tiny").exists()


def test_neighbours_are_of_the_images_that_were_there(digits, tmp_path):
    run = tmp_path / "run"
    config, heard = tiny(tmp_path, baselines=("nearest_neighbour",), against=against(digits, run)), Heard()
    first = run_baselines(config, digits)
    assert len(first["arms"]) == 1
    found = load(run)
    replace(found, images=found.images + 1).save(run / "distilled.safetensors")
    again = run_baselines(config, digits, progress=heard)
    assert again["against_hash"] != first["against_hash"]
    assert heard.said == ["the images are others than at the last start: judging all baselines again"]
