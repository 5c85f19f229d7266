"""The artefact: distilled images with everything needed to train on them, in one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import Whitening
from fastdistill.files import write_whole

_FORMAT = "fastdistill-1"
_HEADER = "fastdistill"  # the key of the JSON text in the file's metadata
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled(Dataset[tuple[Tensor, Tensor]]):
    """Distilled images, as a data set of (image, label) of the first run.

    Attributes:
        images: ``[R, N, D, H, W]``, float32, in the normalised space that students are trained in.
        labels: int64 ``[N]``, the same for all runs.
        class_names: ``C`` names.
        normalization: what maps pixels in [0, 1] to the normalised space; test images need it too.
        dataset: name of the data set it was distilled from.
        augmentation: strategy that the images were distilled under, or ``none``.
        align_corners: of that strategy's sampling grid.
        unit: of the real pixels: ``bytes``, which stand for 0 to 1, or ``floats``.
        pixel_range: lowest and highest real pixel, for pictures.
        config_hash: of the run's configuration.
        details: further text to keep, such as the method.

    Raises:
        ValueError: when shapes, labels, classes and normalisation do not belong together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization
    dataset: str = "own"
    augmentation: str = "none"
    align_corners: bool = True
    unit: str = "bytes"
    pixel_range: tuple[float, float] = (0.0, 1.0)
    config_hash: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or self.labels.shape != (self.images.shape[1],):
            raise ValueError(
                f"expected images [R, N, D, H, W] with labels [N], got {tuple(self.images.shape)} and "
                f"{tuple(self.labels.shape)}: give every image one label"
            )
        if not self.images.is_floating_point():
            raise ValueError(f"expected floating-point images, got {self.images.dtype}: normalise them first")
        classes = len(self.class_names)
        if self.labels.dtype != torch.int64 or bool(((self.labels < 0) | (self.labels >= classes)).any()):
            whole = self.labels.dtype == torch.int64
            found = f"{int(self.labels.min())} to {int(self.labels.max())}" if whole else str(self.labels.dtype)
            raise ValueError(
                f"expected int64 labels in 0 to {classes - 1}, got {found}: number the classes from 0 and name each"
            )
        channels, whitening = len(self.normalization.mean), self.normalization.whitening
        values = math.prod(self.images.shape[2:]) if whitening is None else whitening.mean.numel()
        if channels != self.images.shape[2] or values != math.prod(self.images.shape[2:]):
            raise ValueError(
                f"expected images of the normalisation's {channels} channels and {values} values, got "
                f"{tuple(self.images.shape[2:])}: give the normalisation that the images were made with"
            )

    def __len__(self) -> int:
        return self.images.shape[1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[0, index], self.labels[index]

    @property
    def runs(self) -> int:
        """``R``."""
        return self.images.shape[0]

    def run(self, index: int) -> Distilled:
        """The images of one run."""
        return replace(self, images=self.images[index : index + 1])

    def pixels(self) -> Tensor:
        """Images in the unit of the real pixels, 0 to 1 for bytes, not clamped: ``[R, N, D, H, W]``."""
        return self.normalization.invert(self.images)

    def save(self, path: str | Path) -> None:
        """Writes the file whole; equal content gives equal bytes."""
        tensors = {"images": self.images.cpu().contiguous(), "labels": self.labels.cpu().contiguous()}
        whitening = self.normalization.whitening
        if whitening is not None:
            tensors |= {
                "zca.mean": whitening.mean.cpu().contiguous(),
                "zca.matrix": whitening.matrix.cpu().contiguous(),
                "zca.inverse": whitening.inverse.cpu().contiguous(),
            }
        metadata = {
            "format": _FORMAT,
            "class_names": self.class_names,
            "mean": self.normalization.mean,
            "std": self.normalization.std,
            "dataset": self.dataset,
            "augmentation": self.augmentation,
            "align_corners": self.align_corners,
            "unit": self.unit,
            "pixel_range": self.pixel_range,
            "config_hash": self.config_hash,
            "details": dict(self.details),
        }
        # one entry, because safetensors writes several in an order that changes from process to process
        text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
        write_whole(Path(path), save(tensors, {_HEADER: text}))


def load(path: str | Path) -> Distilled:
    """Reads distilled images.

    Args:
        path: a ``distilled.safetensors`` file, or the run folder that holds one.

    Raises:
        ValueError: when the file is missing, damaged or of another kind.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "distilled.safetensors"
    if not file.is_file():
        raise ValueError(
            f"expected a run folder or a distilled.safetensors file, found none at {file}: finish the run or correct "
            "the path"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = _of(dict, json.loads((opened.metadata() or {})[_HEADER]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise KeyError(f"format {_FORMAT}")
        low, high = _of(list, metadata["pixel_range"])
        whitening = None
        if "zca.matrix" in tensors:
            whitening = Whitening(
                mean=tensors["zca.mean"], matrix=tensors["zca.matrix"], inverse=tensors["zca.inverse"]
            )
        return Distilled(
            images=tensors["images"],
            labels=tensors["labels"],
            class_names=tuple(_of(str, name) for name in _of(list, metadata["class_names"])),
            normalization=Normalization(
                mean=tuple(map(float, _of(list, metadata["mean"]))),
                std=tuple(map(float, _of(list, metadata["std"]))),
                whitening=whitening,
            ),
            dataset=_of(str, metadata["dataset"]),
            augmentation=_of(str, metadata["augmentation"]),
            align_corners=_of(bool, metadata["align_corners"]),
            unit=_of(str, metadata["unit"]),
            pixel_range=(float(low), float(high)),
            config_hash=_of(str, metadata["config_hash"]),
            details={name: _of(str, value) for name, value in _of(dict, metadata["details"]).items()},
        )
    # JSON nested too deep and tensors of types that torch lacks are runtime and attribute errors
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"expected distilled images in {file}, got a file that is damaged or of another kind ({error}): write it "
            "again with fastdistill run"
        ) from error


def _of(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value
