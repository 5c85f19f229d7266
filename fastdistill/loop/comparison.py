"""From a comparison's configuration to its finished folder; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from fastdistill.comparison_config import ComparisonConfig, TestConfig
from fastdistill.config import RunConfig
from fastdistill.data.sources import load_source
from fastdistill.data.split import stratified_split
from fastdistill.derivatives.layout import Layout
from fastdistill.evaluation.feature_networks import train_feature_networks
from fastdistill.failures import Stopped
from fastdistill.files import held, sweep, write_whole
from fastdistill.loop.baseline import run_baselines
from fastdistill.loop.environment import describe_environment
from fastdistill.loop.evaluation import evaluate_run
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.run import config_hash, decisive, refuse_another
from fastdistill.loop.stop import Stop
from fastdistill.progress import Silent
from fastdistill.report.comparison import write_comparison_report
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Training

_RESULTS, _POLL_S, _STOPPED = "results.json", 0.2, 75


def run_comparison(
    config: ComparisonConfig, *, progress: Silent | None = None, stop: Stop | None = None
) -> dict[str, Any]:
    """Distils the arms one after the other, each in a process of its own, and puts them to the tests.

    What is finished is kept, whatever stops the rest; an arm that fails is said and left out. The folder has a run
    folder for every arm, ``results.json``, ``table.md``, ``report.html`` and the plots.

    Args:
        config: the comparison.
        progress: what is said meanwhile.
        stop: asked from outside to stop; the arm that is under way then saves.

    Returns:
        What ``results.json`` holds: of every arm its run, ``failed`` (a sentence, or empty) and tests by name; of
        random real images the tests by images per class.

    Raises:
        ValueError: for a folder that holds another comparison or that another process writes to.
        Stopped: when asked to stop; repeating the call goes on.
    """
    with held(config.folder):
        return _run(config, progress or Silent(), stop or Stop())


def _run(config: ComparisonConfig, progress: Silent, stop: Stop) -> dict[str, Any]:
    folder = config.folder
    plain = _settings(config)
    refuse_another(folder, plain)
    sweep(folder)
    write_whole(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False).encode())
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
    table = _begun(config, folder)
    if config.pretraining.networks:
        _pretrain(config, progress)
    for name, arm in config.arms.items():
        progress.say(f"{name}: arm {len(table['arms']) + 1} of {len(config.arms)}")
        failed = _distil(arm, stop)
        if failed:
            progress.say(f"{name} failed: {failed}")
        row = table["arms"].setdefault(name, {"tests": {}})
        row["failed"] = failed
        _keep(folder, table)
        for title, test in config.tests.items():
            if not failed and title not in row["tests"]:
                _test(config, arm, title, test, table, progress)
                _keep(folder, table)
    if config.baselines is not None:
        run_baselines(config.baselines, progress=progress)
    table["complete"] = not any(row["failed"] for row in table["arms"].values())
    _keep(folder, table)
    write_comparison_report(folder)
    return table


def _settings(config: ComparisonConfig) -> dict[str, Any]:
    """A comparison's plain settings, of its arms and baselines those that decide the result."""
    arms = {name: decisive(arm.as_dict()) for name, arm in config.arms.items()}
    baselines = None if config.baselines is None else decisive(config.baselines.as_dict())
    tests = {name: asdict(test) for name, test in config.tests.items()}
    return {
        "name": config.name,
        "images": config.images,
        "pretraining": asdict(config.pretraining),
        "arms": arms,
        "tests": tests,
        "baselines": baselines,
    }


