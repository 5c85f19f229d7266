from __future__ import annotations

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from fastdistill.data.digits import read_digits

GOLDEN_TEST_IMAGES = "ba2409ea5b6a0be0"


def test_digits_are_split_once_and_for_all_and_keep_every_image() -> None:
    raw = read_digits()
    assert raw.test is not None
    (train, train_labels), (test, test_labels) = raw.train, raw.test
    assert isinstance(train, np.ndarray) and isinstance(test, np.ndarray)
    bunch = load_digits()
    originals = sorted((image * 255 / 16).round().tobytes() for image in bunch.images)
    assert sorted(image.astype(np.float64).tobytes() for image in np.concatenate([train, test])) == originals
    assert train.dtype == np.uint8
    assert (int(train.min()), int(train.max())) == (0, 255)
    counts = np.bincount(bunch.target)
    assert np.bincount(test_labels).tolist() == [round(0.2 * count) for count in counts]
    assert (np.bincount(train_labels) + np.bincount(test_labels)).tolist() == counts.tolist()
    again = read_digits()
    assert np.array_equal(again.train[0], train)
    # part of the contract: published figures hold for these test images only
    assert hashlib.sha256(test.tobytes()).hexdigest()[:16] == GOLDEN_TEST_IMAGES
