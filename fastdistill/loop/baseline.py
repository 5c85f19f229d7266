"""From a configuration to a finished folder of baselines; repeating the call judges those that are left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from fastdistill.baseline_config import LABELS, WHOLE, BaselineConfig
from fastdistill.data.sources import RealData, load_configured
from fastdistill.data.split import stratified_split
from fastdistill.data.store import ImageStore
from fastdistill.evaluation.baselines import Baseline, judge_baselines
from fastdistill.files import held, sweep, write_whole
from fastdistill.loop.environment import describe_environment, prepare_process
from fastdistill.loop.fingerprint import data_hash
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.run import config_hash, refuse_another
from fastdistill.progress import Silent
from fastdistill.report.figures import image_grid, save_picture
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.load import load

_RESULTS = "results.json"


def run_baselines(
    config: BaselineConfig,
    data: RealData | None = None,
    *,
    progress: Silent | None = None,
) -> Mapping[str, Any]:
    """Judges baselines, or goes on judging them: one that is judged is kept, whatever stops the next.

    The folder has ``results.json``, and of each baseline but the whole set ``NAME.safetensors``, which
    `synthetic.load.load` reads, and ``NAME.png``. Of ``random_real``, where every student has a draw of its own, they
    hold the first.

    Args:
        config: the baselines.
        data: the real images; loaded by the configuration when not given.
        progress: what is said meanwhile.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: for a folder that holds something else or that another process writes to, and for data or distilled
            images that do not fit the configuration.
    """
    with held(config.folder):
        return _run(config, data, progress or Silent())


def _run(config: BaselineConfig, data: RealData | None, progress: Silent) -> Mapping[str, Any]:
    folder = config.folder
    refuse_another(folder, config.as_dict())
    sweep(folder)
    against = load(config.against) if config.against else None
    device = resolve_device(config.device)
    data = data or load_configured(config.data)
    table = {
        "name": folder.name,
        "architecture": config.student.architecture,
        "protocol": config.protocol,
        "ipc": config.ipc,
        "config_hash": config_hash(config.as_dict()),
        "data_hash": data_hash(data),
        "against_hash": "" if against is None else hashlib.sha256(against.to_bytes()).hexdigest()[:16],
    }
    arms = _kept(folder, table, progress)
    left = [name for name in config.chosen if LABELS[name] not in arms or not _shown(folder, name)]
    if config.threads:
        prepare_process(config.threads)
    kept, held_out = stratified_split(data.train.labels, config.data.validation_fraction, config.seed)
    train, validation = data.train.subset(kept).to(device), data.train.subset(held_out).to(device)
    judged = judge_baselines(
        config, train, validation, data.test.to(device), against=against, names=left, progress=progress
    )
    if left:
        # only now, so that settings which do not work out leave no folder that refuses their correction
        write_whole(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False).encode())
        write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
    else:
        progress.say(f"{folder} is finished already")
    for baseline in judged:
        if baseline.images is not None:
            _show(folder, baseline, config, train, data.name, str(table["config_hash"]))
        arms[baseline.arm["arm"]] = baseline.arm
        _write(folder, config, table, arms)  # last, so that what it names is there
    return _write(folder, config, table, arms) if left else _contents(config, table, arms)


def _contents(config: BaselineConfig, table: Mapping[str, Any], arms: Mapping[str, Any]) -> dict[str, Any]:
    rows = [arms[LABELS[name]] for name in config.chosen if LABELS[name] in arms]
    return {**table, "arms": rows, "complete": len(rows) == len(config.chosen)}


def _write(folder: Path, config: BaselineConfig, table: Mapping[str, Any], arms: Mapping[str, Any]) -> dict[str, Any]:
    results = _contents(config, table, arms)
    write_whole(folder / _RESULTS, json.dumps(results, indent=1).encode())
    return results


def _kept(folder: Path, table: Mapping[str, Any], progress: Silent) -> dict[str, dict[str, Any]]:
    """The arms that an earlier start has judged on the same images, by name."""
    try:
        found = json.loads((folder / _RESULTS).read_bytes())
        same = all(found[name] == value for name, value in table.items())
        arms = {arm["arm"]: arm for arm in found["arms"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        progress.say(f"{folder / _RESULTS} is damaged: judging all baselines again")
        return {}
    if not same:
        progress.say("the images are others than at the last start: judging all baselines again")
    return arms if same else {}


def _shown(folder: Path, name: str) -> bool:
    return name == WHOLE or (folder / f"{name}.safetensors").exists()


def _show(
    folder: Path, baseline: Baseline, config: BaselineConfig, train: ImageStore, dataset: str, digest: str
) -> None:
    """Writes the images of a baseline and a picture of them."""
    assert baseline.images is not None
    images = baseline.images.flatten(1, 2).float().cpu()
    details = {"baseline": baseline.name}
    if baseline.name == "random_real" and len(images) > 1:
        details["draw"] = f"the first of {len(images)}"
        images = images[:1]
    artefact = Distilled(
        images=images,
        labels=torch.arange(train.num_classes).repeat_interleave(config.ipc),
        class_names=train.class_names,
        normalization=train.normalization.to("cpu"),
        dataset=dataset,
        unit=train.unit,
        pixel_range=train.pixel_range,
        config_hash=digest,
        details=details,
    )
    artefact.save(folder / f"{baseline.name}.safetensors")
    low, high = artefact.pixel_range
    shown = (artefact.pixels() - low) / max(high - low, 1e-12)
    picture = image_grid(shown, artefact.labels, class_names=artefact.class_names)
    save_picture(folder / f"{baseline.name}.png", picture)
