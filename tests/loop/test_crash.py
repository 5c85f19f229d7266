"""Runs that are killed, disks that fail, files that rot: a run goes on to the same bits or says why not."""

import contextlib
import errno
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import fastdistill.loop.run
from fastdistill.cli import main
from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.failures import Stopped
from fastdistill.files import held
from fastdistill.loop.checkpoint import load_checkpoint
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.memory import Forecast
from fastdistill.loop.run import config_hash, run
from fastdistill.loop.stop import Stop
from fastdistill.method_configs import matching_recipe
from fastdistill.progress import Silent
from fastdistill.students.training import Training

KILLS = 200
CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir")


def tiny(output, *, steps=30, name="run"):
    return RunConfig(
        name=name,
        output=str(output),
        ipc=2,
        student=StudentConfig(width=2, depth=1),
        method=matching_recipe("dc", 2, steps=steps, real_batch=2, outer_loop=3, inner_loop=1),
        evaluation=EvaluationConfig(students=2, validation_every=7, validation_students=1, validation_epochs=1),
        log_every=1,
        checkpoint_every=1,
        threads=1,
        device="cpu",
    )


def digests(folder):
    names = ("distilled.safetensors", "distilled-best.safetensors")
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def newest(config):
    folder = Path(config.output) / config.name / "checkpoints"
    return load_checkpoint(folder, config_hash(config.as_dict()), data_hash(load_source("digits")))


def step_of(config):
    saved = newest(config)
    return 0 if saved is None else saved.state.step


