"""What the training of experts goes on from: one file for every finished epoch of a chunk, the two newest kept.

The sha256 of a file's content is part of its name, so a file is either whole, as a rename makes it, or known to be
damaged. Randomness needs no state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastdistill.files import write_whole
from fastdistill.loop.experts_plan import ExpertsPlan
from fastdistill.loop.experts_trainer import Chunk

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<first>\d{6,})-(?P<epoch>\d{6,})-(?P<sha256>[0-9a-f]{64})\.safetensors")
_HEADER = "fastdistill"  # the key of the JSON text in the file's metadata
_SCHEMA = 1
_KEPT = 2  # the newest and the one before, to fall back to


@dataclass(frozen=True, kw_only=True)
class State:
    """Experts in training, after an epoch of a chunk.

    Attributes:
        chunk: the experts that train.
        epoch: after which they are, 0 to ``K``.
        sums: of all rows written so far (`students.experts.checksums`), int64 ``[E, K+1]``, zero elsewhere.
        losses: of all epochs so far, float64 ``[E, K]``, zero elsewhere.
        accuracies: on training and test images at the end, float64 ``[E, 2]``, zero elsewhere.
        plan: how it was computed.
    """

    chunk: Chunk
    epoch: int
    sums: Tensor
    losses: Tensor
    accuracies: Tensor
    plan: ExpertsPlan

    @property
    def first(self) -> int:
        """The chunk's first expert."""
        return int(self.chunk.indices[0])

    @property
    def following(self) -> int:
        """The first expert of the next chunk."""
        return int(self.chunk.indices[-1]) + 1

    @property
    def finished(self) -> bool:
        """Whether the last expert's last epoch is done."""
        return self.following == len(self.losses) and self.epoch == self.losses.shape[1]

    @property
    def units(self) -> int:
        """Epochs of single experts that are done."""
        return self.first * self.losses.shape[1] + len(self.chunk.indices) * self.epoch


def save_state(folder: Path, state: State, *, config_hash: str, data_hash: str) -> None:
    """Writes a state durably, then removes all but the two newest.

    Raises:
        OSError: naming the file that could not be written; the states before are as they were.
    """
    chunk = state.chunk
    tensors = {
        "indices": chunk.indices,
        "weights": chunk.weights,
        "loss": chunk.loss,
        "sums": state.sums,
        "losses": state.losses,
        "accuracies": state.accuracies,
    }
    if chunk.velocity is not None:
        tensors["velocity"] = chunk.velocity
    described = {
        "schema": _SCHEMA,
        "epoch": state.epoch,
        "config_hash": config_hash,
        "data_hash": data_hash,
        "plan": state.plan.as_dict(),
    }
    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {_HEADER: json.dumps(described, sort_keys=True)},
    )
    # training would have gone on from a state at or past this one if it had been whole
    for path in _files(folder):
        if _position(path) >= (state.first, state.epoch):
            path.unlink()
    digest = hashlib.sha256(content).hexdigest()
    write_whole(folder / f"{state.first:06d}-{state.epoch:06d}-{digest}.safetensors", content)
    for old in _files(folder)[:-_KEPT]:
        old.unlink()


def load_state(folder: Path, *, config_hash: str, data_hash: str) -> State | None:
    """The newest state that is whole, on the CPU; None where there is none.

    Raises:
        ValueError: when it is whole but of another configuration, other images or another version.
    """
    files = _files(folder)
    for path in reversed(files):
        try:
            described, tensors = _verified(path)
            expected = {"schema": _SCHEMA, "config_hash": config_hash, "data_hash": data_hash}
            differing = [name for name, value in expected.items() if described[name] != value]
            if not differing:
                return _restored(described, tensors)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            _log.warning("state %s is damaged (%s): falling back to the one before", path, error)
            continue
        raise ValueError(
            f"expected {path} to be of this configuration, these real images and this version, got another "
            f"{', '.join(differing)}: choose another --name, or remove the folder"
        )
    if files:
        _log.warning("no state in %s is whole: starting again", folder)
    return None


def _verified(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a file whose every byte is what was written."""
    content = path.read_bytes()
    named = _NAME.fullmatch(path.name)
    if named is None or hashlib.sha256(content).hexdigest() != named["sha256"]:
        raise ValueError("its sha256 is not the one in its name")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"][_HEADER]), load(content)


def _restored(described: dict[str, Any], tensors: dict[str, Tensor]) -> State:
    return State(
        chunk=Chunk(
            indices=tensors["indices"],
            weights=tensors["weights"],
            velocity=tensors.get("velocity"),
            loss=tensors["loss"],
        ),
        epoch=described["epoch"],
        sums=tensors["sums"],
        losses=tensors["losses"],
        accuracies=tensors["accuracies"],
        plan=ExpertsPlan.from_dict(described["plan"]),
    )


def _files(folder: Path) -> list[Path]:
    """The files of states, oldest first."""
    return sorted((path for path in folder.glob("*.safetensors") if _NAME.fullmatch(path.name)), key=_position)


def _position(path: Path) -> tuple[int, int]:
    """First expert and epoch of a file's name."""
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named["first"]), int(named["epoch"])
