"""Checkpoints: one folder a step, ``state.safetensors`` and a manifest with its sha256, written whole.

Everything that outlives an outer step is inside, with the plan that it was computed by. Randomness needs no state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from fastdistill.files import sync_folder
from fastdistill.loop.outer import Best, State
from fastdistill.loop.plan import Plan
from fastdistill.students.ensemble import Students

_log = logging.getLogger(__name__)
_SCHEMA = 1
_KEPT = 2  # the newest and the one before, to fall back to


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: of the outer loop.
        best: the selected images; None before the first selection.
        plan: how the run is computed.
        elapsed_s: wall-clock time of the run so far.
    """

    state: State
    best: Best | None
    plan: Plan
    elapsed_s: float


def _tensors(state: State, best: Best | None) -> dict[str, Tensor]:
    tensors = {"images": state.images, "velocity": state.velocity}
    if best is not None:
        tensors["best.images"] = best.images
    if state.students is not None:
        tensors |= {"students.indices": state.students.indices, "students.weights": state.students.weights}
        tensors |= {f"students.buffers.{name}": tensor for name, tensor in state.students.buffers.items()}
    # copies, because the best images may be the last ones and safetensors refuses tensors that share memory
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def save_checkpoint(
    folder: Path, state: State, best: Best | None, plan: Plan, *, config_hash: str, elapsed_s: float
) -> Path:
    """Writes ``folder/step-NNNNNN`` durably, then removes all but the two newest.

    Args:
        folder: the run's checkpoint folder.
        state: what is saved.
        best: the selected images, saved with it.
        plan: how it was computed.
        config_hash: of the run's configuration.
        elapsed_s: wall-clock time of the run so far.
    """
    target = folder / f"step-{state.step:06d}"
    if target.exists():  # what stands there did not verify, or the run would have gone on from it
        shutil.rmtree(target)
    temporary = folder / f"{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    content = save(_tensors(state, best))
    manifest = {
        "schema": _SCHEMA,
        "step": state.step,
        "best": None if best is None else {"accuracy": best.accuracy, "step": best.step},
        "elapsed_s": elapsed_s,
        "config_hash": config_hash,
        "plan": plan.as_dict(),
        "files": {"state.safetensors": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}},
    }
    for name, data in (("state.safetensors", content), ("manifest.json", json.dumps(manifest, indent=1).encode())):
        with (temporary / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(temporary)
    temporary.rename(target)
    sync_folder(folder)
    for old in _folders(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, on the CPU; None where there is none."""
    for path in reversed(_folders(folder)):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if manifest["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {manifest['schema']}, not {_SCHEMA}")
            content = (path / "state.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != manifest["files"]["state.safetensors"]["sha256"]:
                raise ValueError("its sha256 is not the manifest's")
            return _restore(load(content), manifest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("checkpoint %s is damaged (%s); falling back to the one before", path, error)
    return None


def _folders(folder: Path) -> list[Path]:
    """The finished step folders, by step."""
    return sorted(folder.glob("step-*[0-9]"), key=lambda path: int(path.name.removeprefix("step-")))


def _restore(tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Checkpoint:
    students = None
    if "students.weights" in tensors:
        prefix = "students.buffers."
        students = Students(
            indices=tensors["students.indices"],
            weights=tensors["students.weights"],
            buffers={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
        )
    best = None
    if manifest["best"] is not None:
        best = Best(images=tensors["best.images"], **{name: tuple(values) for name, values in manifest["best"].items()})
    return Checkpoint(
        state=State(step=manifest["step"], images=tensors["images"], velocity=tensors["velocity"], students=students),
        best=best,
        plan=Plan.from_dict(manifest["plan"]),
        elapsed_s=manifest["elapsed_s"],
    )
