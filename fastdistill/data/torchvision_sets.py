"""The published data sets, in torchvision's folder layout."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastdistill.data.arrays import ArrayLike, RawData
from fastdistill.data.causes import cause_of
from fastdistill.data.idx import read_idx
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
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# the sets in IDX files, and their classes under torchvision's names
IDX_CLASSES = {"mnist": tuple(f"{number} - {word}" for number, word in enumerate(DIGITS)), "fashionmnist": GARMENTS}


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
    """Reads one of the sets in `NORMALIZATIONS`.

    torchvision reads SVHN and CIFAR, whose files it compares with their published md5 before it opens them; CIFAR's
    are pickles.

    Args:
        name: key of `NORMALIZATIONS`.
        root: folder that holds, or is to hold, the files.
        download: whether torchvision may fetch missing files.

    Raises:
        ValueError: if files are missing or damaged, or cannot be fetched.
    """
    try:
        if name in IDX_CLASSES:
            train, test = _read_idx_files(name, root, download=download)
            class_names = IDX_CLASSES[name]
        else:
            train, test, class_names = _read_checked_files(name, root, download=download)
    except (OSError, ValueError) as error:
        advice = "check the connection and the folder" if download else "fetch them with --data.download true"
        raise ValueError(
            f"expected the {name} files in torchvision's layout under {root.absolute()}, got files that are missing or "
            f"cannot be read ({cause_of(error)}): {advice}"
        ) from error
    return RawData(train=train, test=test, class_names=class_names, normalization=NORMALIZATIONS[name])


Side = tuple[ArrayLike, ArrayLike]


def _read_idx_files(name: str, root: Path, *, download: bool) -> list[Side]:
    folder = root / CLASSES[name] / "raw"
    sides = [(folder / f"{side}-images-idx3-ubyte", folder / f"{side}-labels-idx1-ubyte") for side in ("train", "t10k")]
    if download and not all(path.is_file() for side in sides for path in side):
        _make(name, root, download=True)
    return [(read_idx(images, 3), read_idx(labels, 1)) for images, labels in sides]


def _read_checked_files(name: str, root: Path, *, download: bool) -> tuple[Side, Side, tuple[str, ...]]:
    splits = [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}, {"train": False}]
    targets = "labels" if name == "svhn" else "targets"
    train, test = (_make(name, root, download=download, **split) for split in splits)
    class_names = tuple(getattr(train, "classes", map(str, range(10))))
    return (train.data, getattr(train, targets)), (test.data, getattr(test, targets)), class_names


def _make(name: str, root: Path, **options: Any) -> Any:
    dataset_class = getattr(torchvision_datasets(), CLASSES[name])
    try:
        return dataset_class(str(root), **options)
    except Exception as error:  # missing, truncated and unreachable files raise different types in every reader
        raise ValueError(cause_of(error)) from error