def temporaries(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


class Reporting(Silent):
    """Sends the number of every step that is done; the steps before it are saved by then."""

    def __init__(self, pipe):
        self._pipe = pipe

    @contextmanager
    def stage(self, name, total, done=0):
        yield lambda count, remark: self._pipe.send(count)


def last(pipe):
    """The last step that a dead process reported; 0 if none."""
    step = 0
    with contextlib.suppress(EOFError):
        while pipe.poll():
            step = pipe.recv()
    return step


def foresee_nothing(*_arguments, **_options):
    """In place of the forecast, which costs most of a start of so small a run and is tested elsewhere."""
    return Forecast(process=1, data=0, state=0, step=0, saving=0, training=0, selection=0, evaluation=0)


@pytest.fixture(autouse=True)
def no_forecast(monkeypatch):
    monkeypatch.setattr("fastdistill.loop.run.forecast_here", foresee_nothing)


def distil(config, pipe):
    fastdistill.loop.run.forecast_here = foresee_nothing
    run(config, progress=Reporting(pipe), judge=False)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path, caplog):
    config = tiny(tmp_path)
    straight = tiny(tmp_path / "straight")
    run(straight, judge=False)
    expected = digests(tmp_path / "straight" / "run")
    context = multiprocessing.get_context("forkserver")  # imports torch once, not for every kill
    context.set_forkserver_preload(["fastdistill.loop.run", "torch._dynamo", "sklearn.datasets", "pytest"])
    moments, kills, finished, step = random.Random(0), 0, 0, 0
    with caplog.at_level(logging.WARNING):
        while kills < KILLS or not finished:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=distil, args=(config, theirs))
            child.start()
            theirs.close()
            if moments.random() < 0.8:  # most moments shall fall into the steps, not into the start
                ours.poll(60)
            time.sleep(moments.uniform(0, 0.12))
            with contextlib.suppress(ProcessLookupError):  # it may have finished
                os.kill(child.pid, signal.SIGKILL)
            child.join(60)
            acknowledged = last(ours)
            if child.exitcode == 0:
                assert digests(tmp_path / "run") == expected
                assert not temporaries(tmp_path)
                finished, step = finished + 1, 0
                shutil.rmtree(tmp_path / "run")
                continue
            assert child.exitcode == -signal.SIGKILL
            kills += 1
            saved = step_of(config)
            assert saved >= max(step, acknowledged - 1)
            step = saved
    assert not caplog.records  # nothing was ever damaged


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_75(tmp_path, number):
    config = tiny(tmp_path, steps=4000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**config.as_dict(), "checkpoint_every": 4000}))
    command = [sys.executable, "-m", "fastdistill", "run", "--config", str(file)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    child.send_signal(number)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 75
    assert said.endswith(f"fastdistill: stopped by {number.name}: repeat the command to go on\n")
    assert "Traceback" not in said
    saved = newest(config)
    assert f"saved step {saved.state.step} of 4000" in said
    assert 0 < saved.state.step < 4000


@pytest.mark.parametrize("phase", ["loading", "judging"])
def test_a_signal_outside_the_steps_stops_at_once_and_loses_nothing(tmp_path, monkeypatch, phase):
    config, stop = tiny(tmp_path, steps=3), Stop()

    def interrupt(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("the signal was lost")

    where = {
        "loading": "fastdistill.loop.run.load_configured",
        "judging": "fastdistill.evaluation.arms.evaluate_images",
    }
    with monkeypatch.context() as patch, stop.on_signals(), pytest.raises(Stopped, match="SIGTERM"):
        patch.setattr(where[phase], interrupt)
        run(replace(config, evaluation=EvaluationConfig(students=1)), stop=stop)
    assert step_of(replace(config, evaluation=EvaluationConfig(students=1))) == (3 if phase == "judging" else 0)
    assert not temporaries(tmp_path)


@contextmanager
def failing(monkeypatch, number, *, forever, code=errno.ENOSPC):
    """Makes the ``number``-th call that changes the disk fail, or it and all after it; yields the calls made."""
    calls = []
    with monkeypatch.context() as patch:
        for name in CALLS:
            plain = getattr(os, name)

            def fails(*arguments, name=name, plain=plain, **options):
                reading = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)
                if not reading:
                    calls.append(name)
                    if len(calls) == number or (forever and len(calls) > number):
                        path = None if name in ("write", "fsync") else arguments[0]
                        raise OSError(code, os.strerror(code), path)
                return plain(*arguments, **options)

            patch.setattr(os, name, fails)
        yield calls


@pytest.mark.parametrize("forever", [False, True])
def test_whatever_call_fails_what_was_saved_stays(tmp_path, monkeypatch, forever):
    data, straight = load_source("digits"), tiny(tmp_path / "straight")
    run(straight, data, stop_after=3)
    expected = newest(straight).state.images
    number, calls = 0, [""]
    while len(calls) >= number:  # until there is no call of this number
        number += 1
        config = tiny(tmp_path / str(number))
        try:
            with failing(monkeypatch, number, forever=forever) as calls:
                run(config, data, stop_after=3)
        except OSError as error:
            assert str(tmp_path / str(number)) in str(error.filename)
            saved = calls[: number - 1].count("rename")  # a checkpoint each
            assert step_of(config) == saved
        assert not temporaries(tmp_path / str(number))
        run(config, data, stop_after=3)
        assert torch.equal(newest(config).state.images, expected)
    assert saved == 3  # the last calls to fail come after the last save
    assert number > 50


def test_whatever_call_fails_at_the_end_the_run_can_be_finished(tmp_path, monkeypatch):
    data, straight, config = load_source("digits"), tiny(tmp_path / "straight", steps=3), tiny(tmp_path, steps=3)
    quick = EvaluationConfig(students=1, random_real=False, validation_every=7, validation_students=1)
    straight, config = (replace(one, evaluation=quick) for one in (straight, config))
    monkeypatch.setattr("fastdistill.evaluation.protocols._training", lambda name, epochs: Training(epochs=2))
    run(straight, data)
    run(config, data, stop_after=2)
    number, calls = 0, [""]
    while len(calls) >= number:
        number += 1
        with failing(monkeypatch, number, forever=True) as calls, contextlib.suppress(OSError):
            run(config, data)
        assert not temporaries(tmp_path / "run")
    assert number > 20  # those that failed last time but one are done, so this counts the calls of the last part
    assert digests(tmp_path / "run") == digests(tmp_path / "straight" / "run")
    table = json.loads((tmp_path / "run" / "results.json").read_text())
    assert table["complete"]
    assert "Not judged" not in (tmp_path / "run" / "report.html").read_text()


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path):
    config = tiny(tmp_path, steps=6)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config.as_dict()))
    command = [sys.executable, "-m", "fastdistill", "run", "--config", str(file), "--evaluation.students=1"]

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))  # less than a checkpoint's state

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=small_files)
    assert done.returncode == 1
    assert "got file too large: raise the limit" in done.stderr
    assert str(tmp_path / "run" / "checkpoints") in done.stderr
    assert "Traceback" not in done.stderr
    assert not temporaries(tmp_path)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def test_left_over_temporaries_are_swept_at_the_next_start(tmp_path):
    config = tiny(tmp_path, steps=2)
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-000001.tmp").mkdir(parents=True)
    (folder / "checkpoints" / "step-000001.tmp" / "state.safetensors").write_bytes(b"half")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / f".config.yaml.{dead.pid}.tmp").write_bytes(b"half")
    run(config, judge=False)
    assert not temporaries(tmp_path)


