import logging
from dataclasses import replace

import pytest
import torch

from fastdistill.derivatives.plan import Batching, Path
from fastdistill.loop.experts_plan import ExpertsPlan
from fastdistill.loop.experts_state import State, load_state, save_state
from fastdistill.loop.experts_trainer import Chunk

COUNT, EPOCHS = 5, 3
BATCHING = Batching(path=Path.VMAP, piece=4, students=2)
PLAN = ExpertsPlan(device="cpu", threads=1, chunk=2, training=BATCHING, testing=BATCHING, tf32=True, torch_version="2")
HASHES = {"config_hash": "c", "data_hash": "d"}


def state(first=0, epoch=1, *, momentum=True):
    indices = torch.arange(first, min(first + 2, COUNT))
    weights = torch.randn(len(indices), 32, generator=torch.Generator().manual_seed(epoch))
    return State(
        chunk=Chunk(indices=indices, weights=weights, velocity=weights + 1 if momentum else None, loss=weights.mean(1)),
        epoch=epoch,
        sums=torch.arange(COUNT * (EPOCHS + 1)).view(COUNT, EPOCHS + 1) + epoch,
        losses=torch.full((COUNT, EPOCHS), 0.1, dtype=torch.float64),
        accuracies=torch.full((COUNT, 2), 0.5, dtype=torch.float64),
        plan=PLAN,
    )


def names(folder):
    return sorted(path.name[:13] for path in folder.iterdir())


@pytest.mark.parametrize("momentum", [False, True])
def test_a_state_comes_back_as_it_was(tmp_path, momentum):
    before = state(2, 3, momentum=momentum)
    save_state(tmp_path, before, **HASHES)
    after = load_state(tmp_path, **HASHES)
    assert (after.epoch, after.plan, after.first, after.following) == (3, PLAN, 2, 4)
    for name in ("sums", "losses", "accuracies"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    for name in ("indices", "weights", "loss"):
        assert torch.equal(getattr(after.chunk, name), getattr(before.chunk, name))
    assert (after.chunk.velocity is None) is not momentum
    assert not momentum or torch.equal(after.chunk.velocity, before.chunk.velocity)


def test_what_is_done_is_counted():
    assert [state(0, 0).units, state(0, 3).units, state(2, 0).units, state(4, 2).units] == [0, 6, 6, 14]
    assert [state(2, 3).finished, state(4, 2).finished, state(4, 3).finished] == [False, False, True]


def test_the_two_newest_are_kept(tmp_path):
    for first, epoch in ((0, 2), (0, 3), (2, 0), (2, 1)):
        save_state(tmp_path, state(first, epoch), **HASHES)
    assert names(tmp_path) == ["000002-000000", "000002-000001"]
    assert load_state(tmp_path, **HASHES).epoch == 1
    assert load_state(tmp_path / "nowhere", **HASHES) is None


def damage(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [damage, truncate])
def test_the_last_whole_state_is_gone_back_to(tmp_path, harm, caplog):
    for epoch in (1, 2):
        save_state(tmp_path, state(0, epoch), **HASHES)
    harm(max(tmp_path.iterdir()))
    with caplog.at_level(logging.WARNING):
        assert load_state(tmp_path, **HASHES).epoch == 1
    assert "000000-000002" in caplog.text
    save_state(tmp_path, replace(state(0, 2), epoch=2), **HASHES)  # in place of the damaged one
    assert names(tmp_path) == ["000000-000001", "000000-000002"]
    assert load_state(tmp_path, **HASHES).epoch == 2
    for path in tmp_path.iterdir():
        harm(path)
    with caplog.at_level(logging.WARNING):
        assert load_state(tmp_path, **HASHES) is None
    assert "starting again" in caplog.text


@pytest.mark.parametrize("name", ["config_hash", "data_hash"])
def test_a_state_of_something_else_is_refused(tmp_path, name):
    save_state(tmp_path, state(), **HASHES)
    with pytest.raises(ValueError, match=f"these real images and this version, got another {name}: choose"):
        load_state(tmp_path, **{**HASHES, name: "x"})


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "thesis.safetensors").write_bytes(b"theirs")
    save_state(tmp_path, state(), **HASHES)
    assert load_state(tmp_path, **HASHES).epoch == 1
    assert (tmp_path / "thesis.safetensors").read_bytes() == b"theirs"
