"""Own data in a NumPy ``.npz`` archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdistill.data.arrays import RawData

SPLIT = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("images", "labels")


def read_archive(path: Path) -> RawData:
    """Reads ``x_train, y_train, x_test, y_test``, or ``images, labels`` to be split, from an ``.npz`` file.

    Nothing is unpickled: an archive of Python objects is refused.

    Args:
        path: the file; images and labels as `from_arrays` takes them.

    Raises:
        ValueError: if the file is missing, damaged, no archive of arrays, or lacks these names.
    """
    if not path.is_file():
        raise ValueError(f"Expected an .npz file at {path}, found none: check the path after 'npz:'.")
    try:
        # opened here because numpy leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = SPLIT if "x_train" in archive else WHOLE
            found = sorted(archive)
            arrays = {name: archive[name] for name in names if name in archive}
    except Exception as error:  # the zip reader and the header parser raise many types on damaged files
        raise ValueError(
            f"Expected an .npz archive of plain arrays at {path}, could not read it ({error}): "
            "write it again with numpy.savez and without object arrays."
        ) from error
    if len(arrays) < len(names):
        raise ValueError(
            f"Expected the arrays {', '.join(SPLIT)} or {', '.join(WHOLE)} in {path}, found {found}: rename them."
        )
    if names is WHOLE:
        return RawData(train=(arrays["images"], arrays["labels"]))
    return RawData(train=(arrays["x_train"], arrays["y_train"]), test=(arrays["x_test"], arrays["y_test"]))