def _begun(config: ComparisonConfig, folder: Path) -> dict[str, Any]:
    """What an earlier start of the same comparison has measured."""
    digest = config_hash(_settings(config))
    try:
        found = json.loads((folder / _RESULTS).read_bytes())
        if found["config_hash"] == digest:
            arms = {name: row for name, row in found["arms"].items() if isinstance(row["tests"], dict)}
            return {**found, "arms": arms, "random_real": dict(found["random_real"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # there is none, or it is damaged
    return {"name": config.name, "config_hash": digest, "complete": False, "arms": {}, "random_real": {}}


def _keep(folder: Path, table: Mapping[str, Any]) -> None:
    write_whole(folder / _RESULTS, json.dumps(table, indent=1).encode())


def _distil(arm: RunConfig, stop: Stop) -> str:
    """Runs an arm in a fresh process, so that its peak memory is its own.

    Returns:
        The sentence that it failed with; empty where it did not.

    Raises:
        Stopped: when asked to stop, after the arm has saved.
    """
    if _finished(arm):
        return ""
    options = Path(arm.output) / f"{arm.name}.yaml"
    write_whole(options, yaml.safe_dump(arm.as_dict(), sort_keys=False).encode())
    command = [sys.executable, "-m", "fastdistill", "run", "--config", str(options)]
    with stop.deferred(), subprocess.Popen(command, stderr=None, stdout=subprocess.DEVNULL) as process:
        told = False
        while True:
            try:
                code = process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop.asked and not told:  # Ctrl-C reaches the arm by itself as well, SIGTERM does not
                    told = True
                    if stop.asked != "SIGINT":
                        process.terminate()
    if stop.asked or code == _STOPPED:
        raise Stopped(stop.asked or "SIGTERM")
    return "" if code == 0 else f"its process ended with {code}; what it said is above"


def _finished(arm: RunConfig) -> bool:
    try:
        found = json.loads((Path(arm.output) / arm.name / _RESULTS).read_bytes())
        return bool(found["complete"]) and found["config_hash"] == config_hash(arm.as_dict())
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _test(
    config: ComparisonConfig, arm: RunConfig, title: str, test: TestConfig, table: dict[str, Any], progress: Silent
) -> None:
    """Puts an arm to a test, and random real images too where no other arm of as many images has been."""
    random_real = table["random_real"].setdefault(str(arm.ipc), {})
    wanted = arm.evaluation.random_real and title not in random_real
    progress.say(f"{arm.name}: testing {title}")
    evaluation, line = evaluate_run(
        Path(arm.output) / arm.name,
        student={**test.student},
        students=test.students,
        protocol=test.protocol or None,
        epochs=test.epochs or None,
        images=config.images,
        test_images=test.test_images,
        seed=arm.seed,
        device=arm.device,
        random_real=wanted,
        progress=progress,
    )
    common = {name: line[name] for name in ("protocol", "epochs", "steps")}
    table["arms"][arm.name]["tests"][title] = {
        "mean": evaluation.mean,
        "std": evaluation.std,
        "students": len(evaluation.per_student),
        "seconds": evaluation.seconds,
        **common,
    }
    if "random_real_mean" in line:
        random_real[title] = {"mean": line["random_real_mean"], "std": line["random_real_std"], **common}


def _pretrain(config: ComparisonConfig, progress: Silent) -> None:
    """Trains networks on the real images of the first arm that begins with them and keeps one file of each."""
    missing = [number for number in range(config.pretraining.networks) if not _network(config, number).exists()]
    if not missing:
        return
    users = [arm for arm in config.arms.values() if arm.student.pretrained == str(config.pretrained)]
    arm = (users or list(config.arms.values()))[0]
    student = replace(arm.student, initialization="fresh", pretrained="")
    data = load_source(arm.data.source, root=arm.data.root, download=arm.data.download, zca=arm.data.zca)
    kept, _ = stratified_split(data.train.labels, arm.data.validation_fraction, arm.seed)
    train = data.train.subset(kept).to(resolve_device(arm.device))
    module = student_module(student, train.shape, train.num_classes)
    if arm.threads:
        torch.set_num_threads(arm.threads)
    networks = train_feature_networks(
        module,
        train,
        Training(epochs=config.pretraining.epochs),
        count=config.pretraining.networks,
        seed=arm.seed,
        distribution=student.weights,
        progress=progress,
    )
    layout = Layout.of(module)
    for number, weights in enumerate(networks.weights):
        tensors = {name: tensor.contiguous().cpu() for name, tensor in layout.views(weights).items()}
        tensors |= {name: tensor[number].contiguous().cpu() for name, tensor in networks.buffers.items()}
        write_whole(_network(config, number), save(tensors))


def _network(config: ComparisonConfig, number: int) -> Path:
    return config.pretrained / f"{number:02d}.safetensors"
