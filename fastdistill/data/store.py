"""Real images held on the device once, as bytes, and normalised batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastdistill.data.class_index import ClassIndex, class_index
from fastdistill.data.normalization import Normalization
from fastdistill.data.zca import whiten


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageStore:
    """Labelled images of one size, and how they become a student's input.

    Attributes:
        images: ``[n, D, H, W]``, uint8 (pixels 0 .. 255) or float32 (any unit).
        labels: int64 ``[n]`` in ``0 .. C - 1``, on the same device; a class may be empty.
        class_names: ``C`` names.
        normalization: statistics applied by `batch`; those of the training set for every split.

    Raises:
        ValueError: if shapes, dtypes, devices or labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    normalization: Normalization

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                "expected uint8 or float32 images [n, D, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}: build the store with from_arrays"
            )
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"expected int64 labels [{len(self.images)}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}: build the store with from_arrays"
            )
        if self.labels.device != self.images.device:
            raise ValueError(
                f"expected labels beside the images on {self.images.device}, got {self.labels.device}: move both"
            )
        if len(self.normalization.mean) != self.shape[0]:
            raise ValueError(
                f"expected as many normalisation values as the images have channels, {self.shape[0]}, "
                f"got {len(self.normalization.mean)}: use the statistics of this data set"
            )
        whitening = self.normalization.whitening
        if whitening is not None and whitening.mean.numel() != self.images.shape[1:].numel():
            raise ValueError(
                f"expected a ZCA of {self.images.shape[1:].numel()} values for images {list(self.shape)}, "
                f"got one of {whitening.mean.numel()}: fit it on this data set"
            )
        if len(self.labels) and (int(self.labels.min()) < 0 or int(self.labels.max()) >= self.num_classes):
            raise ValueError(
                f"expected labels of {self.num_classes} classes in 0 .. {self.num_classes - 1}, got "
                f"{int(self.labels.min())} .. {int(self.labels.max())}: renumber them or name every class"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """``C``."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D, H, W)`` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def unit(self) -> str:
        """``bytes``, which stand for 0 to 1, or ``floats`` in a unit of their own."""
        return "bytes" if self.images.dtype == torch.uint8 else "floats"

    @property
    def pixel_range(self) -> tuple[float, float]:
        """Lowest and highest pixel there can be: 0 and 1 of bytes, those that occur of floats."""
        if self.images.dtype == torch.uint8:
            return 0.0, 1.0
        return float(self.images.min()), float(self.images.max())

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    @cached_property
    def class_index(self) -> ClassIndex:
        """The images sorted by class, for `sampler.class_batches`."""
        return class_index(self.labels, self.num_classes)

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """Number of images of each class, ``C`` values."""
        return self.class_index.sizes

    def class_indices(self, label: int) -> Tensor:
        """The images of class `label`, ascending; int64."""
        return self.class_index.of_class(label)

    @cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        # kept on the device: sending these few numbers with every batch would make the host wait for the queue
        mean, std = (
            torch.tensor(values, dtype=torch.float64, device=self.device).view(-1, 1, 1)
            for values in (self.normalization.mean, self.normalization.std)
        )
        return mean, std

    def batch(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised images, ``(x - mean) / std`` per channel, or whitened ones.

        Whitening costs ``2 (D*H*W)²`` operations per image, about 6 % of the gradient of a 128-wide ConvNet-3 on 32x32
        colour images.

        Args:
            indices: which images, integers ``[...]``, on the store's device.
            dtype: of the result; a dtype narrower than float32 is rounded at the end.

        Returns:
            ``[..., D, H, W]``.
        """
        working = torch.float64 if dtype == torch.float64 else torch.float32
        divisor = 255 if self.images.dtype == torch.uint8 else 1
        mean, std = ((divisor * values).to(working) for values in self._mean_and_std)
        images = self.images.index_select(0, indices.flatten()).to(working).sub_(mean).div_(std)
        if self.normalization.whitening is not None:
            images = whiten(images, self.normalization.whitening)
        return images.to(dtype).view(*indices.shape, *self.shape)

    def subset(self, indices: Tensor) -> ImageStore:
        """The chosen images, int64 ``[m]``, with the same classes and normalisation."""
        return ImageStore(
            images=self.images[indices],
            labels=self.labels[indices],
            class_names=self.class_names,
            normalization=self.normalization,
        )

    def to(self, device: torch.device | str) -> ImageStore:
        """The same store on `device`."""
        return ImageStore(
            images=self.images.to(device),
            labels=self.labels.to(device),
            class_names=self.class_names,
            normalization=self.normalization.to(device),
        )
