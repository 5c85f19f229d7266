"""Random bytes in the place of a data set: time and memory of a step are the same, and nothing has to be downloaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastdistill.data.arrays import from_arrays
from fastdistill.data.normalization import zca_normalization
from fastdistill.data.sources import RealData

# (D, H, W), classes, training images and test images
SHAPES = {
    "digits": ((1, 8, 8), 10, 1438, 359),
    "mnist": ((1, 28, 28), 10, 60000, 10000),
    "fashionmnist": ((1, 28, 28), 10, 60000, 10000),
    "svhn": ((3, 32, 32), 10, 73257, 26032),
    "cifar10": ((3, 32, 32), 10, 50000, 10000),
    "cifar100": ((3, 32, 32), 100, 50000, 10000),
}


def random_data(source: str, *, zca: bool = False) -> RealData:
    """Random bytes in the shape and number of a data set, the same at every call.

    Args:
        source: one of `SHAPES`.
        zca: whiten them instead of normalising each channel, as `load_source`.

    Raises:
        ValueError: for a source whose shape is not known without reading it.
    """
    if source not in SHAPES:
        raise ValueError(
            f"expected a data set of known shape ({', '.join(SHAPES)}) to take random images for, got {source!r}: "
            "leave random images out, or name one of these as --data.source"
        )
    shape, classes, train, test = SHAPES[source]
    generator = torch.Generator().manual_seed(0)
    stores = []
    for count in (train, test):
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        stores.append(from_arrays(images, torch.arange(count) % classes))
    statistics = zca_normalization(stores[0].images) if zca else stores[0].normalization
    alike = [replace(store, normalization=statistics) for store in stores]
    return RealData(train=alike[0], test=alike[1], name=source)
