"""The artefact: distilled images with everything needed to train on them, in one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from fastdistill.data.normalization import Normalization
from fastdistill.files import write_whole
from fastdistill.synthetic.description import DAMAGE, described_fields, of_kind, plain_values, reason, statistics
from fastdistill.synthetic.labels import FLOATS, check_labels, image_classes
from fastdistill.synthetic.schedule import Schedule

FILE = "distilled.safetensors"
_SHOWN = 5  # runs whose learning rates are named
_HEADER = "fastdistill"  # the key of the JSON text in the file's metadata


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled(Dataset[tuple[Tensor, Tensor]]):
    """Distilled images, as a data set of (image, label) of the first run; a soft label is a row.

    Attributes:
        images: ``[R, N, D, H, W]``, float32, in the normalised space that students are trained in.
        labels: int64 ``[N]``, the same for all runs; or soft: rows of finite floats of at least 0 and any sum,
            ``[N, C]`` or, where every run has learned its own, ``[R, N, C]``.
        class_names: ``C`` names.
        normalization: what maps pixels in [0, 1] to the normalised space; test images need it too.
        dataset: name of the data set it was distilled from.
        augmentation: strategy that the images were distilled under, or ``none``.
        align_corners: of that strategy's sampling grid.
        unit: of the real pixels: ``bytes``, which stand for 0 to 1, or ``floats``.
        pixel_range: lowest and highest real pixel, for pictures.
        config_hash: of the run's configuration.
        details: further text to keep, such as the method.
        schedule: the steps and rates that the images were learned with, where they train networks only by these.
        learning_rate: floats ``[R]``, the rate that the images of each run were learned with, where networks should
            take it in place of the one that a protocol of epochs begins with.

    Raises:
        ValueError: when shapes, labels, classes, normalisation, schedule and learning rates do not belong together, or
            an image or learning rate is not finite.
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
    schedule: Schedule | None = None
    learning_rate: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or 0 in self.images.shape:
            raise ValueError(
                f"expected images [R, N, D, H, W] with labels [N], [N, C] or [R, N, C], got {tuple(self.images.shape)} "
                f"and {tuple(self.labels.shape)}: give every image one label"
            )
        if self.images.dtype not in FLOATS:
            raise ValueError(
                f"expected floating-point images of 16, 32 or 64 bits, got {self.images.dtype}: normalise and convert "
                "them first"
            )
        broken = ~self.images.flatten(2).isfinite().all(dim=2)
        if bool(broken.any()):
            raise ValueError(
                f"expected finite images, got NaN or infinity in {int(broken.sum())} of {broken.numel()}: take those "
                "of a run that did not diverge"
            )
        check_labels(self.labels, runs=self.runs, images=len(self), classes=len(self.class_names))
        channels, whitening = len(self.normalization.mean), self.normalization.whitening
        values = math.prod(self.images.shape[2:]) if whitening is None else whitening.mean.numel()
        if channels != self.images.shape[2] or values != math.prod(self.images.shape[2:]):
            raise ValueError(
                f"expected images of the normalisation's {channels} channels and {values} values, got "
                f"{tuple(self.images.shape[2:])}: give the normalisation that the images were made with"
            )
        self._check_schedule()
        self._check_learning_rate()

    def _check_learning_rate(self) -> None:
        rate = self.learning_rate
        if rate is None:
            return
        fits = rate.shape == (self.runs,) and rate.dtype in FLOATS
        if not fits or not bool(rate.isfinite().all()):
            found = "NaN or infinity" if fits else f"{rate.dtype} {tuple(rate.shape)}"
            raise ValueError(
                f"expected a finite floating-point learning rate of each of {self.runs} runs, got {found}: give those "
                "that these images were learned with, or none"
            )

    def _check_schedule(self) -> None:
        if self.schedule is None:
            return
        last = int(self.schedule.images.max())
        if last >= len(self):
            raise ValueError(
                f"expected a schedule of images 0 to {len(self) - 1}, got image {last}: give the schedule that these "
                "images were learned with"
            )
        for name in ("rates", "momenta"):
            values = getattr(self.schedule, name)
            if values is not None and values.ndim == 2 and len(values) != self.runs:
                raise ValueError(
                    f"expected a schedule's {name} of {self.runs} runs, got those of {len(values)}: give the schedule "
                    "that these images were learned with"
                )

    def __len__(self) -> int:
        return self.images.shape[1]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[0, index], self.labels[0, index] if self.labels.ndim == 3 else self.labels[index]

    @property
    def runs(self) -> int:
        """``R``."""
        return self.images.shape[0]

    @property
    def soft(self) -> bool:
        """Whether labels are rows of floats."""
        return self.labels.ndim > 1

    @property
    def classes(self) -> Tensor:
        """The class that every image stands for, int64 ``[N]``; see `image_classes`."""
        return image_classes(self.labels)

    def run(self, index: int) -> Distilled:
        """The images of one run, with labels and rates of its own where it has learned such."""
        one = slice(index, index + 1)
        return replace(
            self,
            images=self.images[one],
            labels=self.labels[one] if self.labels.ndim == 3 else self.labels,
            schedule=None if self.schedule is None else self.schedule.run(index),
            learning_rate=None if self.learning_rate is None else self.learning_rate[one],
        )

    def pixels(self) -> Tensor:
        """Images in the unit of the real pixels, 0 to 1 for bytes, not clamped: ``[R, N, D, H, W]``."""
        return self.normalization.invert(self.images)

    @property
    def note(self) -> str:
        """What whoever trains on these images has to know; empty where there is nothing."""
        notes = []
        if self.schedule is not None:
            notes.append(
                f"these images were learned together with their own {self.schedule.steps} steps and learning rates and "
                "train networks only by replaying them, which is what the protocol own does"
            )
        if self.learning_rate is not None:
            rates = ", ".join(f"{rate:.4g}" for rate in self.learning_rate.tolist()[:_SHOWN])
            more = f" and {self.runs - _SHOWN} more" if self.runs > _SHOWN else ""
            each = ", run by run" if self.runs > 1 else ""
            notes.append(
                f"train with learning rate {rates}{more}{each}, which was learned together with these images and which "
                "the protocols dc, dsa and default take in place of their own"
            )
        return "; ".join(notes)

    def save(self, path: str | Path) -> None:
        """Writes the file whole; equal content gives equal bytes."""
        write_whole(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors = {"images": self.images.cpu().contiguous(), "labels": self.labels.cpu().contiguous()}
        # one entry, because safetensors writes several in an order that changes from process to process
        text = json.dumps(plain_values(self), sort_keys=True, ensure_ascii=False)
        return save(tensors | statistics(self), {_HEADER: text})


def load_file(path: str | Path) -> Distilled:
    """Reads distilled images in their own form.

    Args:
        path: a ``distilled.safetensors`` file, or the run folder that holds one.

    Raises:
        ValueError: when the file is missing, damaged or of another kind.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    if not file.is_file():
        raise ValueError(
            f"expected a run folder or a {FILE} file, found none at {file}: finish the run or correct the path"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            values = of_kind(dict, json.loads((opened.metadata() or {})[_HEADER]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Distilled(images=tensors["images"], labels=tensors["labels"], **described_fields(values, tensors))
    except (SafetensorError, *DAMAGE) as error:
        raise ValueError(
            f"expected distilled images in {file}, got a file that is damaged or of another kind ({reason(error)}): "
            "write it again with fastdistill run"
        ) from error
