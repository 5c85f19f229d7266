"""Own data behind a data set object, torchvision's or any other that can be indexed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy.typing as npt
from PIL import Image

from fastdistill.data.arrays import as_tensor, from_arrays
from fastdistill.data.causes import cause_of
from fastdistill.data.normalization import Normalization
from fastdistill.data.pictures import picture_array, stack_pictures
from fastdistill.data.store import ImageStore


class IndexableDataset(Protocol):
    """What `from_dataset` needs: a length, and an (image, label) pair at every index."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """The pair at `index`."""


def from_dataset(
    dataset: IndexableDataset,
    *,
    class_names: Sequence[str] | None = None,
    normalization: Normalization | None = None,
) -> ImageStore:
    """A store of every (image, label) pair of a data set object, each read once.

    Args:
        dataset: has a length and gives (image, label) at an index; an image is a Pillow picture, a tensor or an array,
            ``[H, W]``, ``[H, W, D]`` or ``[D, H, W]``. Random transforms are frozen at their first draw.
        class_names: ``C`` names; if not given the data set's own `classes`, else the numbers as text.
        normalization: as in `from_arrays`.

    Raises:
        ValueError: if it cannot be indexed, an item is no pair, or images and labels do not fit.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"expected a data set with a length and an (image, label) pair at every index, got "
            f"{type(dataset).__name__}: collect its images and labels and use from_arrays"
        )
    labels: list[int] = []

    def pictures() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for position in range(len(dataset)):
            try:
                image, label = dataset[position]
                labels.append(operator.index(label))
                is_picture = isinstance(image, Image.Image)
                array = picture_array(image) if is_picture else as_tensor(image, "an image").cpu().numpy()
            except (TypeError, ValueError, OSError) as error:
                raise ValueError(
                    f"expected an image and an integer label, got item {position} of the data set "
                    f"({cause_of(error)}): wrap the data set so that it gives such pairs"
                ) from error
            yield f"image {position}", array[None] if array.ndim == 2 else array

    images = stack_pictures(pictures())
    own_names = getattr(dataset, "classes", None)
    return from_arrays(images, labels, class_names=class_names or own_names, normalization=normalization)
