"""What is known of a run's images before there are any: how many and how large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.data.class_index import ClassIndex
from fastdistill.data.normalization import Normalization
from fastdistill.data.store import ImageStore
from fastdistill.data.zca import Whitening

if TYPE_CHECKING:
    from fastdistill.data.sources import RealData

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many real images there are and how large.

    Attributes:
        shape: ``(D, H, W)``.
        classes: training images of every class, the validation part included.
        test: test images.
        dtype: of the stored pixels.
    """

    shape: tuple[int, int, int]
    classes: tuple[int, ...]
    test: int
    dtype: torch.dtype = torch.uint8

    @classmethod
    def of(cls, data: RealData) -> Sizes:
        """Those of a data set."""
        train = data.train
        return cls(shape=train.shape, classes=train.class_sizes, test=len(data.test), dtype=train.images.dtype)

    def stored(self, images: int) -> int:
        """Bytes of that many stored images with their labels and their places in the order of classes."""
        return images * (prod(self.shape) * self.dtype.itemsize + 16)

    def split(self, fraction: float) -> tuple[tuple[int, ...], int]:
        """Training images of every class and number of validation images, as `stratified_split` makes them."""
        held_out = [max(min(round(fraction * size), size - 1), 0) for size in self.classes]
        kept = tuple(size - out for size, out in zip(self.classes, held_out, strict=True))
        return kept, sum(held_out)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Unseen(ImageStore):
    """Real images of which only the sizes are known."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Nothing to check: there are no values."""

    @classmethod
    def of(cls, config: RunConfig, sizes: Sizes, classes: tuple[int, ...]) -> Unseen:
        """As many images of every class as asked for."""
        channels, pixels = sizes.shape[0], prod(sizes.shape)
        whitening = None
        if config.data.zca:
            matrix = torch.empty(pixels, pixels, device=META)
            whitening = Whitening(mean=torch.empty(pixels, device=META), matrix=matrix, inverse=matrix)
        store = cls(
            images=torch.empty(sum(classes), *sizes.shape, dtype=sizes.dtype, device=META),
            labels=torch.empty(sum(classes), dtype=torch.int64, device=META),
            class_names=tuple(map(str, range(len(sizes.classes)))),
            normalization=Normalization(mean=(0.0,) * channels, std=(1.0,) * channels, whitening=whitening),
            sizes=classes,
        )
        _ = store.class_index  # the real one is there before anything is counted
        return store

    @cached_property
    def class_index(self) -> ClassIndex:
        """Where images would stand."""
        order = torch.empty(len(self), dtype=torch.int64, device=META)
        starts = torch.empty(len(self.sizes), dtype=torch.int64, device=META)
        return ClassIndex(order=order, starts=starts, counts=starts, sizes=self.sizes)


def synthetic_images(config: RunConfig, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Synthetic images ``[R, C, M, D, H, W]`` without values."""
    return torch.empty(config.runs, len(sizes.classes), config.ipc, *sizes.shape, dtype=dtype, device=META)
