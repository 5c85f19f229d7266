"""Own data in a NumPy ``.npz`` archive."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdistill.data.arrays import RawData
from fastdistill.data.causes import cause_of
from fastdistill.data.expansion import check_expansion

SPLIT = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("images", "labels")


def read_archive(path: Path) -> RawData:
    """Reads ``x_train, y_train, x_test, y_test``, or ``images, labels`` to be split, from an ``.npz`` file.

    Nothing is unpickled: an archive of Python objects is refused. So is one whose arrays claim to expand to more than
    `check_expansion` allows, before they are; as `numpy.savez` stores them, uncompressed, they may fill the machine's
    memory.

    Args:
        path: the file; images and labels as `from_arrays` takes them.

    Raises:
        ValueError: if the file is missing, damaged, no archive of arrays, or lacks these names.
    """
    if not path.is_file():
        raise ValueError(f"expected an .npz file at {path}, got none: check the path after 'npz:'")
    try:
        with zipfile.ZipFile(path) as archive:
            found = sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
            names = SPLIT if "x_train" in found else WHOLE
            arrays = {name: _read_array(archive, name, path.stat().st_size) for name in names if name in found}
    except Exception as error:  # the zip reader and the header parser raise many types on damaged files
        raise ValueError(
            f"expected an .npz archive of plain arrays at {path}, got one that cannot be read ({cause_of(error)}): "
            "write it again with numpy.savez and without object arrays"
        ) from error
    if len(arrays) < len(names):
        raise ValueError(
            f"expected the arrays {', '.join(SPLIT)} or {', '.join(WHOLE)} in {path}, got {found[:8]}: rename them"
        )
    if names is WHOLE:
        return RawData(train=(arrays["images"], arrays["labels"]))
    return RawData(train=(arrays["x_train"], arrays["y_train"]), test=(arrays["x_test"], arrays["y_test"]))


def _read_array(archive: zipfile.ZipFile, name: str, on_disk: int) -> npt.NDArray[Any]:
    """One array; numpy's own reader allocates what the header claims and then looks whether it is there."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in a way numpy does not write")
    check_expansion(name, stored=min(entry.compress_size, on_disk), claimed=entry.file_size)
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        claimed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or claimed != entry.file_size - member.tell():
            raise ValueError(f"{name} claims {claimed} bytes and holds {entry.file_size - member.tell()}")
        return np.ndarray(shape, dtype, member.read(), order="F" if by_columns else "C")
