"""The published data sets, read by torchvision."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastdistill.data.arrays import RawData
from fastdistill.data.normalization import Normalization

# per-channel statistics of the public gradient-matching code (Zhao et al., 2021), which most published results use
NORMALIZATIONS = {
    "mnist": Normalization(mean=(0.1307,), std=(0.3081,)),
    "fashionmnist": Normalization(mean=(0.2861,), std=(0.3530,)),
    "svhn": Normalization(mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
    "cifar10": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Normalization(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762)),
}
CLASSES = {
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def torchvision_datasets() -> ModuleType:
    """Imports ``torchvision.datasets``, also beside a torch build its compiled part was not made for.

    There the import stops at two detection operators nobody has declared; with their schemas declared, everything
    written in Python works.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _declare_detection_operators()
        import torchvision.datasets
    module: ModuleType = torchvision.datasets
    return module


@cache  # the cache keeps the library alive; its operators vanish with it
def _declare_detection_operators() -> Any:
    make_library: Any = torch.library.Library
    library = make_library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def read_torchvision(name: str, root: Path, *, download: bool) -> RawData:
    """Reads one of the sets in `NORMALIZATIONS`, in torchvision's own folder layout.

    Args:
        name: key of `NORMALIZATIONS`.
        root: folder that holds, or is to hold, the files.
        download: whether torchvision may fetch missing files.

    Raises:
        ValueError: if files are missing or damaged, or cannot be fetched.
    """
    dataset_class = getattr(torchvision_datasets(), CLASSES[name])
    splits = [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}, {"train": False}]
    try:
        train, test = (dataset_class(str(root), download=download, **split) for split in splits)
    except Exception as error:  # missing, truncated and unreachable files raise different types in every reader
        advice = "check the connection and the folder" if download else "fetch them with --data.download true"
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"Expected the {name} files in torchvision's layout under {root.absolute()}, but they are missing or "
            f"cannot be read ({cause}): {advice}."
        ) from error
    targets = "labels" if name == "svhn" else "targets"
    return RawData(
        train=(train.data, getattr(train, targets)),
        test=(test.data, getattr(test, targets)),
        class_names=tuple(getattr(train, "classes", map(str, range(10)))),
        normalization=NORMALIZATIONS[name],
    )
