"""From a comparison's configuration to its finished folder; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdistill.comparison_config import ComparisonConfig, TestConfig
from fastdistill.config import RunConfig
from fastdistill.failures import RunFailed, Stopped
from fastdistill.files import held, sweep, write_whole
from fastdistill.loop.baseline import run_baselines
from fastdistill.loop.environment import prepare_process
from fastdistill.loop.evaluation import evaluate_run
from fastdistill.loop.examination import images_file
from fastdistill.loop.pretraining import pretrain
from fastdistill.loop.run import config_hash, decisive, results_of, write_environment
from fastdistill.loop.stop import Stop
from fastdistill.progress import Silent
from fastdistill.report.comparison import write_comparison_report
from fastdistill.report.folder import read_run

_RESULTS, _POLL_S, _STOPPED = "results.json", 0.2, 75
_KEPT = ("mean", "std", "protocol", "epochs", "steps", "test_images")  # of an evaluation's line


def run_comparison(
    config: ComparisonConfig, *, progress: Silent | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Distils the arms one after the other, each in a process of its own, and puts them to the tests.

    What is finished is kept, whatever stops the rest. An arm or a test that fails is said, left out and tried again
    when the call is repeated; a test that was changed is made again, and so are all of an arm that was distilled again.
    The folder has ``arms`` with a run folder for each, ``results.json``, ``table.md``, ``report.html`` and the plots.

    Args:
        config: the comparison.
        progress: what is said meanwhile.
        stop: asked from outside to stop; the arm that is under way then saves.

    Returns:
        What ``results.json`` holds: of every arm ``failed`` (a sentence, or empty) and its ``tests`` by name; of random
        real images their tests by images per class, where all arms of as many are tested alike.

    Raises:
        ValueError: for a folder, or an arm's, that another process writes to.
        Stopped: when asked to stop; repeating the call goes on.
    """
    with held(config.folder):
        return _run(config, progress or Silent(), stop or Stop())


def _run(config: ComparisonConfig, progress: Silent, stop: Stop) -> dict[str, Any]:
    folder = config.folder
    sweep(folder)
    write_whole(folder / "config.yaml", yaml.safe_dump(_settings(config), sort_keys=False).encode())
    write_environment(folder)
    table = _begun(config)
    if config.pretraining.networks:
        pretrain(config, progress)
    for number, (name, arm) in enumerate(config.arms.items(), start=1):
        progress.say(f"{name}: arm {number} of {len(config.arms)}")
        row = table["arms"].setdefault(name, {"tests": {}})
        row["failed"] = _distil(arm, stop)
        if row["failed"]:
            progress.say(f"{name} failed: {row['failed']}")
        else:
            _test_all(config, arm, table, progress)
        _keep(folder, table)
        write_comparison_report(folder)
    if config.baselines is not None:
        progress.say("baselines")
        run_baselines(config.baselines, progress=progress)
    table["complete"] = not any(
        row["failed"] or any("failed" in score for score in row["tests"].values()) for row in table["arms"].values()
    )
    _keep(folder, table)
    write_comparison_report(folder)
    return table


def _settings(config: ComparisonConfig) -> dict[str, Any]:
    """A comparison's plain settings; of its arms and baselines those that decide the result."""
    return {
        "name": config.name,
        "images": config.images,
        "pretraining": asdict(config.pretraining),
        "arms": {name: decisive(arm.as_dict()) for name, arm in config.arms.items()},
        "tests": {name: asdict(test) for name, test in config.tests.items()},
        "baselines": None if config.baselines is None else decisive(config.baselines.as_dict()),
    }


