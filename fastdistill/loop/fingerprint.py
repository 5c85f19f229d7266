"""What tells real images from others: a run that goes on must go on with the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fastdistill.data.sources import RealData
from fastdistill.data.split import stratified_split


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


def seen_hash(data: RealData, fraction: float, seed: int) -> str:
    """The hash of what training on a data set sees when a share of every class is held out.

    Equal for experts and for a distillation that may start from them. It leaves out the whitening, which follows from
    the images but has other last bits on another machine.

    Args:
        data: the data set, on the CPU.
        fraction: share of every class that is held out, as `stratified_split` takes it.
        seed: of the split.
    """
    kept, _ = stratified_split(data.train.labels, fraction, seed)
    seen = data.train.subset(kept)
    return data_hash(replace(data, train=replace(seen, normalization=replace(seen.normalization, whitening=None))))
