"""A data set as the Hugging Face hub and its ``datasets`` library read it: one Parquet file and a card.

    data/train-00000-of-00001.parquet   image, label, run, index, and soft_label where labels are soft
    distilled.safetensors               the exact images, with everything needed to train on them
    README.md

``image`` is an 8-bit PNG, which the library decodes and the hub shows. The exact images stand beside the table, in the
form that a run leaves, and `fastdistill.load` reads these and never the table: Arrow ends the whole process on some
damaged Parquet files, and so nothing more than this package is needed to load.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastdistill.synthetic.distilled import FILE, Distilled
from fastdistill.synthetic.formats.eight_bit import check_channels, encode_png, to_levels
from fastdistill.synthetic.formats.folder import CARD_FILE

TABLE_FILE = "data/train-00000-of-00001.parquet"
COLUMNS = ("image", "label", "run", "index")  # and soft_label
_GROUP = 64  # rows that a reader decodes at once


def write(distilled: Distilled, folder: Path, card: str) -> None:
    """Writes the table and the exact images.

    Args:
        distilled: images of 1, 3 or 4 channels.
        folder: an empty folder.
        card: text of the card; its front matter should have `features`.

    Raises:
        ValueError: for images that no PNG can hold, or without pyarrow.
    """
    pyarrow, parquet = require_arrow()
    check_channels(distilled.images.shape[2])
    levels, classes = to_levels(distilled), distilled.classes.cpu()
    runs, images = levels.shape[:2]
    pictures = [encode_png(image) for image in levels.flatten(0, 1)]
    fields = [
        ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("label", pyarrow.int64()),
        ("run", pyarrow.int64()),
        ("index", pyarrow.int64()),
    ]
    if distilled.soft:
        fields.append(("soft_label", pyarrow.list_(pyarrow.type_for_alias(_row_type(distilled)))))
    schema = pyarrow.schema(
        fields, metadata={"huggingface": json.dumps({"info": {"features": _library_features(distilled)}})}
    )
    columns = [
        pyarrow.array([{"bytes": picture, "path": None} for picture in pictures], schema.field("image").type),
        pyarrow.array(classes.repeat(runs).numpy()),
        pyarrow.array(torch.arange(runs).repeat_interleave(images).numpy()),
        pyarrow.array(torch.arange(images).repeat(runs).numpy()),
    ]
    if distilled.soft:
        rows = distilled.labels.cpu().double().expand(runs, -1, -1).flatten(0, 1)
        columns.append(pyarrow.array(rows.tolist(), schema.field("soft_label").type))
    (folder / TABLE_FILE).parent.mkdir()
    parquet.write_table(
        pyarrow.Table.from_arrays(columns, schema=schema),
        folder / TABLE_FILE,
        row_group_size=_GROUP,
        compression="zstd",
    )
    (folder / FILE).write_bytes(distilled.to_bytes())
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def features(distilled: Distilled) -> list[dict[str, Any]]:
    """The columns, as the front matter of a card lists them."""
    names = {str(label): name for label, name in enumerate(_unique(distilled.class_names))}
    return [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "run", "dtype": "int64"},
        {"name": "index", "dtype": "int64"},
        *([{"name": "soft_label", "sequence": _row_type(distilled)}] if distilled.soft else []),
    ]


def _library_features(distilled: Distilled) -> dict[str, Any]:
    """The columns, as the library keeps them in the table's metadata."""
    whole = {"dtype": "int64", "_type": "Value"}
    number = {"dtype": _row_type(distilled), "_type": "Value"}
    return {
        "image": {"_type": "Image"},
        "label": {"names": _unique(distilled.class_names), "_type": "ClassLabel"},
        "run": whole,
        "index": whole,
        **({"soft_label": {"feature": number, "length": -1, "_type": "Sequence"}} if distilled.soft else {}),
    }


def _row_type(distilled: Distilled) -> str:
    """A type that holds the rows exactly and every reader knows."""
    return "float64" if distilled.labels.dtype == torch.float64 else "float32"


def _unique(names: tuple[str, ...]) -> list[str]:
    """The class names, with the number behind those that occur twice, which the library refuses."""
    counts = Counter(names)
    return [f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(names)]


def require_arrow() -> tuple[ModuleType, ModuleType]:
    """``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ValueError: where they are not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            'expected pyarrow for Hugging Face exports, found none: pip install "fastdistill[hf]"'
        ) from error
