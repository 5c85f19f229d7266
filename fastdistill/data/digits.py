"""The 8x8 handwritten digits that come with scikit-learn: a real data set that needs no file."""

from __future__ import annotations

import numpy as np
import torch

from fastdistill.data.arrays import RawData
from fastdistill.data.split import TEST_SPLIT_SEED, stratified_split
from fastdistill.draws import Purpose

TEST_FRACTION = 0.2


def read_digits() -> RawData:
    """1797 grey images of the ten digits, 80 % for training and 20 % of every class for testing.

    The values 0 .. 16 become ``round(255/16 x)``. The set has no test images of its own (those of the UCI repository
    are these 1797); the split is `stratified_split` with seed `TEST_SPLIT_SEED`, the same in every run.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target
    parts = stratified_split(torch.as_tensor(labels), TEST_FRACTION, TEST_SPLIT_SEED, purpose=Purpose.TEST_SPLIT)
    train, test = (part.numpy() for part in parts)
    return RawData(
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        class_names=tuple(map(str, range(10))),
    )
