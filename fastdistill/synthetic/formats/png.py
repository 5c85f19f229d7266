"""A folder of PNG pictures, one sub-folder per class, with ``metadata.jsonl``; 8 bits a value, which loses precision.

    0-cat/0000.png …   (in run-0/, run-1/, … where there are several runs)
    metadata.jsonl     file_name, label, class_name, run and index of every picture, and its soft_label if it has one
    distilled.json, statistics.safetensors, README.md

Class folders begin with the padded number of the class, so that sorted they are in the order of the labels, as
torchvision's ``ImageFolder`` wants it, and any name is safe on any file system. ``run-r/`` is such a folder itself.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdistill.synthetic.description import DAMAGE, of_kind
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.formats.eight_bit import (
    check_channels,
    decode_png,
    encode_png,
    from_levels,
    png_limit,
    to_levels,
)
from fastdistill.synthetic.formats.folder import SoftLabels, damaged, read_beside, read_bounded, write_beside
from fastdistill.synthetic.labels import image_classes

METADATA_FILE = "metadata.jsonl"
_LONGEST_NAME = 40  # letters of a class name in a folder's name
_LONGEST_LINE, _LONGEST_NUMBER = 4096, 32  # bytes of metadata per picture, and per number of a soft label
_SMALL, _RATIO = 1 << 26, 100  # values that any pictures may have, and for each of their bytes beyond that


def write(distilled: Distilled, folder: Path, card: str) -> None:
    """Writes the pictures of all runs.

    Args:
        distilled: images of 1, 3 or 4 channels.
        folder: an empty folder.
        card: text of the card.

    Raises:
        ValueError: for images that no PNG can hold.
    """
    check_channels(distilled.images.shape[2])
    levels, classes = to_levels(distilled), distilled.classes.tolist()
    rows = distilled.labels.double().expand(distilled.runs, -1, -1).tolist() if distilled.soft else None
    lines = []
    for run in range(distilled.runs):
        paths = _paths(run, distilled.runs, classes, distilled.class_names)
        for index, (label, path) in enumerate(zip(classes, paths, strict=True)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(encode_png(levels[run, index]))
            line = {"file_name": str(path), "label": label, "class_name": distilled.class_names[label]}
            line |= {"run": run, "index": index}
            if rows is not None:
                line["soft_label"] = rows[run][index]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / METADATA_FILE).write_text("".join(lines), encoding="utf-8")
    write_beside(distilled, folder, "png", card)


def read(folder: Path) -> Distilled:
    """Reads what `write` wrote; the images are those that 8 bits hold.

    Raises:
        ValueError: when anything is missing, damaged, too large or outside the folder.
    """
    beside = read_beside(folder)
    runs, images, *size = beside.shape
    shape = (size[0], size[1], size[2])
    try:
        check_channels(shape[0])
        names = beside.fields["class_names"]
        entries = list(_entries(folder, runs * images, len(names) if beside.soft else 0))
        _check_sizes([entry.path for entry in entries], math.prod(beside.shape))
        levels = torch.zeros(beside.shape, dtype=torch.uint8)
        classes = torch.full((images,), -1)
        rows: dict[tuple[int, int], list[float]] = {}
        seen: set[tuple[int, int]] = set()
        for path, label, run, index, row in entries:
            if not (0 <= run < runs and 0 <= index < images) or (run, index) in seen:
                raise ValueError(f"{METADATA_FILE} names image {index} of run {run} twice, or there is no such image")
            whose = run if beside.soft and beside.soft.own else 0
            if int(classes[index]) not in (-1, label) or rows.setdefault((whose, index), row) != row:
                raise ValueError(f"{METADATA_FILE} gives image {index} two labels")
            seen.add((run, index))
            classes[index] = label
            levels[run, index] = decode_png(read_bounded(path, png_limit(shape)), shape)
        labels = classes if beside.soft is None else _soft(rows, images, beside.soft)
        if not torch.equal(image_classes(labels), classes):
            raise ValueError(f"{METADATA_FILE} gives images with soft labels in another order than that of the classes")
        return Distilled(images=_normalised(levels, beside.fields), labels=labels, **beside.fields)
    except DAMAGE as error:
        raise damaged(folder, error) from error


def class_folder(label: int, classes: int, name: str) -> str:
    """A folder name that is safe on any file system, unique, and in the order of the labels when sorted."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", plain)[:_LONGEST_NAME].strip("-")
    number = str(label).zfill(len(str(classes - 1)))
    return f"{number}-{readable}" if readable else number


def _paths(run: int, runs: int, labels: list[int], names: tuple[str, ...]) -> Iterator[PurePosixPath]:
    above = PurePosixPath(f"run-{str(run).zfill(len(str(runs - 1)))}") if runs > 1 else PurePosixPath()
    counts = [0] * len(names)
    for label in labels:
        yield above / class_folder(label, len(names), names[label]) / f"{counts[label]:04d}.png"
        counts[label] += 1


class _Entry(NamedTuple):
    """A picture's line; the row is empty for hard labels."""

    path: Path
    label: int
    run: int
    image: int
    row: list[float]


def _entries(folder: Path, count: int, classes: int) -> Iterator[_Entry]:
    """The lines of all pictures, with soft labels of so many classes."""
    longest = _LONGEST_LINE + classes * _LONGEST_NUMBER
    text = read_bounded(folder / METADATA_FILE, count * longest).decode("utf-8")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != count:
        raise ValueError(f"{METADATA_FILE} has {len(lines)} lines for {count} images")
    inside = folder.resolve()
    for line in lines:
        entry: dict[str, Any] = of_kind(dict, json.loads(line))
        name = of_kind(str, entry["file_name"])
        path = (folder / name).resolve()
        if PurePosixPath(name).is_absolute() or ".." in Path(name).parts or not path.is_relative_to(inside):
            raise ValueError(f"{METADATA_FILE} names {name!r:.80}, which leaves the folder")
        row = [_number(value) for value in of_kind(list, entry["soft_label"])] if classes else []
        if len(row) != classes:
            raise ValueError(f"{METADATA_FILE} has a soft label of {len(row)} numbers for {classes} classes")
        yield _Entry(path, of_kind(int, entry["label"]), of_kind(int, entry["run"]), of_kind(int, entry["index"]), row)


def _number(value: Any) -> float:
    return value if isinstance(value, float) else float(of_kind(int, value))


def _soft(rows: Mapping[tuple[int, int], list[float]], images: int, soft: SoftLabels) -> Tensor:
    """Rows ``[R, N, C]``, or ``[N, C]`` where all runs have the same."""
    runs = len(rows) // images
    flat = [rows[run, index] for run in range(runs) for index in range(images)]
    labels = torch.tensor(flat, dtype=torch.float64).to(soft.dtype).view(runs, images, -1)
    return labels if soft.own else labels.squeeze(0)


def _check_sizes(paths: list[Path], values: int) -> None:
    """Refuses pictures that would decode to far more than they are, before any is decoded."""
    if len(set(paths)) < len(paths):
        raise ValueError(f"{METADATA_FILE} names a file twice")
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if values > max(_SMALL, _RATIO * size):
        raise ValueError(f"{METADATA_FILE} names {size} bytes of pictures, too few for {values} values")


def _normalised(levels: Tensor, fields: Any) -> Tensor:
    return from_levels(levels, fields["normalization"], fields["pixel_range"])
