"""Ten thousand damaged files for every reader of what runs and exports leave."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastdistill.config import RunConfig
from fastdistill.data.normalization import Normalization
from fastdistill.loop.checkpoint import load_checkpoint, save_checkpoint
from fastdistill.loop.metrics import MetricsLog
from fastdistill.loop.outer import State
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import _arms, config_hash, refuse_another, results_of
from fastdistill.options import check_file
from fastdistill.report.folder import read_run
from fastdistill.report.metrics import read_metrics
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.formats import png, pt
from fastdistill.synthetic.load import load
from fastdistill.synthetic.schedule import Schedule
from tests.fuzz import fuzz, mutated

COUNT = 10_000


@pytest.fixture
def distilled() -> Distilled:
    generator = torch.Generator().manual_seed(0)
    return Distilled(
        images=torch.randn(1, 4, 1, 3, 3, generator=generator),
        labels=torch.tensor([0, 0, 1, 1]),
        class_names=("cat", "dog"),
        normalization=Normalization(mean=(0.5,), std=(0.25,)),
    )


@pytest.fixture
def learned(distilled: Distilled) -> Distilled:
    """Images of two runs with everything that can be learned beside them."""
    generator = torch.Generator().manual_seed(1)
    schedule = Schedule(
        rates=torch.full((2, 2), 0.1),
        images=torch.tensor([[0, 2], [1, 3]]),
        optimizer="adam",
        momenta=torch.full((2,), 0.5),
        decay=0.5,
        augmentation="color_flip",
    )
    return replace(
        distilled,
        images=torch.randn(2, 4, 1, 3, 3, generator=generator),
        labels=torch.rand(2, 4, 2, generator=generator),
        schedule=schedule,
        learning_rate=torch.tensor([0.25, 0.5]),
    )


def test_distilled_images(tmp_path: Path, distilled: Distilled, learned: Distilled) -> None:
    # a byte of an image that is another byte cannot be noticed, so fewer are refused than of other files
    fuzz(load, [distilled.to_bytes(), learned.to_bytes()], tmp_path / "distilled.safetensors", refused=0.1)


@pytest.mark.parametrize("kind", ["distilled", "learned"])
@pytest.mark.parametrize("form", [png, pt], ids=["png", "pt"])
def test_exports(tmp_path: Path, request: pytest.FixtureRequest, form: Any, kind: str) -> None:
    distilled = request.getfixturevalue(kind)
    folder = tmp_path / "export"
    folder.mkdir()
    form.write(distilled, folder, "card")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "README.md"]
    for path in files:
        content = path.read_bytes()
        fuzz(lambda _: load(folder), [content], path, count=-(-COUNT // (2 * len(files))), refused=0)
        path.write_bytes(content)
    load(folder)


@pytest.mark.parametrize("names", [("images.pt", "labels.pt"), ("res_x.pt",)], ids=["pair", "results"])
def test_files_of_other_programs(tmp_path: Path, distilled: Distilled, names: tuple[str, ...]) -> None:
    images, labels = distilled.images[0].clone(), distilled.labels.clone()
    contents = {
        "images.pt": images,
        "labels.pt": labels,
        "res_x.pt": {"data": [[images, labels], [images + 1, labels]], "accs_all_exps": {"ConvNet": [0.5]}},
    }
    for name in names:
        torch.save(contents[name], tmp_path / name)

    def read(_: Path) -> None:
        found = load(tmp_path, dataset="mnist")
        assert found.images.isfinite().all() and len(found) == 4

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for path in [tmp_path / name for name in names]:
            content = path.read_bytes()
            fuzz(read, [content], path, count=COUNT // len(names), refused=0.1)
            path.write_bytes(content)
    assert [str(warning.message) for warning in warned] == []


def test_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = torch.ones(1, 2, 1, 1, 2, 2)
    plan = make_plan(RunConfig(device="cpu"), (1, 8, 8), 2)
    for step in (1, 2):
        state = State(step=step, learned={"images": images}, moments={"images.velocity": images})
        path = save_checkpoint(tmp_path, state, None, plan, config_hash="h", data_hash="d", elapsed_s=0.0)
    caplog.set_level(logging.CRITICAL)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for number in range(-(-COUNT // 3)):
            data = mutated([content], number)
            file.write_bytes(data)
            found = load_checkpoint(tmp_path, "h", "d")
            assert found is not None
            assert found.state.step == (2 if data == content else 1), f"mutation {number} of {file.name}"
        file.write_bytes(content)


def test_configurations(tmp_path: Path) -> None:
    values = RunConfig().as_dict()
    seeds = [yaml.safe_dump({name: values[name]}).encode() for name in ("method", "student", "students")]
    fuzz(check_file, [*seeds, b"data: {source: mnist}\nmethod:\n  tensors: [a, b]\n"], tmp_path / "own.yaml")


def test_what_a_start_reads_of_its_folder(tmp_path: Path) -> None:
    config = RunConfig(name="run", output=str(tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()
    digest = config_hash(config.as_dict())
    written = yaml.safe_dump(config.as_dict()).encode()
    # most damage makes another configuration of it, which is refused as such
    fuzz(lambda _: refuse_another(folder, config.as_dict()), [written], folder / "config.yaml", count=COUNT // 4)
    table = {"arms": [], "config_hash": digest, "data_hash": "d", "complete": True}

    def read(_: Path) -> None:
        assert isinstance(results_of(folder, digest), dict)
        assert isinstance(_arms(folder, digest, "d"), list)

    fuzz(read, [json.dumps(table).encode()], folder / "results.json", refused=0)


def test_metrics(tmp_path: Path) -> None:
    lines = [{"step": step, "time_s": 0.5, "outer/loss": 2.5} for step in range(1, 4)]
    seed = "".join(f"{json.dumps(line)}\n" for line in [*lines, {"step": 3, "time_s": 1.0, "note": "masked"}]).encode()
    path = tmp_path / "metrics.jsonl"

    def read(path: Path) -> None:
        assert all(isinstance(record["step"], int) for record in read_metrics(path))
        MetricsLog(path, 2).write(3, 1.0, {"outer/loss": 1.0})
        assert read_metrics(path)[-1] == {"step": 3, "time_s": 1.0, "outer/loss": 1.0}

    fuzz(read, [seed], path, refused=0)


def test_run_folders(tmp_path: Path) -> None:
    contents = {
        "config.yaml": yaml.safe_dump({"name": "a", "method": {"steps": 3}, "data": {"source": "mnist"}}).encode(),
        "results.json": json.dumps({"arms": [{"arm": "random real", "mean": 0.5}], "judged": True}).encode(),
        "environment.json": json.dumps({"cpu": "x", "gpu": {"name": "y"}}).encode(),
        "metrics.jsonl": b'{"step": 1, "time_s": 0.1, "outer/loss": 1.0}\n',
        "evaluations.jsonl": b'{"architecture": "mlp", "mean": 0.5}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def read(_: Path) -> None:
        run = read_run(tmp_path)
        assert run.name
        assert isinstance(run.remarks, list)

    for name, content in contents.items():
        fuzz(read, [content], tmp_path / name, count=COUNT // 5, refused=0)
        (tmp_path / name).write_bytes(content)