def test_what_others_have_put_there_is_left_alone(tmp_path):
    config = tiny(tmp_path, steps=2)
    run(config, stop_after=1)
    alive = tmp_path / "run" / f".report.html.{os.getppid()}.tmp"  # of a writer that lives
    for path in (alive, tmp_path / "run" / "thesis.tmp"):
        path.write_bytes(b"theirs")
    run(config, judge=False)
    assert alive.exists()
    assert (tmp_path / "run" / "thesis.tmp").exists()


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    config = tiny(tmp_path, steps=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tmp").write_bytes(b"theirs")
    with pytest.raises(ValueError, match=r"got thesis.tmp and no config.yaml: choose another --name"):
        run(config, judge=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tmp"]


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"- 1", b"[" * 5000])
def test_a_broken_configuration_in_the_folder_is_one_sentence(tmp_path, content):
    config = tiny(tmp_path, steps=2)
    run(config, stop_after=1)
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="expected the configuration of a run in"):
        run(config, judge=False)


def test_a_refused_start_leaves_the_folder_of_the_running_one(tmp_path):
    with held(tmp_path / "run"):
        for _ in range(2):
            with pytest.raises(ValueError, match="another process"), held(tmp_path / "run"):
                pass
            assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    config, data = tiny(tmp_path, steps=4), load_source("digits")
    run(config, data, stop_after=2)
    brighter = replace(data.train, images=data.train.images + 1)
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration, these real images"):
        run(config, replace(data, train=brighter), judge=False)


def test_two_processes_cannot_write_one_run(tmp_path):
    config = tiny(tmp_path, steps=2000)
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=distil, args=(config, theirs))
    child.start()
    try:
        assert ours.poll(60)
        with pytest.raises(ValueError, match="another process is writing to: wait for it"):
            run(config, judge=False)
    finally:
        child.kill()
        child.join(60)
    run(tiny(tmp_path, steps=1, name="other"), judge=False)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tiny(tmp_path, steps=2), judge=False)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration"):
        run(tiny(tmp_path, steps=3), judge=False)


def test_the_last_good_checkpoint_is_gone_back_to(tmp_path, caplog):
    config = tiny(tmp_path, steps=8)
    run(config, stop_after=6)
    expected_from = newest(config).state.step
    state = tmp_path / "run" / "checkpoints" / "step-000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        run(config, judge=False)
    assert "step-000006 is damaged" in caplog.text
    assert expected_from == 6
    straight = tiny(tmp_path / "straight", steps=8)
    run(straight, judge=False)
    assert digests(tmp_path / "run") == digests(tmp_path / "straight" / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-000006.damaged").is_dir()


def test_an_unwritable_output_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", f"--output={tmp_path / 'file'}"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file'}" in said
    assert len(said.splitlines()) == 1
