"""Own data: arrays, tensors and lists become a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdistill.data.causes import cause_of
from fastdistill.data.normalization import Normalization, channel_normalization
from fastdistill.data.store import ImageStore

ArrayLike = Tensor | npt.NDArray[Any] | Sequence[Any]
LARGEST = 1e37  # of a float image: differences of two stay finite in float32


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
        ValueError: if shape or dtype is another, a float is not finite or beyond `LARGEST`, or an integer is outside
            0 .. 255.
    """
    tensor = as_tensor(images, "images")
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.ndim == 4 and tensor.shape[3] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise ValueError(
            f"expected images of shape [n, H, W], [n, H, W, D] or [n, D, H, W], got {list(tensor.shape)}: reshape them"
        )
    if tensor.is_floating_point():
        floats = tensor.to(torch.float32).contiguous()
        lowest, highest = floats.flatten(1).aminmax(dim=1)
        broken = ~(torch.maximum(-lowest, highest) <= LARGEST)  # NaN compares as false
        if broken.any():
            raise ValueError(
                f"expected images of finite values, at most {LARGEST:g}, got others in {int(broken.sum())} of "
                f"{len(floats)}, first in image {int(broken.nonzero()[0])}: clean or drop these"
            )
        return floats
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise ValueError(f"expected images of integers 0 .. 255 or floats, got {tensor.dtype}: convert them to uint8")
    if tensor.dtype != torch.uint8 and tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) > 255):
        raise ValueError(
            f"expected integer images of values 0 .. 255, got {int(tensor.min())} .. {int(tensor.max())}: "
            "convert them to floats"
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
            f"expected {num_images} integer labels, one per image, got {tensor.dtype} {list(tensor.shape)}: "
            "give class numbers 0 .. C - 1"
        )
    return tensor.to(torch.int64)


def training_classes(labels: Tensor, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The class names of training labels: those given, or the numbers 0 .. C - 1 as text.

    Args:
        labels: int64 ``[n]``.
        class_names: ``C`` names, or none to take C from the labels.

    Raises:
        ValueError: if there is no label, one is outside 0 .. C - 1, a class has none, or there is only one class.
    """
    present = np.unique(labels.cpu().numpy()).tolist()
    if not present:
        raise ValueError("expected at least one training image per class, got no image: give images")
    num_classes = len(class_names) if class_names is not None else present[-1] + 1
    if present[0] < 0 or present[-1] >= num_classes:
        raise ValueError(
            f"expected labels of {num_classes} classes in 0 .. {num_classes - 1}, got {present[0]} .. {present[-1]}: "
            "renumber them or name every class"
        )
    if len(present) < num_classes:
        known = set(present)
        # a stray label of a billion must not make a list of a billion missing ones
        missing = [label for label in range(min(num_classes, len(present) + 5)) if label not in known][:5]
        raise ValueError(
            f"expected an image of every class of 0 .. {num_classes - 1}, got none of {num_classes - len(present)}, "
            f"first {missing}: renumber the labels without gaps"
        )
    if num_classes < 2:
        raise ValueError(
            "expected training images of at least 2 classes, got 1, which leaves nothing to tell apart: add images of "
            "another class"
        )
    return tuple(map(str, class_names if class_names is not None else range(num_classes)))


def refuse_constant(images: Tensor) -> None:
    """Refuses training images ``[n, D, H, W]`` of which every channel is one value throughout.

    Raises:
        ValueError: if they are; nothing can be learned from them.
    """
    first = images[0, :, :1, :1]
    # the first image settles nearly every data set
    if (images[0] == first).all() and (images == first).all():
        raise ValueError(
            f"expected training images that differ somewhere, got {len(images)} of the constant colour "
            f"{first.flatten().tolist()}: check how they were made"
        )


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
        ValueError: if images, labels or names do not fit, there are fewer than two classes, or the images are constant.
    """
    stored = image_tensor(images)
    classes = label_tensor(labels, len(stored)).to(stored.device)
    names = training_classes(classes, class_names)
    refuse_constant(stored)
    return ImageStore(
        images=stored,
        labels=classes,
        class_names=names,
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
            f"expected {name} as a tensor, an array or a list of numbers of equal shapes, "
            f"got {type(values).__name__} ({cause_of(error)}): convert to one array first"
        ) from error
