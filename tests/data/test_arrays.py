from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastdistill.data.arrays import from_arrays, image_tensor, label_tensor
from fastdistill.data.normalization import Normalization, channel_normalization

BYTES = np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
LABELS = [0, 1, 2] * 4


@pytest.mark.parametrize(
    "images",
    [
        BYTES,
        BYTES.astype(np.int32),
        BYTES.astype(">u2"),
        BYTES.tolist(),
        BYTES.transpose(0, 3, 1, 2),
        torch.from_numpy(BYTES),
        torch.from_numpy(BYTES).permute(0, 3, 1, 2),
        list(torch.from_numpy(BYTES)),
        list(BYTES),
        BYTES[::-1][::-1],
    ],
    ids=["uint8", "int32", "big-endian", "list", "channels-first", "tensor", "permuted", "tensors", "arrays", "view"],
)
def test_every_form_of_the_same_bytes_is_stored_alike(images: Any) -> None:
    stored = image_tensor(images)
    assert stored.dtype == torch.uint8
    assert stored.is_contiguous()
    assert np.array_equal(stored.numpy(), BYTES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ((7, 5, 6), (7, 1, 5, 6)),
        ((7, 5, 6, 1), (7, 1, 5, 6)),
        ((7, 5, 6, 4), (7, 4, 5, 6)),
        ((7, 2, 5, 6), (7, 2, 5, 6)),
        ((7, 1, 64, 1), (7, 1, 64, 1)),
    ],
)
def test_layouts(shape: tuple[int, ...], stored: tuple[int, ...]) -> None:
    assert image_tensor(np.zeros(shape, np.uint8)).shape == stored


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_kept_unscaled_in_float32(dtype: Any) -> None:
    values = (np.arange(24).reshape(2, 3, 4) * 12.5 - 100).astype(dtype)
    stored = image_tensor(values)
    assert stored.dtype == torch.float32
    assert np.array_equal(stored[:, 0].numpy(), values.astype(np.float32))


def test_the_store_owns_its_memory() -> None:
    images, labels = BYTES.copy(), np.array(LABELS)
    tensor = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).copy())
    stores = from_arrays(images, labels), from_arrays(tensor, torch.from_numpy(labels))
    images[:] = 0
    tensor[:] = 0
    labels[:] = 0
    for data in stores:
        assert np.array_equal(data.images.numpy(), BYTES.transpose(0, 3, 1, 2))
        assert data.labels.tolist() == LABELS


def test_read_only_arrays_are_taken() -> None:
    frozen = BYTES.copy()
    frozen.setflags(write=False)
    assert image_tensor(frozen).shape == (12, 3, 5, 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_images_that_are_not_finite_are_refused(value: float) -> None:
    images = np.zeros((5, 4, 4))
    images[3, 1, 1] = value
    with pytest.raises(ValueError, match="in 1 of 5, first in image 3"):
        image_tensor(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 4)), r"shape \[n, H, W\]"),
        (np.zeros((5, 0, 4)), r"shape \[n, H, W\]"),
        (np.zeros((2, 2, 2, 2, 2)), r"shape \[n, H, W\]"),
        (np.full((2, 3, 3), 256), r"0 \.\. 255, got 256 \.\. 256"),
        (np.full((2, 3, 3), -1), r"0 \.\. 255, got -1 \.\. -1"),
        (np.zeros((2, 3, 3), bool), "got torch.bool"),
        (np.zeros((2, 3, 3), np.complex64), "got torch.complex64"),
        (np.full((2, 3, 3), "x"), "a tensor, an array or a list of numbers"),
        ([[[1, 2]], [[1]]], "list of numbers of equal shapes"),
        ([torch.zeros(2, 2), torch.zeros(3, 3)], "list of numbers of equal shapes"),
        (None, "got NoneType"),
    ],
)
def test_impossible_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_tensor(images)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [[0], [1]], [0], [True, False], ["a", "b"]])
def test_impossible_labels_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"expected 2 integer labels|expected labels"):
        label_tensor(labels, 2)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 3], None, r"every class of 0 \.\. 3, got none of 1, first \[2\]"),
        ([1, 2, 3], None, r"first \[0\]"),
        ([0, 1, 10**12], None, r"got none of 999999999998, first \[2, 3, 4, 5, 6\]"),
        ([-1, 0, 1], None, r"got -1 \.\. 1"),
        ([0, 1, 2], ("a", "b"), r"0 \.\. 1, got 0 \.\. 2"),
        ([0, 1, 1], ("a", "b", "c"), r"first \[2\]"),
    ],
)
def test_labels_outside_or_with_gaps_are_refused(labels: list[int], names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(np.zeros((3, 4, 4), np.uint8), labels, class_names=names)


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="got no image"):
        from_arrays(np.zeros((0, 4, 4), np.uint8), np.zeros(0, np.int64))


def test_names_and_statistics_default_to_those_of_the_data() -> None:
    data = from_arrays(BYTES, LABELS)
    computed = channel_normalization(data.images)
    assert data.class_names == ("0", "1", "2")
    assert (data.normalization.mean, data.normalization.std) == (computed.mean, computed.std)
    flat = data.batch(torch.arange(12), torch.float64).transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 1e-13
    assert (flat.std(1, correction=0) - 1).abs().max() < 1e-13


def test_given_names_and_statistics_are_used() -> None:
    given = Normalization(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    data = from_arrays(BYTES, LABELS, class_names=["x", "y", "z"], normalization=given)
    assert data.class_names == ("x", "y", "z")
    assert data.normalization is given


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="expected training images of at least 2 classes, got 1"):
        from_arrays(BYTES, np.zeros(12, np.int64))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        from_arrays(BYTES, np.zeros(12, np.int64), class_names=["all"])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_constant_images_are_refused_and_a_constant_channel_becomes_zero(dtype: Any) -> None:
    images = np.broadcast_to(np.array([7, 0, 200], dtype), (12, 5, 6, 3)).copy()
    with pytest.raises(ValueError, match=r"got 12 of the constant colour \[7(\.0)?, 0(\.0)?, 200(\.0)?\]: check how"):
        from_arrays(images, LABELS)
    images[-1, -1, -1, 1] = 3  # one pixel of one channel of the last image
    batch = from_arrays(images, LABELS).batch(torch.arange(12))
    assert batch.isfinite().all()
    assert batch[:, [0, 2]].eq(0).all()
    assert batch[:, 1].std(correction=0) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 9e36])
def test_any_scale_of_floats_is_normalised_to_finite_values(scale: float) -> None:
    images = np.linspace(-scale, scale, 12 * 16, dtype=np.float32).reshape(12, 4, 4)
    assert from_arrays(images, LABELS).batch(torch.arange(12)).isfinite().all()


def test_equal_images_are_kept_and_stay_finite() -> None:
    data = from_arrays(np.repeat(BYTES[:1], 12, 0), LABELS)
    assert data.batch(torch.arange(12)).isfinite().all()


def test_class_names_become_text() -> None:
    assert from_arrays(BYTES, LABELS, class_names=[10, 20, 30]).class_names == ("10", "20", "30")  # type: ignore[list-item]
