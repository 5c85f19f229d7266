"""Own data: arrays, tensors and lists become a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdistill.data.normalization import Normalization, channel_normalization
from fastdistill.data.store import ImageStore

ArrayLike = Tensor | npt.NDArray[Any] | Sequence[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class RawData:
    """Images and labels as a source holds them, in any layout `from_arrays` takes, before they are checked and split.

    Attributes:
        train: training images and labels.
        test: test images and labels, or none where the source leaves the split to `load_source`.
        class_names: ``C`` names, or none where the labels' numbers are the names.
        normalization: published statistics, or none to compute them from the training images.
    """

    train: tuple[ArrayLike, ArrayLike]
    test: tuple[ArrayLike, ArrayLike] | None = None
    class_names: tuple[str, ...] | None = None
    normalization: Normalization | None = None


def image_tensor(images: ArrayLike) -> Tensor:
    """Copies images into the layout of a store.

    A last axis of 1, 3 or 4 is taken for channels, unless the second axis is 1, 3 or 4 as well.

    Args:
        images: ``[n, H, W]``, ``[n, H, W, D]`` with D in (1, 3, 4), or ``[n, D, H, W]``; integers 0 .. 255, or floats
            in any unit.

    Returns:
        ``[n, D, H, W]``; uint8 for integers, float32, unscaled, for floats.

    Raises:
        ValueError: if shape or dtype is another, a value is not finite, or an integer is outside 0 .. 255.
    """
    tensor = as_tensor(images, "images")
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.ndim == 4 and tensor.shape[3] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise ValueError(
            f"Images need shape [n, H, W], [n, H, W, D] or [n, D, H, W], got {list(tensor.shape)}: reshape them."
        )
    if tensor.is_floating_point():
        floats = tensor.to(torch.float32).contiguous()
        broken = ~floats.flatten(1).isfinite().all(1)
        if broken.any():
            raise ValueError(
                f"Images need finite values, got NaN or infinity in {int(broken.sum())} of {len(floats)}, "
                f"first in image {int(broken.nonzero()[0])}: clean or drop these."
            )
        return floats
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise ValueError(f"Images need integers 0 .. 255 or floats, got {tensor.dtype}: convert them to uint8.")
    if tensor.dtype != torch.uint8 and tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) > 255):
        raise ValueError(
            f"Integer images need values 0 .. 255, got {int(tensor.min())} .. {int(tensor.max())}: "
            "convert them to floats."
        )
    return tensor.to(torch.uint8).contiguous()


def label_tensor(labels: ArrayLike, num_images: int) -> Tensor:
    """Copies labels into an int64 tensor ``[n]``.

    Raises:
        ValueError: if they are not `num_images` integers in one row.
    """
    tensor = as_tensor(labels, "labels")
    integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if tensor.shape != (num_images,) or not integer:
        raise ValueError(
            f"Labels need to be {num_images} integers, one per image, got {tensor.dtype} {list(tensor.shape)}: "
            "give class numbers 0 .. C - 1."
        )
    return tensor.to(torch.int64)


def training_classes(labels: Tensor, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The class names of training labels: those given, or the numbers 0 .. C - 1 as text.

    Args:
        labels: int64 ``[n]``.
        class_names: ``C`` names, or none to take C from the labels.

    Raises:
        ValueError: if there is no label, one is outside 0 .. C - 1, or a class has none.
    """
    present = np.unique(labels.cpu().numpy()).tolist()
    if not present:
        raise ValueError("Training data needs at least one image per class, got no image: give images.")
    num_classes = len(class_names) if class_names is not None else present[-1] + 1
    if present[0] < 0 or present[-1] >= num_classes:
        raise ValueError(
            f"Labels of {num_classes} classes need to be 0 .. {num_classes - 1}, got {present[0]} .. {present[-1]}: "
            "renumber them or name every class."
        )
    if len(present) < num_classes:
        known = set(present)
        # a stray label of a billion must not make a list of a billion missing ones
        missing = [label for label in range(min(num_classes, len(present) + 5)) if label not in known][:5]
        raise ValueError(
            f"Labels need every class of 0 .. {num_classes - 1}, but {num_classes - len(present)} have no image, "
            f"first {missing}: renumber the labels without gaps."
        )
    return tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    normalization: Normalization | None = None,
) -> ImageStore:
    """A store of own training images.

    Args:
        images: see `image_tensor`.
        labels: ``n`` integers 0 .. C - 1, every class present.
        class_names: ``C`` names; the numbers as text if not given.
        normalization: statistics to use; those of these images, per channel, if not given.

    Raises:
        ValueError: if images, labels or names do not fit.
    """
    stored = image_tensor(images)
    classes = label_tensor(labels, len(stored)).to(stored.device)
    return ImageStore(
        images=stored,
        labels=classes,
        class_names=training_classes(classes, class_names),
        normalization=normalization or channel_normalization(stored),
    )


def as_tensor(values: ArrayLike, name: str) -> Tensor:
    """A copy of its own, so that a store never changes under the caller's hands."""
    if isinstance(values, Tensor):
        return values.detach().clone()
    try:
        if not isinstance(values, np.ndarray) and len(values) and isinstance(values[0], Tensor):
            return torch.stack(list(values)).detach()
        array = np.asarray(values)
        wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1
        # torch lacks arithmetic for wide unsigned integers, and foreign byte orders altogether
        dtype = np.dtype(np.int64) if wide else array.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected {name} as a tensor, an array or a list of numbers of equal shapes, "
            f"got {type(values).__name__} ({error}): convert to one array first."
        ) from error
