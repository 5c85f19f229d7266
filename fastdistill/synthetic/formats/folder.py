"""Export folders that are whole or absent, and the two files that every one of them has beside its images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastdistill.files import sync
from fastdistill.synthetic.description import DAMAGE, described_fields, of_kind, plain_values, reason, statistics
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.labels import FLOATS

DESCRIPTION_FILE, STATISTICS_FILE, CARD_FILE = "distilled.json", "statistics.safetensors", "README.md"
MAX_VALUES = 2**31  # of all images together: 8 GB of floats; a small file can claim any number
_MAX_DESCRIPTION = 1 << 24  # bytes; a thousand class names of 200 letters are 200 kB


def refuse_existing(target: Path) -> None:
    """Refuses to write over anything.

    Raises:
        ValueError: when something is there.
    """
    if target.exists() or target.is_symlink():
        raise ValueError(f"expected nothing at {target} to export to, got something there: remove it or name another")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target that becomes it at the end, or vanishes on an error.

    Its name holds the process id, so that two exports to one target do not meet; the first to end wins.

    Raises:
        ValueError: when the target exists, at the beginning or at the end.
        OSError: when something cannot be written; the target is absent then.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed export that had this id
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary, topdown=False):
            for name in files:
                sync(Path(folder) / name)
            sync(Path(folder))
        refuse_existing(target)  # renaming would take the place of an empty folder
        try:
            temporary.rename(target)
        except OSError:
            refuse_existing(target)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)


def write_beside(distilled: Distilled, folder: Path, target: str, card: str) -> None:
    """Writes what makes images of any form distilled images again, and the card.

    Args:
        distilled: the images.
        folder: where.
        target: name of the form.
        card: text of the card.
    """
    values = {**plain_values(distilled), "target": target, "shape": tuple(distilled.images.shape)}
    if distilled.soft:
        dtype = str(distilled.labels.dtype).removeprefix("torch.")
        values["soft_labels"] = {"dtype": dtype, "own": distilled.labels.ndim == 3}
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, indent=1)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")
    if tensors := statistics(distilled):
        (folder / STATISTICS_FILE).write_bytes(save(tensors))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What an export's soft labels are.

    Attributes:
        dtype: of the rows.
        own: whether every run has its own.
    """

    dtype: torch.dtype
    own: bool


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What `read_beside` finds.

    Attributes:
        fields: of `Distilled`, all but images and labels.
        shape: ``(R, N, D, H, W)`` of the images.
        target: name of the form.
        soft: what labels are, where they are soft.
    """

    fields: Mapping[str, Any]
    shape: tuple[int, int, int, int, int]
    target: str
    soft: SoftLabels | None


def read_target(folder: Path) -> str | None:
    """The form that a folder says it has; None where it has no description, and nothing of it where that is damaged."""
    if not (folder / DESCRIPTION_FILE).is_file():
        return None
    try:
        return of_kind(str, _description(folder)["target"])
    except DAMAGE as error:
        raise damaged(folder, error) from error


def read_beside(folder: Path) -> Beside:
    """Reads what `write_beside` wrote; reads no image.

    Raises:
        ValueError: when a file is missing, damaged or claims more values than `MAX_VALUES`.
    """
    try:
        values = _description(folder)
        runs, images, channels, height, width = (of_kind(int, size) for size in of_kind(list, values["shape"]))
        if min(runs, images, channels, height, width) < 1 or runs * images * channels * height * width > MAX_VALUES:
            raise ValueError(f"its shape is {values['shape']}, of 1 to {MAX_VALUES} values")
        tensors: dict[str, Tensor] = {}
        if (folder / STATISTICS_FILE).is_file():
            with safe_open(folder / STATISTICS_FILE, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Beside(
            fields=described_fields(values, tensors),
            shape=(runs, images, channels, height, width),
            target=of_kind(str, values["target"]),
            soft=_soft_labels(values),
        )
    except (SafetensorError, *DAMAGE) as error:
        raise damaged(folder, error) from error


def _soft_labels(values: Mapping[str, Any]) -> SoftLabels | None:
    if "soft_labels" not in values:
        return None
    given = of_kind(dict, values["soft_labels"])
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
    return SoftLabels(dtype=dtypes[of_kind(str, given["dtype"])], own=of_kind(bool, given["own"]))


def damaged(folder: Path, error: BaseException) -> ValueError:
    """The one sentence about an export folder that cannot be read."""
    return ValueError(
        f"expected an export of distilled images in {folder}, got one that is damaged or of another kind "
        f"({reason(error)}): export it again with fastdistill export"
    )


def _description(folder: Path) -> dict[str, Any]:
    return of_kind(dict, json.loads(read_bounded(folder / DESCRIPTION_FILE, _MAX_DESCRIPTION)))


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        ValueError: when it is larger or no file.
        OSError: when it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} has more than the {limit} bytes it needs")
    return path.read_bytes()
