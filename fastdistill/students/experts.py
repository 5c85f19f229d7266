"""Experts: students trained on real images, and what their weights were at the start and after every epoch.

A folder holds ``experts.safetensors`` with one tensor, ``weights [E, K+1, P]`` in the flat padded layout of
`derivatives.layout`, float32 or bfloat16, and ``experts.json``, which says what they are. The file is memory-mapped:
of 100 experts of 50 epochs, 6.5 GB for a ConvNet-3-128, only the rows asked for are read.

Letters: ``E`` experts, ``K`` epochs of each, ``P`` parameters with padding, ``S`` rows asked for at once.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdistill.config import StudentConfig
from fastdistill.derivatives.layout import Layout

FILE, DESCRIPTION = "experts.safetensors", "experts.json"
UNFINISHED = f"{FILE}.part"  # what the file is called until it is whole
SCHEMA = 1
TENSOR = "weights"
STORAGES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}
# what a network is made of beside its images, by architecture; the others have nothing to choose
_CHOICES = {
    "convnet": ("depth", "width", "norm", "activation", "pooling"),
    "vgg11": ("norm",),
    "resnet18": ("norm",),
    "resnet18ap": ("norm",),
}
_DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, OSError, SafetensorError)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Experts:
    """Experts in a folder.

    Attributes:
        weights: ``[E, K+1, P]``, memory-mapped, as stored; epoch 0 is the start.
        sums: CRC-32 of every row's bytes, int64 ``[E, K+1]``.
        folder: where they are.
        student: settings of the network, as `StudentConfig` names them.
        shapes: parameter name to shape, in the layout's order.
        dataset: what they were trained on.
        data_hash: of the images they were trained on.
        zca: whether these were whitened.
        accuracy: of every expert at the end, shares in [0, 1], by ``training`` and ``test``.
        description: all that ``experts.json`` says.
    """

    weights: Tensor
    sums: Tensor
    folder: Path
    student: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dataset: str
    data_hash: str
    zca: bool
    accuracy: dict[str, tuple[float, ...]]
    description: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Experts:
        """Opens a folder of experts without reading their weights.

        Raises:
            ValueError: where there are none, where they are still being trained, and for files that are damaged, cut
                off or of another kind.
        """
        folder = Path(folder)
        path = folder / DESCRIPTION
        if not path.is_file():
            if (folder / UNFINISHED).exists():
                raise ValueError(
                    f"expected finished experts in {folder}, got ones in training: repeat their fastdistill experts "
                    "command to finish them"
                )
            raise ValueError(f"expected experts in {folder}, found none: make some with fastdistill experts")
        try:
            return cls(**_read(folder))
        except _DAMAGE as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"expected experts in {folder}, got files that are damaged or of another kind ({lines[0][:300]}): "
                "restore them, or remove the folder and train the experts again"
            ) from error

    @property
    def count(self) -> int:
        """``E``."""
        return self.weights.shape[0]

    @property
    def epochs(self) -> int:
        """``K``."""
        return self.weights.shape[1] - 1

    @property
    def identity(self) -> str:
        """What tells these weights from others', from their sums: 16 hexadecimal digits."""
        return hashlib.sha256(self.sums.numpy().data).hexdigest()[:16]

    def check(self, *, layout: Layout, student: StudentConfig, data_hash: str, zca: bool) -> None:
        """Refuses experts of another network or of other images.

        Args:
            layout: of the network that is to start from their weights.
            student: its settings; how it is initialised does not matter.
            data_hash: of the training images (`loop.fingerprint.seen_hash`).
            zca: whether these are whitened.

        Raises:
            ValueError: naming what differs.
        """
        ours, theirs = _network(student), _network(StudentConfig(**self.student))
        for name in ours:
            if ours[name] != theirs.get(name):
                raise self._another(f"{name} {ours[name]}", f"{name} {theirs.get(name)}")
        shapes = {name: tuple(shape) for name, shape in layout.shapes.items()}
        for name in {**shapes, **self.shapes}:
            if shapes.get(name) != self.shapes.get(name):
                raise self._another(
                    f"{name} {shapes.get(name, 'nowhere')}", f"{name} {self.shapes.get(name, 'nowhere')}"
                )
        if layout.size != self.weights.shape[2]:
            raise self._another(f"{layout.size} parameters", f"{self.weights.shape[2]} parameters")
        if zca != self.zca:
            kinds = {True: "images whitened by ZCA", False: "images without ZCA"}
            raise self._another(kinds[zca], kinds[self.zca])
        if data_hash != self.data_hash:
            raise ValueError(
                f"expected experts in {self.folder} trained on the images of this run (data {data_hash}), got ones "
                f"trained on others (data {self.data_hash} of {self.dataset}): give both the same data, seed and "
                "data.validation_fraction"
            )

    def at(self, experts: Tensor, epochs: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights of some experts after some epochs; only these rows are read from the disk.

        Args:
            experts: which, int64 ``[S]`` in ``[0, E)``.
            epochs: after which epoch each, int64 ``[S]`` in ``[0, K]``.
            dtype: of the result.
            device: of the result.

        Returns:
            ``[S, P]``.

        Raises:
            ValueError: for an expert or an epoch that there is not, and for rows that are not what was written.
        """
        experts, epochs = experts.cpu(), epochs.cpu()
        for name, chosen, end in (("experts", experts, self.count), ("epochs", epochs, self.epochs + 1)):
            if bool(((chosen < 0) | (chosen >= end)).any()):
                raise ValueError(
                    f"expected {name} in 0 to {end - 1}, got {chosen.tolist()}: choose among those in {self.folder}"
                )
        rows = self.weights[experts, epochs]
        found, finite = checksums(rows), rows.isfinite().all(1)
        for row, (expert, epoch) in enumerate(zip(experts.tolist(), epochs.tolist(), strict=True)):
            if found[row] != self.sums[expert, epoch] or not finite[row]:
                raise ValueError(
                    f"expected the weights of expert {expert} after epoch {epoch} in {self.folder / FILE} as they "
                    "were written, got others: restore the file, or remove the folder and train the experts again"
                )
        return rows.to(device, dtype)

    def __str__(self) -> str:
        shown = [
            f"{name} accuracy {100 * fmean(each):.2f} ± {100 * pstdev(each):.2f} %"
            for name, each in self.accuracy.items()
        ]
        return f"{self.folder}: {self.count} experts of {self.epochs} epochs, {', '.join(shown)}"

    def _another(self, expected: str, found: str) -> ValueError:
        return ValueError(
            f"expected experts with {expected}, got {self.folder} with {found}: choose others, or make some with "
            "fastdistill experts"
        )


def checksums(rows: Tensor) -> Tensor:
    """CRC-32 of the bytes of every row, int64 ``[S]``, of ``rows [S, P]`` on the CPU."""
    return torch.tensor([zlib.crc32(row.numpy().data) for row in row_bytes(rows)], dtype=torch.int64)


def row_bytes(rows: Tensor) -> Tensor:
    """Bytes ``[S, b]`` of ``rows [S, P]``; bfloat16 has no other form that Python knows."""
    return rows.contiguous().view(torch.uint8)


def _read(folder: Path) -> dict[str, Any]:
    """The fields of `Experts`.

    Raises:
        LookupError, TypeError, ValueError and the like: for anything that is not as `experts_writer` writes it.
    """
    values = _kind(dict, json.loads((folder / DESCRIPTION).read_bytes()))
    if values["schema"] != SCHEMA:
        raise ValueError(f"schema {values['schema']!r:.40} instead of {SCHEMA}")
    stored = _kind(dict, values["weights"])
    shape = tuple(_kind(int, length) for length in _kind(list, stored["shape"]))
    shapes = {
        name: tuple(_kind(int, length) for length in _kind(list, lengths))
        for name, lengths in _kind(dict, values["shapes"]).items()
    }
    student = _kind(dict, values["student"])
    StudentConfig(**student)
    sums = torch.tensor(_kind(list, values["crc32"]))
    weights = _mapped(folder / FILE, _kind(int, stored["bytes"]))
    dtype, _ = STORAGES[_kind(str, stored["storage"])]
    if weights.dtype != dtype or tuple(weights.shape) != shape or weights.ndim != 3 or sums.shape != shape[:2]:
        raise ValueError(f"{FILE} and {DESCRIPTION} do not belong together")
    accuracy = {name: tuple(map(float, _kind(list, values["accuracy"][name]))) for name in ("training", "test")}
    if any(len(each) != shape[0] for each in accuracy.values()):
        raise ValueError(f"accuracies of {len(accuracy['test'])} experts instead of {shape[0]}")
    return {
        "weights": weights,
        "sums": sums,
        "folder": folder,
        "student": student,
        "shapes": shapes,
        "dataset": _kind(str, values["dataset"]),
        "data_hash": _kind(str, values["data_hash"]),
        "zca": _kind(bool, values["zca"]),
        "accuracy": accuracy,
        "description": values,
    }


def _mapped(path: Path, size: int) -> Tensor:
    """The one tensor of a file, none of it read yet."""
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
    with safe_open(path, framework="pt") as opened:
        names = list(opened.keys())
        if names != [TENSOR]:
            raise ValueError(f"{path.name} holds {', '.join(names)[:100]} instead of {TENSOR}")
        tensor: Tensor = opened.get_tensor(TENSOR)
    return tensor


def _network(student: StudentConfig) -> dict[str, Any]:
    """The settings that decide what network it is."""
    names = ("architecture", *_CHOICES.get(student.architecture, ()))
    return {name: getattr(student, name) for name in names}


def _kind(kind: type[_T], value: Any) -> _T:
    """The value, if it is of a kind; true and false are no integers."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
