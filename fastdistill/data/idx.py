"""Arrays of bytes in IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdistill.data.expansion import check_expansion


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Reads an array of `axes` axes of bytes, from `path` or, where that is missing, ``path.gz``.

    The file begins with 0, 0, 8 (bytes) and the number of axes, then the sizes as big-endian 32-bit integers.
    torchvision reads these too, but prefers what its older versions pickled into a ``processed`` folder.

    Returns:
        Read-only uint8 array.

    Raises:
        OSError: if there is no such file.
        ValueError: naming the file, if it begins otherwise, is not as long as its sizes say, or claims to expand to
            more than `check_expansion` allows.
    """
    packed = path.with_name(f"{path.name}.gz")
    file = packed if packed.is_file() and not path.is_file() else path
    try:
        with gzip.open(file) if file is packed else file.open("rb") as stream:
            header = stream.read(4 * (1 + axes))
            if len(header) != 4 * (1 + axes) or header[:4] != bytes([0, 0, 8, axes]):
                raise ValueError(f"{file.name} does not begin as an IDX file of {axes} axes of bytes")
            shape = struct.unpack(f">{axes}I", header[4:])
            size = math.prod(shape)
            check_expansion(file.name, stored=file.stat().st_size, claimed=size)
            content = stream.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file.name} is damaged ({error})") from error
    if len(content) != size:
        raise ValueError(
            f"{file.name} is {'longer' if len(content) > size else 'shorter'} than the {size} bytes it names"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
