"""Checkpoints: one folder a step with ``state.safetensors``, a manifest with its sha256, and the manifest's own sha256.

Everything that outlives an outer step is inside, with the plan that it was computed by. Randomness needs no state. A
folder appears whole, by a rename, and is never written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastdistill.files import sync, write_synced
from fastdistill.loop.outer import Best, State
from fastdistill.loop.plan import Plan
from fastdistill.students.ensemble import Students

_log = logging.getLogger(__name__)
_SCHEMA = 3
_STATE, _MANIFEST, _SUM = "state.safetensors", "manifest.json", "manifest.json.sha256"
_KEPT = 2  # the newest and the one before, to fall back to


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: of the outer loop.
        best: the selected images; None before the first selection.
        plan: how the run is computed.
        elapsed_s: time distilled so far, in seconds.
    """

    state: State
    best: Best | None
    plan: Plan
    elapsed_s: float


def _tensors(state: State, best: Best | None) -> dict[str, Tensor]:
    tensors = {f"learned.{name}": value for name, value in state.learned.items()}
    tensors |= {f"moments.{name}": value for name, value in state.moments.items()}
    if best is not None:
        tensors |= {f"best.{name}": value for name, value in best.learned.items()}
    if state.students is not None:
        tensors |= {"students.indices": state.students.indices, "students.weights": state.students.weights}
        tensors |= {f"students.buffers.{name}": tensor for name, tensor in state.students.buffers.items()}
        tensors |= {f"students.carried.{name}": tensor for name, tensor in state.students.carried.items()}
    # copies, because the best images may be the last ones and safetensors refuses tensors that share memory
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def save_checkpoint(
    folder: Path, state: State, best: Best | None, plan: Plan, *, config_hash: str, data_hash: str, elapsed_s: float
) -> Path:
    """Writes ``folder/step-NNNNNN`` durably, then removes all but the two newest.

    Args:
        folder: the run's checkpoint folder.
        state: what is saved.
        best: the selected images, saved with it.
        plan: how it was computed.
        config_hash: of the run's configuration.
        data_hash: of what it learns from: the real images, and experts where it follows such.
        elapsed_s: time distilled so far, in seconds.

    Raises:
        OSError: naming the file that could not be written; the checkpoints before are as they were.
    """
    target = folder / f"step-{state.step:06d}"
    temporary = folder / f"{target.name}.tmp"
    content = save(_tensors(state, best))
    manifest = {
        "schema": _SCHEMA,
        "step": state.step,
        "best": None if best is None else {"accuracy": best.accuracy, "step": best.step},
        "elapsed_s": elapsed_s,
        "config_hash": config_hash,
        "data_hash": data_hash,
        "plan": plan.as_dict(),
        "files": {_STATE: {"sha256": _sha256(content), "bytes": len(content)}},
    }
    described = json.dumps(manifest, indent=1).encode()
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, data in ((_STATE, content), (_MANIFEST, described), (_SUM, _sum_line(described))):
            write_synced(temporary / name, data)
        sync(temporary)
        # the run would have gone on from a checkpoint at or past this step if it had verified
        for path in _folders(folder):
            if _step(path) >= state.step:
                _set_aside(path)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # what a full disk has room for, the next attempt needs
        raise
    sync(folder)
    for old in _folders(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path, config_hash: str, data_hash: str) -> Checkpoint | None:
    """The newest checkpoint that verifies, on the CPU; None where there is none.

    Every truncation and every changed byte is found; such a checkpoint is logged and the one before is tried.

    Args:
        folder: the run's checkpoint folder.
        config_hash: of the run's configuration.
        data_hash: of what the run learns from, as it was saved.

    Raises:
        ValueError: when the checkpoint is sound but of another configuration, other images or experts, or another
            version.
    """
    folders = _folders(folder)
    for path in reversed(folders):
        try:
            manifest, tensors = _verified(path)
            if manifest["schema"] == _SCHEMA and manifest["config_hash"] == config_hash:
                if manifest["data_hash"] == data_hash:
                    return _restore(tensors, manifest)
                found, expected = f"data {manifest['data_hash']}", f"data {data_hash}"
            elif manifest["schema"] != _SCHEMA:
                found, expected = f"schema {manifest['schema']}", f"schema {_SCHEMA}"
            else:
                found, expected = f"configuration {manifest['config_hash']}", f"configuration {config_hash}"
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            _log.warning("checkpoint %s is damaged (%s): falling back to the one before", path, error)
            continue
        raise ValueError(
            f"expected a checkpoint of this configuration, these real images (and experts) and this version "
            f"({expected}) in {path}, got {found}: choose another --name, or remove the run folder"
        )
    if folders:
        _log.warning("no checkpoint in %s is sound: starting again from step 0", folder)
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sum_line(manifest: bytes) -> bytes:
    """The form that ``sha256sum --check`` reads."""
    return f"{_sha256(manifest)}  {_MANIFEST}\n".encode()


def _verified(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and tensors of a checkpoint whose every byte is what was written."""
    described = (path / _MANIFEST).read_bytes()
    if (path / _SUM).read_bytes() != _sum_line(described):
        raise ValueError(f"the sha256 of {_MANIFEST} is not the one in {_SUM}")
    manifest = json.loads(described)
    content = (path / _STATE).read_bytes()
    if _sha256(content) != manifest["files"][_STATE]["sha256"]:
        raise ValueError(f"the sha256 of {_STATE} is not the one in {_MANIFEST}")
    return manifest, load(content)


def sweep_checkpoints(folder: Path) -> None:
    """Removes the step folders that a killed process has left half-written."""
    for path in folder.glob("step-*.tmp"):
        if _step(path.with_suffix("")) >= 0:
            shutil.rmtree(path, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    """The finished step folders, by step."""
    return sorted((path for path in folder.glob("step-*") if _step(path) >= 0), key=_step)


def _step(path: Path) -> int:
    """The step of a finished folder's name; −1 for any other name."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() and number.isascii() else -1


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, which may still be of use to its owner, out of the way."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore(tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Checkpoint:
    students = None
    if "students.weights" in tensors:
        students = Students(
            indices=tensors["students.indices"],
            weights=tensors["students.weights"],
            buffers=_below(tensors, "students.buffers."),
            carried=_below(tensors, "students.carried."),
        )
    best = None
    if manifest["best"] is not None:
        best = Best(
            learned=_below(tensors, "best."), **{name: tuple(values) for name, values in manifest["best"].items()}
        )
    return Checkpoint(
        state=State(
            step=manifest["step"],
            learned=_below(tensors, "learned."),
            moments=_below(tensors, "moments."),
            students=students,
        ),
        best=best,
        plan=Plan.from_dict(manifest["plan"]),
        elapsed_s=manifest["elapsed_s"],
    )
