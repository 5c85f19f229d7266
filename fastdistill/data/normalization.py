"""What turns stored pixels into a student's input: per-channel mean and standard deviation, or ZCA."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.data.zca import Whitening, fit_zca, unwhiten


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalization:
    """Statistics of the training images, to be kept with everything distilled from them.

    Attributes:
        mean: per channel, ``D`` values; of pixels in [0, 1] for uint8 images, in their own unit for float images.
        std: per channel, ``D`` positive values, same unit.
        whitening: if given, images are whitened and `mean` and `std` are 0 and 1.

    Raises:
        ValueError: if the lengths differ, a value is not finite, a `std` is not positive, or ZCA comes with statistics.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not self.mean or len(self.mean) != len(self.std) or not finite or min(self.std) <= 0:
            raise ValueError(
                "expected one finite mean and one positive finite std per channel, got mean "
                f"{self.mean} and std {self.std}: give as many of each as the images have channels"
            )
        if self.whitening is not None and (any(self.mean) or any(value != 1 for value in self.std)):
            raise ValueError(
                f"expected mean 0 and std 1 beside ZCA, which replaces them, got mean {self.mean} and std {self.std}: "
                "use these, or drop the whitening"
            )

    def to(self, device: torch.device | str) -> Normalization:
        """The same normalisation with the whitening, if any, on `device`."""
        whitening = None if self.whitening is None else self.whitening.to(device)
        return Normalization(mean=self.mean, std=self.std, whitening=whitening)

    def invert(self, images: Tensor) -> Tensor:
        """Pixels of normalised images, differentiable and unclamped.

        Args:
            images: normalised float images ``[..., D, H, W]``.

        Returns:
            Same shape and dtype: pixels in [0, 1] for uint8 data, the data's own unit for float data.
        """
        if self.whitening is not None:
            return unwhiten(images, self.whitening)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return images * std + mean


def channel_normalization(images: Tensor) -> Normalization:
    """Population mean and standard deviation of every channel, in float64.

    A constant channel gets a standard deviation of 1, so it becomes 0 instead of a division by zero; so does one whose
    standard deviation no normal float32 can hold. (`from_arrays` refuses images of which every channel is constant.)

    Args:
        images: training images ``[n, D, H, W]``, uint8 (statistics of pixels / 255) or float32, n >= 1.

    Raises:
        ValueError: if there is no image.
    """
    if len(images) == 0:
        raise ValueError("expected at least one training image to normalise by, got none: give one or the statistics")
    means, stds = [], []
    for channel in images.unbind(1):
        if images.dtype == torch.uint8:
            # counting the 256 values is exact and a tenth of the time of summing the pixels in float64
            weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
        else:
            values = channel.double().flatten()
            weights = torch.full_like(values, 1 / values.numel())
        mean = (weights * values).sum()
        constant = bool((channel == channel.flatten()[0]).all())
        std = float((weights * (values - mean).square()).sum().sqrt())
        means.append(float(mean))
        stds.append(1.0 if constant or std < torch.finfo(torch.float32).tiny else std)
    return Normalization(mean=tuple(means), std=tuple(stds))


def zca_normalization(images: Tensor) -> Normalization:
    """ZCA fitted on training images ``[n, D, H, W]``, in place of mean and standard deviation.

    Raises:
        ValueError: if there are fewer than two images.
    """
    channels = images.shape[1]
    return Normalization(mean=(0.0,) * channels, std=(1.0,) * channels, whitening=fit_zca(images))
