import logging

import pytest
import torch

from fastdistill.derivatives.plan import Batching, Path
from fastdistill.loop.checkpoint import load_checkpoint, save_checkpoint
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
    return State(step=step, images=images, velocity=images * 2, students=some if students else None)


def save(folder, step, best=None, **options):
    return save_checkpoint(folder, state(step, **options), best, PLAN, config_hash="h", elapsed_s=1.5)


@pytest.mark.parametrize("students", [True, False])
def test_everything_comes_back(tmp_path, students):
    saved = state(7, students=students)
    best = Best(images=saved.images, accuracy=(0.25,), step=(7,))  # the same tensor as the last images
    save(tmp_path, 7, best, students=students)
    found = load_checkpoint(tmp_path)
    assert found.plan == PLAN
    assert found.elapsed_s == 1.5
    assert (found.state.step, found.best.step, found.best.accuracy) == (7, (7,), (0.25,))
    assert torch.equal(found.state.images, saved.images)
    assert torch.equal(found.state.velocity, saved.velocity)
    assert torch.equal(found.best.images, best.images)
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
    assert load_checkpoint(tmp_path).state.step == 100


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = content.index(b"sha256") + 12 if name == "manifest.json" else len(content) - 9
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path).state.step == 1
    assert "step-000002 is damaged" in caplog.text


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text("{}")
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).state.step == 2


def test_steps_are_compared_as_numbers(tmp_path):
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    save(tmp_path, 1_000_001)
    assert load_checkpoint(tmp_path).state.step == 1_000_001
    assert len(list(tmp_path.iterdir())) == 2


def test_there_may_be_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


def test_a_left_over_temporary_is_in_nobodys_way(tmp_path):
    (tmp_path / "step-000003.tmp").mkdir(parents=True)
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
