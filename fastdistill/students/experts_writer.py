"""Writing the weights of experts: row by row to their place in one file, without ever holding it."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdistill.derivatives.layout import Layout
from fastdistill.files import sync, write_whole
from fastdistill.students.experts import (
    DESCRIPTION,
    FILE,
    SCHEMA,
    STORAGES,
    TENSOR,
    UNFINISHED,
    checksums,
    row_bytes,
)


class ExpertsWriter:
    """Writes the weights of experts, some at a time, into a file that takes its name when it is whole.

    Args:
        folder: where.
        shape: ``(E, K+1, P)``.
        storage: float32 or bfloat16.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], storage: str) -> None:
        self._folder, self._shape = folder, shape
        self._dtype, kind = STORAGES[storage]
        self._row = shape[2] * self._dtype.itemsize
        size = prod(shape[:2]) * self._row
        text = json.dumps({TENSOR: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self.bytes = len(self._header) + size

    @property
    def missing(self) -> int:
        """Bytes that the disk has yet to give."""
        try:
            return max(0, self.bytes - 512 * (self._folder / UNFINISHED).stat().st_blocks)
        except FileNotFoundError:
            return self.bytes

    def begin(self) -> bool:
        """Makes the file ready, and says whether it is there from before, with all that was written to it."""
        path = self._folder / UNFINISHED
        if not path.exists() and (self._folder / FILE).exists():  # killed after `publish`
            os.replace(self._folder / FILE, path)
        with _opened(path) as descriptor:
            there = os.fstat(descriptor).st_size == self.bytes
            if there and os.pread(descriptor, len(self._header), 0) == self._header:
                return True
            os.ftruncate(descriptor, 0)
            _write_at(descriptor, self._header, 0)
            os.ftruncate(descriptor, self.bytes)
            os.fsync(descriptor)
        sync(self._folder)
        return False

    def write(self, first: int, epoch: int, weights: Tensor) -> Tensor:
        """Writes through to the disk what experts ``first`` to ``first + S - 1`` are after an epoch.

        Args:
            first: the first expert.
            epoch: the epoch.
            weights: ``[S, P]``; rounded to the storage.

        Returns:
            The rows' `checksums`, int64 ``[S]``.
        """
        rows = weights.detach().to(self._dtype).cpu()
        with _opened(self._folder / UNFINISHED) as descriptor:
            for number, row in enumerate(row_bytes(rows)):
                _write_at(descriptor, row.numpy().data, self._offset(first + number, epoch))
            os.fsync(descriptor)
        return checksums(rows)

    def verify(self, sums: Tensor) -> str:
        """Reads all rows once, one at a time.

        Args:
            sums: what `write` has returned for them, int64 ``[E, K+1]``.

        Returns:
            The sha256 of the file.

        Raises:
            ValueError: naming the first row that is not what was written.
        """
        path = self._folder / UNFINISHED
        digest = hashlib.sha256(self._header)
        with _opened(path) as descriptor:
            for expert in range(self._shape[0]):
                for epoch in range(self._shape[1]):
                    row = os.pread(descriptor, self._row, self._offset(expert, epoch))
                    if zlib.crc32(row) != sums[expert, epoch]:
                        raise ValueError(
                            f"expected the weights of expert {expert} after epoch {epoch} in {path} as they were "
                            f"written, got others: check the disk, remove {self._folder} and start again"
                        )
                    digest.update(row)
        return digest.hexdigest()

    def publish(self) -> None:
        """Gives the file its name."""
        os.replace(self._folder / UNFINISHED, self._folder / FILE)
        sync(self._folder)

    def describe(
        self,
        *,
        sums: Tensor,
        sha256: str,
        layout: Layout,
        student: Mapping[str, Any],
        dataset: str,
        data_hash: str,
        zca: bool,
        accuracy: Mapping[str, Sequence[float]],
        **others: Any,
    ) -> None:
        """Writes ``experts.json``, by which the experts are finished; ``others`` is kept in it as it is."""
        storage = next(name for name, (dtype, _) in STORAGES.items() if dtype == self._dtype)
        values = {
            "schema": SCHEMA,
            "dataset": dataset,
            "data_hash": data_hash,
            "zca": zca,
            "student": dict(student),
            "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
            "accuracy": {name: list(each) for name, each in accuracy.items()},
            **others,
            "weights": {"storage": storage, "shape": self._shape, "bytes": self.bytes, "sha256": sha256},
            "crc32": sums.tolist(),
        }
        # a line for every entry: the lists are long
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
        write_whole(self._folder / DESCRIPTION, f"{{\n{lines}\n}}\n".encode())

    def _offset(self, expert: int, epoch: int) -> int:
        return len(self._header) + (expert * self._shape[1] + epoch) * self._row


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor for reading and writing, whose calls' errors name the path they do not know."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
