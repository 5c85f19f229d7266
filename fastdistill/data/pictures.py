"""From decoded pictures to one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def picture_array(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The bytes of a Pillow picture: ``[1, H, W]`` for modes L and 1, else RGB ``[3, H, W]``.

    Raises:
        ValueError: if a pixel has more than 8 bits per channel, which RGB would clip.
    """
    if picture.mode[0] in "IF":
        raise ValueError(
            f"expected a picture of 8 bits per channel, got Pillow mode {picture.mode}: convert it to 8 bits, or pass "
            "an array of floats"
        )
    pixels = np.asarray(picture.convert("L" if picture.mode in ("L", "1") else "RGB"))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def stack_pictures(pictures: Iterable[tuple[str, npt.NDArray[Any]]]) -> npt.NDArray[Any]:
    """Stacks named pictures of one size; grey ones become RGB if any is RGB.

    Args:
        pictures: names, for messages, and arrays: ``[1, H, W]`` beside ``[3, H, W]``, or all of one shape.

    Returns:
        ``[n, ...]`` of the pictures' shape and dtype.

    Raises:
        ValueError: if there is no picture, or two differ in size.
    """
    arrays: list[npt.NDArray[Any]] = []
    first = ""
    for name, array in pictures:
        first = first or name
        if arrays and _size(array) != _size(arrays[0]):
            raise ValueError(
                f"expected images of one size, got {first} of {_size(arrays[0])} and {name} of {_size(array)}: resize "
                "them to one size first"
            )
        arrays.append(array)
    if not arrays:
        raise ValueError("expected at least one image, got none: give images")
    widest = max((array.shape for array in arrays), key=lambda shape: shape[0])
    return np.stack([np.broadcast_to(array, widest) for array in arrays])


def _size(array: npt.NDArray[Any]) -> tuple[int, ...]:
    # a grey and an RGB picture of one size may stand together
    return array.shape[1:] if array.ndim == 3 and array.shape[0] in (1, 3) else array.shape
