"""What tells real images from others: a run that goes on must go on with the same."""

from __future__ import annotations

import hashlib

from fastdistill.data.sources import RealData


def data_hash(data: RealData) -> str:
    """A short hash of all pixels, labels and statistics of a data set on the CPU; 0.2 s for CIFAR-10."""
    digest = hashlib.sha256()
    for store in (data.train, data.test):
        digest.update(f"{tuple(store.images.shape)} {store.images.dtype} {store.class_names}".encode())
        for tensor in (store.images, store.labels):
            digest.update(tensor.contiguous().numpy().data)
    statistics = data.train.normalization
    digest.update(f"{statistics.mean} {statistics.std}".encode())
    if statistics.whitening is not None:
        digest.update(statistics.whitening.matrix.contiguous().numpy().data)
    return digest.hexdigest()[:16]
