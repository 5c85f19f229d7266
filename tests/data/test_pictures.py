from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastdistill.data.pictures import picture_array, stack_pictures


def test_grey_modes_stay_grey_and_the_rest_becomes_rgb() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    grey = Image.fromarray(pixels)
    assert np.array_equal(picture_array(grey), pixels[None])
    assert np.array_equal(picture_array(grey.point(lambda v: 255 * (v > 100), mode="1")), 255 * (pixels[None] > 100))
    for mode in ("RGB", "RGBA", "LA", "P"):
        converted = picture_array(grey.convert(mode))
        assert np.array_equal(converted, np.stack([pixels] * 3))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deeper_pictures_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"8 bits per channel, got Pillow mode {mode}"):
        picture_array(Image.new(mode, (2, 2)))


def test_colour_channels_keep_their_places() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(picture_array(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


def test_grey_beside_rgb_becomes_rgb() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    colour = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    stacked = stack_pictures([("a", grey), ("b", colour), ("c", grey)])
    assert stacked.shape == (3, 3, 2, 3)
    assert all(np.array_equal(stacked[0, channel], grey[0]) for channel in range(3))
    assert np.array_equal(stacked[1], colour)
    assert stack_pictures([("a", grey), ("b", grey)]).shape == (2, 1, 2, 3)


def test_other_layouts_are_only_stacked() -> None:
    arrays = np.arange(48).reshape(2, 2, 4, 3)
    assert np.array_equal(stack_pictures([("a", arrays[0]), ("b", arrays[1])]), arrays)


def test_sizes_must_agree_and_the_culprit_is_named() -> None:
    with pytest.raises(ValueError, match=r"a of \(2, 3\) and c of \(3, 2\)"):
        stack_pictures([("a", np.zeros((1, 2, 3))), ("b", np.zeros((3, 2, 3))), ("c", np.zeros((1, 3, 2)))])
    with pytest.raises(ValueError, match=r"a of \(8, 8, 3\) and b of \(8, 8, 4\)"):
        stack_pictures([("a", np.zeros((8, 8, 3))), ("b", np.zeros((8, 8, 4)))])
    with pytest.raises(ValueError, match="at least one image, got none"):
        stack_pictures([])
