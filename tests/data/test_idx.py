from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdistill.data.idx import read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)


def idx(values: np.ndarray[Any, Any], sizes: tuple[int, ...] | None = None) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(sizes or values.shape, ">u4").tobytes() + values.tobytes()


def test_arrays_are_read_plain_or_packed(tmp_path: Path) -> None:
    path = tmp_path / "images"
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(IMAGES)))
    assert np.array_equal(read_idx(path, 3), IMAGES)
    path.write_bytes(idx(255 - IMAGES))
    assert np.array_equal(read_idx(path, 3), 255 - IMAGES)
    path.write_bytes(idx(IMAGES[:, 0, 0]))
    assert np.array_equal(read_idx(path, 1), IMAGES[:, 0, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as an IDX file of 3 axes of bytes"),
        (idx(IMAGES)[:15], "does not begin as an IDX file of 3 axes of bytes"),
        (idx(IMAGES[0]), "does not begin as an IDX file of 3 axes of bytes"),
        (bytes([0, 0, 13, 3]) + idx(IMAGES)[4:], "does not begin as an IDX file of 3 axes of bytes"),
        (idx(IMAGES)[:-1], "is shorter than the 60 bytes it names"),
        (idx(IMAGES) + b"x", "is longer than the 60 bytes it names"),
        (idx(IMAGES, (2**32 - 1,) * 3), "claims to expand from 76 bytes to"),
        (idx(IMAGES, (769546, 494770, 48448661)), "claims to expand from 76 bytes to"),  # 4, modulo 2^64
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(ValueError, match=f"images {message}"):
        read_idx(tmp_path / "images", 3)
    (tmp_path / "images").unlink()
    (tmp_path / "images.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"images\.gz (does|is|claims)"):
        read_idx(tmp_path / "images", 3)


def test_damaged_packing_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(idx(IMAGES), mtime=0)
    for content in (packed[:-9], b"no gzip at all", packed[:30] + b"\xff" * 20 + packed[50:]):
        (tmp_path / "images.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"images\.gz is damaged"):
            read_idx(tmp_path / "images", 3)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere", 1)
