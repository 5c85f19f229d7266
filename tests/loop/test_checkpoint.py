import hashlib
import json
import logging
import os
import subprocess

import pytest
import torch

from fastdistill.derivatives.plan import Batching, Path
from fastdistill.loop.checkpoint import load_checkpoint, save_checkpoint, sweep_checkpoints
from fastdistill.loop.outer import Best, State
from fastdistill.loop.plan import Plan
from fastdistill.students.ensemble import Students

BATCHING = Batching(path=Path.VMAP, piece=3, students=2)
PLAN = Plan(
    device="cpu",
    dtype="float64",
    threads=2,
    chunk=4,
    real=Batching(path=Path.LOOP, piece=8, students=1),
    synthetic=BATCHING,
    training=BATCHING,
    tf32=True,
    torch_version="2.13.0",
)


def state(step, *, students=True):
    images = torch.full((1, 2, 1, 1, 2, 2), float(step), dtype=torch.float64)
    some = Students(
        indices=torch.arange(2),
        weights=torch.randn(2, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64),
        buffers={"norm.running_mean": torch.ones(2, 3), "norm.num_batches_tracked": torch.tensor([1, 2])},
    )
    learned = {"images": images, "rates": images.flatten(1)[:, :3]}
    moments = {"images.velocity": images * 2, "rates.velocity": images.flatten(1)[:, :3] * 3}
    return State(step=step, learned=learned, moments=moments, students=some if students else None)


def save(folder, step, best=None, **options):
    return save_checkpoint(folder, state(step, **options), best, PLAN, config_hash="h", data_hash="d", elapsed_s=1.5)


@pytest.mark.parametrize("students", [True, False])
def test_everything_comes_back(tmp_path, students):
    saved = state(7, students=students)
    best = Best(learned=saved.learned, accuracy=(0.25,), step=(7,))  # the same tensor as the last images
    save(tmp_path, 7, best, students=students)
    found = load_checkpoint(tmp_path, "h", "d")
    assert found.plan == PLAN
    assert found.elapsed_s == 1.5
    assert (found.state.step, found.best.step, found.best.accuracy) == (7, (7,), (0.25,))
    for whole, expected in (
        (found.state.learned, saved.learned),
        (found.state.moments, saved.moments),
        (found.best.learned, best.learned),
    ):
        assert whole.keys() == expected.keys()
        assert all(torch.equal(whole[name], expected[name]) for name in expected)
    if students:
        assert torch.equal(found.state.students.weights, saved.students.weights)
        for name, value in saved.students.buffers.items():
            assert torch.equal(found.state.students.buffers[name], value)
    else:
        assert found.state.students is None


def test_the_two_newest_are_kept(tmp_path):
    for step in (2, 4, 10, 100):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]
    assert load_checkpoint(tmp_path, "h", "d").state.step == 100


FILES = ("state.safetensors", "manifest.json", "manifest.json.sha256")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_and_every_truncation_is_found(tmp_path, caplog, name):
    save(tmp_path, 1, students=False)
    path = save(tmp_path, 2, students=False) / name
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    damaged += [
        content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        for place in range(len(content))
    ]
    with caplog.at_level(logging.WARNING):
        for number, data in enumerate(damaged):
            path.write_bytes(data)
            caplog.clear()
            assert load_checkpoint(tmp_path, "h", "d").state.step == 1, number
            assert "step-000002 is damaged" in caplog.text, number
    path.unlink()
    assert load_checkpoint(tmp_path, "h", "d").state.step == 1
    path.write_bytes(content)
    assert load_checkpoint(tmp_path, "h", "d").state.step == 2


def test_a_damaged_checkpoint_is_set_aside_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text("{}")
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path, "h", "d").state.step == 2
    assert (tmp_path / "step-000002.damaged" / "manifest.json").read_text() == "{}"


def test_damaged_checkpoints_past_a_step_do_not_push_good_ones_out(tmp_path):
    save(tmp_path, 5)
    for step in (9, 10):
        (save(tmp_path, step) / "manifest.json").write_text("{}")
    save(tmp_path, 4)
    save(tmp_path, 6)
    assert load_checkpoint(tmp_path, "h", "d").state.step == 6
    assert not (tmp_path / "step-000009").exists()


def test_another_configuration_or_version_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"this version \(configuration x\) in .*, got configuration h:"):
        load_checkpoint(tmp_path, "x", "d")
    described = json.dumps(
        {
            "schema": 99,
            "files": json.loads((tmp_path / "step-000001" / "manifest.json").read_text())["files"],
            "config_hash": "h",
        }
    ).encode()
    (tmp_path / "step-000001" / "manifest.json").write_bytes(described)
    (tmp_path / "step-000001" / "manifest.json.sha256").write_text(
        f"{hashlib.sha256(described).hexdigest()}  manifest.json\n"
    )
    with pytest.raises(ValueError, match="got schema 99"):
        load_checkpoint(tmp_path, "h", "d")


def test_other_real_images_are_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"\(data other\) in .*, got data d:"):
        load_checkpoint(tmp_path, "h", "other")


def test_when_none_is_left_it_is_said(tmp_path, caplog):
    (save(tmp_path, 1) / "manifest.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path, "h", "d") is None
    assert "starting again from step 0" in caplog.text
    caplog.clear()
    assert load_checkpoint(tmp_path / "nothing", "h", "d") is None
    assert not caplog.text


def test_only_step_folders_half_written_are_swept(tmp_path):
    for name in ("step-000003.tmp", "cache.tmp", "step-x.tmp"):
        (tmp_path / name).mkdir()
    sweep_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.tmp", "step-x.tmp"]


def test_the_sums_are_those_that_sha256sum_checks(tmp_path):
    path = save(tmp_path, 1)
    done = subprocess.run(["sha256sum", "--check", "--strict", "manifest.json.sha256"], cwd=path, capture_output=True)
    assert done.returncode == 0
    manifest = json.loads((path / "manifest.json").read_text())
    state = (path / "state.safetensors").read_bytes()
    assert manifest["files"]["state.safetensors"] == {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)}


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_steps_are_compared_as_numbers(tmp_path):
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    save(tmp_path, 1_000_001)
    assert load_checkpoint(tmp_path, "h", "d").state.step == 1_000_001
    assert len(list(tmp_path.iterdir())) == 2


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path, "h", "d") is None


def test_a_left_over_temporary_is_in_nobodys_way(tmp_path):
    (tmp_path / "step-000003.tmp").mkdir(parents=True)
    assert load_checkpoint(tmp_path, "h", "d") is None
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