def _begun(config: ComparisonConfig) -> dict[str, Any]:
    """What an earlier start has measured of the arms and tests that there are."""
    arms: dict[str, Any] = {}
    random_real: dict[str, Any] = {}
    try:
        found = json.loads((config.folder / _RESULTS).read_bytes())
        arms = {name: {"tests": dict(found["arms"][name]["tests"])} for name in config.arms if name in found["arms"]}
        random_real = {ipc: dict(scores) for ipc, scores in found["random_real"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # there is none, or it is damaged
    return {"name": config.name, "complete": False, "arms": arms, "random_real": random_real}


def _keep(folder: Path, table: Mapping[str, Any]) -> None:
    write_whole(folder / _RESULTS, json.dumps(table, indent=1).encode())


def _distil(arm: RunConfig, stop: Stop) -> str:
    """Runs an arm in a fresh process, so that its peak memory is its own.

    Returns:
        The sentence that it failed with; empty where it did not.

    Raises:
        ValueError: where another process is distilling it.
        Stopped: when asked to stop, after the arm has saved.
    """
    folder = Path(arm.output) / arm.name
    if results_of(folder, config_hash(arm.as_dict())).get("complete"):
        return ""
    with held(folder):  # one that a killed comparison left alone would share the time of the next
        pass
    options = folder.with_suffix(".yaml")
    write_whole(options, yaml.safe_dump(arm.as_dict(), sort_keys=False).encode())
    command = [sys.executable, "-m", "fastdistill", "run", "--config", str(options)]
    # in a group of its own, so that a Ctrl-C reaches it once
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0)
    try:
        with stop.deferred():
            code = _waited(process, stop)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if stop.asked or code == _STOPPED:
        raise Stopped(stop.asked or "SIGTERM")
    if code == 0:
        return ""
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return read_run(folder).failure or f"its process ended with {ended}: run it alone by --config {options}"


def _waited(process: subprocess.Popen[bytes], stop: Stop) -> int:
    """The exit code of a process, which is told to stop when we are."""
    told = False
    while True:
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if stop.asked and not told:
                told = True
                process.terminate()


def _test_all(config: ComparisonConfig, arm: RunConfig, table: dict[str, Any], progress: Silent) -> None:
    """Puts an arm to all tests that its images have not been put to."""
    tests = table["arms"][arm.name]["tests"]
    folder = Path(arm.output) / arm.name
    seen = hashlib.sha256(images_file(folder, config.images).read_bytes()).hexdigest()
    if arm.threads:
        prepare_process(arm.threads)
    for name in [name for name in tests if name not in config.tests]:
        del tests[name]
    for name, test in config.tests.items():
        digest = hashlib.sha256(json.dumps([seen, asdict(test), arm.seed], sort_keys=True).encode()).hexdigest()[:16]
        if "failed" in (known := tests.get(name, {"failed": ""})) or known.get("of") != digest:
            progress.say(f"{arm.name}: testing {name}")
            try:
                tests[name] = {**_test(config, arm, name, test, table, progress), "of": digest}
            except (ValueError, RunFailed) as error:
                tests[name] = {"failed": " ".join(str(error).split())}
                progress.say(f"{arm.name}, {name} failed: {tests[name]['failed']}")
            _keep(config.folder, table)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next arm has the device to itself


def _test(
    config: ComparisonConfig, arm: RunConfig, name: str, test: TestConfig, table: dict[str, Any], progress: Silent
) -> dict[str, Any]:
    """Puts an arm to a test, and random real images too where no other arm that they stand for has been."""
    random_real = table["random_real"].setdefault(str(arm.ipc), {})
    conditions = hashlib.sha256(json.dumps(asdict(test), sort_keys=True).encode()).hexdigest()[:16]
    known = random_real.get(name, {}).get("of") == conditions
    evaluation, line = evaluate_run(
        Path(arm.output) / arm.name,
        student={"initialization": "fresh", "pretrained": "", **test.student},
        students=test.students,
        protocol=test.protocol or None,
        epochs=test.epochs or None,
        images=config.images,
        test_images=test.test_images,
        seed=arm.seed,
        device=arm.device,
        root=arm.data.root,
        random_real=not known and config.alike(arm.ipc, name),
        progress=progress,
    )
    kept = {key: line[key] for key in _KEPT if key in line} | {"students": len(evaluation.per_student)}
    if "random_real_mean" in line:
        beside = {"mean": line["random_real_mean"], "std": line["random_real_std"]}
        random_real[name] = {**kept, **beside, "of": conditions}
    return kept
