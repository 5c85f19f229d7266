"""Folders of experts: trained, killed, stopped, refused, gone on with to the same bits."""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

import fastdistill.loop.experts
from fastdistill.config import DataConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.data.split import stratified_split
from fastdistill.derivatives.layout import Layout
from fastdistill.experts_config import ExpertsConfig
from fastdistill.failures import RunFailed, Stopped
from fastdistill.files import held
from fastdistill.loop.experts import train_experts
from fastdistill.loop.experts_plan import ExpertsPlan
from fastdistill.loop.experts_trainer import Trainer
from fastdistill.loop.fingerprint import seen_hash
from fastdistill.loop.stop import Stop
from fastdistill.progress import Silent
from fastdistill.students.experts import DESCRIPTION, FILE, UNFINISHED, Experts
from fastdistill.students.experts_writer import ExpertsWriter
from tests.compiling import compiles

KILLS = 5
COUNT, EPOCHS = 3, 2
UNITS = 2 * (EPOCHS + 1)  # two chunks of experts, each with its start


def tiny(output, **changes):
    return ExpertsConfig(
        **{
            "name": "tiny",
            "output": str(output),
            "count": COUNT,
            "epochs": EPOCHS,
            "chunk": 2,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "student": StudentConfig(width=2, depth=1),
            "threads": 1,
            "device": "cpu",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def digits():
    data = load_source("digits")
    some = torch.arange(0, len(data.train), 4)
    return replace(data, train=data.train.subset(some), test=data.test.subset(torch.arange(60)))


@pytest.fixture(autouse=True)
def no_forecast(monkeypatch):
    """The forecast costs most of a start of so few experts, and is tested elsewhere."""
    monkeypatch.setattr("fastdistill.loop.experts.needed_memory", lambda *_: 1)


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory):
    """Experts that nothing came between."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdistill.loop.experts.needed_memory", lambda *_: 1)
        return train_experts(tiny(folder), digits)


def digests(folder):
    """Of all that was learned; where it was put is no part of it."""
    found = json.loads((folder / DESCRIPTION).read_text())
    found["config"].pop("output")
    return hashlib.sha256((folder / FILE).read_bytes()).hexdigest(), found


class Heard(Silent):
    """Keeps what was said, and calls something after every unit."""

    def __init__(self, after=lambda: None):
        self.said, self.units, self._after = [], [], after

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def stage(self, name, total, done=0):
        def advance(count, remark):
            self.units.append(count)
            self._after()

        yield advance


def test_experts_are_trained_and_say_what_they_are(digits, straight):
    folder = straight.folder
    assert (straight.count, straight.epochs) == (COUNT, EPOCHS)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "environment.json",
        DESCRIPTION,
        FILE,
    ]
    said = straight.description
    assert said["config"] == tiny(folder.parent).as_dict() == yaml.safe_load((folder / "config.yaml").read_text())
    assert said["weights"]["sha256"] == hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    assert said["augmentation"] == "color_crop_cutout_scale_rotate"
    assert said["normalization"]["mean"] == list(digits.train.normalization.mean)
    assert said["torch"] == torch.__version__
    losses = torch.tensor(said["training_loss"])
    assert losses.shape == (COUNT, EPOCHS)
    assert (losses[:, 1] < losses[:, 0]).all()
    layout = Layout.of(Trainer(tiny("x"), digits.train, *batchings(said)).module)
    digest = seen_hash(digits, 0.1, 0)
    straight.check(layout=layout, student=StudentConfig(width=2, depth=1), data_hash=digest, zca=False)


def batchings(said):
    plan = ExpertsPlan.from_dict(said["plan"])
    return plan.training, plan.testing


def test_the_file_holds_what_training_gives_and_no_held_out_image_is_seen(digits, straight):
    config = tiny("x")
    kept, held_out = stratified_split(digits.train.labels, 0.1, 0)
    assert len(held_out)
    seen = digits.train.subset(kept)
    trainer = Trainer(config, seen, *batchings(straight.description))
    chunk = trainer.start(torch.arange(2, 3))  # the second chunk
    for epoch in range(EPOCHS + 1):
        assert torch.equal(straight.weights[2, epoch], chunk.weights[0])
        if epoch < EPOCHS:
            chunk = trainer.epoch(chunk, epoch + 1)
    last = straight.at(torch.arange(3), torch.full((3,), EPOCHS), dtype=torch.float32, device=torch.device("cpu"))
    for name, store in (("training", seen), ("test", digits.test)):
        assert straight.accuracy[name] == tuple(trainer.accuracy(last, store).tolist())


@pytest.mark.parametrize("after", range(UNITS))
def test_experts_go_on_to_the_same_bits(digits, straight, tmp_path, after):
    config = tiny(tmp_path)
    assert train_experts(config, digits, stop_after=after) is None
    train_experts(config, digits)
    assert digests(config.folder) == digests(straight.folder)


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_chunk_changes_nothing_but_rounding(digits, straight, tmp_path, chunk):
    found = train_experts(tiny(tmp_path, chunk=chunk), digits)
    assert torch.allclose(found.weights, straight.weights, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.weights[:, 0], straight.weights[:, 0])


@compiles
def test_compiled_experts_differ_by_rounding_and_compile_once(digits, straight, tmp_path):
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    heard = Heard(lambda: graphs.append(counters["stats"]["unique_graphs"]))
    found = train_experts(tiny(tmp_path, compile="always", chunk=3), digits, progress=heard)
    assert "derivatives by dual layers, compiled" in heard.said
    assert torch.allclose(found.weights, straight.weights, rtol=1e-3, atol=1e-4)
    start, first, last = graphs  # with the last epoch come those that classify training images and test images
    assert start == 0 < first and last == first + 2 and not counters["graph_break"]


def test_bfloat16_rounds_only_the_storage(digits, straight, tmp_path):
    config = tiny(tmp_path, storage="bfloat16")
    train_experts(config, digits, stop_after=2)  # going on starts from unrounded weights too
    found = train_experts(config, digits)
    assert torch.equal(found.weights, straight.weights.bfloat16())
    assert found.accuracy == straight.accuracy


def train_in_a_child(config, pipe):
    fastdistill.loop.experts.needed_memory = lambda *_: 1
    train_experts(config, progress=Heard(lambda: pipe.send(1)))


def test_experts_killed_at_any_moment_go_on_to_the_same_bits(tmp_path, caplog):
    config, whole = tiny(tmp_path, epochs=6), tiny(tmp_path / "straight", epochs=6)
    train_experts(whole)
    context = multiprocessing.get_context("forkserver")  # imports torch once, not for every kill
    context.set_forkserver_preload(["fastdistill.loop.experts", "torch._dynamo", "sklearn.datasets", "pytest"])
    moments, kills, finished = random.Random(0), 0, 0
    with caplog.at_level(logging.WARNING):
        while kills < KILLS or not finished:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=train_in_a_child, args=(config, theirs))
            child.start()
            theirs.close()
            if kills < KILLS:
                for _ in range(moments.randrange(4)):  # after some epochs, and in the middle of one
                    ours.poll(120)
                    with contextlib.suppress(EOFError):
                        ours.recv()
                time.sleep(moments.uniform(0, 0.05))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            child.join(120)
            if child.exitcode == 0:
                assert digests(config.folder) == digests(whole.folder)
                assert not list(tmp_path.rglob("*.tmp"))
                finished += 1
                shutil.rmtree(config.folder)
                continue
            assert child.exitcode == -signal.SIGKILL
            kills += 1
    assert not caplog.records  # nothing was ever damaged


def test_a_request_to_stop_finishes_the_epoch_and_saves(digits, straight, tmp_path):
    config, stop = tiny(tmp_path), Stop()
    heard = Heard(lambda: stop.ask("SIGTERM") if len(heard.units) == 2 else None)
    with pytest.raises(Stopped, match="SIGTERM"):
        train_experts(config, digits, progress=heard, stop=stop)
    assert heard.units == [0, 2]
    assert heard.said[-1] == "saved epoch 1 of experts 0 to 1"
    again = Heard()
    train_experts(config, digits, progress=again)
    assert "continuing after epoch 1 of experts 0 to 1" in again.said
    assert again.units == [4, 4, 5, 6]
    assert digests(config.folder) == digests(straight.folder)


def test_finished_experts_are_left_alone(digits, tmp_path, monkeypatch):
    config = tiny(tmp_path)
    train_experts(config, digits)
    before = {path: path.stat().st_mtime_ns for path in config.folder.iterdir()}
    (config.folder / "checkpoints").mkdir()  # of a process killed while it removed them
    monkeypatch.setattr("fastdistill.loop.experts.load_configured", lambda *_, **__: pytest.fail("data were read"))
    heard = Heard()
    assert train_experts(config, progress=heard).count == COUNT
    assert heard.said == [f"{config.folder} is finished already"]
    assert {path: path.stat().st_mtime_ns for path in config.folder.iterdir()} == before


@pytest.mark.parametrize("moment", ["publish", "describe"])
def test_an_end_that_was_cut_off_is_repeated(digits, straight, tmp_path, monkeypatch, moment):
    config, plain = tiny(tmp_path), getattr(ExpertsWriter, moment)

    def killed(self, **arguments):
        if moment == "publish":
            plain(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ExpertsWriter, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            train_experts(config, digits)
    heard = Heard()
    train_experts(config, digits, progress=heard)
    assert heard.units == []  # nothing is trained again
    assert digests(config.folder) == digests(straight.folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 4}, r"differs in epochs \(2 there, 4 here\)"),
        ({"student": StudentConfig(width=3, depth=1)}, r"differs in student.width \(2 there, 3 here\)"),
        ({"storage": "bfloat16", "seed": 1}, r"storage \('float32' there, 'bfloat16' here\), seed \(0 there, 1 here\)"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_experts_in_the_folder_are_refused(digits, straight, tmp_path, changes, expected, finished):
    if finished:
        output = straight.folder.parent
    else:
        output = tmp_path
        train_experts(tiny(output), digits, stop_after=1)
    with pytest.raises(ValueError, match=expected):
        train_experts(tiny(output, **changes), digits)


def test_other_images_are_refused(digits, tmp_path):
    train_experts(tiny(tmp_path), digits, stop_after=1)
    brighter = replace(digits, train=replace(digits.train, images=digits.train.images + 1))
    with pytest.raises(ValueError, match="these real images and this version, got another data_hash: choose another"):
        train_experts(tiny(tmp_path), brighter)


def test_a_folder_of_something_else_is_refused_untouched(digits, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_bytes(b"theirs")
    with pytest.raises(ValueError, match=r"got thesis.txt and no config.yaml: choose another --name"):
        train_experts(tiny(tmp_path), digits)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_write_one_folder(digits, tmp_path):
    with held(tmp_path / "tiny"), pytest.raises(ValueError, match="another process is writing to"):
        train_experts(tiny(tmp_path), digits)


def test_written_weights_that_are_gone_are_trained_again(digits, straight, tmp_path):
    config, heard = tiny(tmp_path), Heard()
    train_experts(config, digits, stop_after=4)
    (config.folder / UNFINISHED).unlink()
    train_experts(config, digits, progress=heard)
    assert "the weights that were written are gone or damaged: starting again" in heard.said
    assert digests(config.folder) == digests(straight.folder)


def test_a_damaged_state_is_gone_back_behind(digits, straight, tmp_path, caplog):
    config = tiny(tmp_path)
    train_experts(config, digits, stop_after=5)
    newest = max((config.folder / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        train_experts(config, digits)
    assert newest.name in caplog.text
    assert digests(config.folder) == digests(straight.folder)


def test_written_weights_that_are_damaged_are_named_and_never_published(digits, tmp_path):
    config = tiny(tmp_path)
    train_experts(config, digits, stop_after=3)
    path = config.folder / UNFINISHED
    content = bytearray(path.read_bytes())
    content[int.from_bytes(content[:8], "little") + 8] ^= 1  # the first byte of the first row
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected the weights of expert 0 after epoch 0 in"):
        train_experts(config, digits)
    assert not (config.folder / FILE).exists()
    with pytest.raises(ValueError, match="got ones in training"):
        Experts.open(config.folder)


def test_experts_that_diverge_are_named(digits, tmp_path):
    config = tiny(tmp_path, learning_rate=1e30)
    with pytest.raises(RunFailed, match=r"in epoch 1 of expert 0, 1: lower --learning_rate \(1e\+30\)"):
        train_experts(config, digits)
    with pytest.raises(RunFailed, match="in epoch 1 of expert 0, 1"):
        train_experts(config, digits)


@pytest.mark.parametrize("times", [1, 100])
def test_running_out_of_memory_is_tried_with_less(digits, straight, tmp_path, monkeypatch, times):
    config, plain, failures, heard = tiny(tmp_path), Trainer.epoch, [], Heard()

    def epoch(self, before, number):
        if len(failures) < times:
            failures.append(number)
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, before, number)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    if times == 100:
        with pytest.raises(RunFailed, match="expected enough memory for experts, got none"):
            train_experts(config, digits)
        return
    found = train_experts(config, digits, progress=heard)
    assert any("out of memory: going on with 1 experts" in text for text in heard.said)
    assert torch.allclose(found.weights, straight.weights, rtol=1e-4, atol=1e-5)
    assert found.description["plan"]["training"]["students"] == 1


def test_too_little_memory_or_disk_leaves_no_folder(digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fastdistill.loop.experts.needed_memory", lambda *_: 10**15)
        with pytest.raises(ValueError, match=r"lower --chunk, --batch or --student\.width"):
            train_experts(tiny(tmp_path), digits)
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("fastdistill.loop.experts.shutil.disk_usage", lambda _: free)
    with pytest.raises(ValueError, match=r"of room on the disk for experts, got 0 MB"):
        train_experts(tiny(tmp_path), digits)
    assert not list(tmp_path.iterdir())


def test_what_will_be_taken_is_said_before_the_start(digits, tmp_path):
    heard = Heard()
    train_experts(tiny(tmp_path), digits, progress=heard, stop_after=0)
    assert heard.said[0] == "derivatives by dual layers"
    assert heard.said[1].startswith("predicted peak memory ")
    assert heard.said[2].startswith("the experts will take 0 MB on the disk, where ")


def test_networks_with_running_statistics_leave_no_folder(digits, tmp_path):
    config = tiny(tmp_path, student=StudentConfig(width=2, depth=1, norm="batch"))
    with pytest.raises(ValueError, match="without running statistics as experts, got batch norm"):
        train_experts(config, digits)
    assert not list(tmp_path.iterdir())


def test_whitened_images_are_known_as_such(digits, tmp_path):
    config = tiny(tmp_path, data=DataConfig(zca=True, validation_fraction=0.0), epochs=1, count=1)
    found = train_experts(config)
    assert found.zca
    assert found.data_hash == seen_hash(load_source("digits", zca=True), 0.0, 0)
