"""Distilled images that other programs saved as ``.pt`` files.

These say nothing of the normalisation their images are in, and test images must get the same one, so whoever loads them
names it: nothing is assumed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastdistill.data.normalization import Normalization
from fastdistill.data.torchvision_sets import NORMALIZATIONS
from fastdistill.synthetic.description import DAMAGE, reason
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.formats.pt import stacked_pairs
from fastdistill.synthetic.formats.tensor_file import plain_tensor, read_tensors

PAIRS = (("images.pt", "labels.pt"), ("images_best.pt", "labels_best.pt"))
SUFFIXES = (".pt", ".pth")


def holds_tensor_files(folder: Path) -> bool:
    """Whether a folder has files that `read` can read."""
    return _pair(folder) is not None or any(folder.glob("res_*.pt"))


def read(path: Path, *, dataset: str | None, normalization: Normalization | None) -> Distilled:
    """Reads images and labels that another program saved.

    Args:
        path: a ``res_*.pt`` file with pairs of images and labels under ``data``, or a folder with ``images.pt`` and
            ``labels.pt`` (or ``images_best.pt`` and ``labels_best.pt``), or with one ``res_*.pt``. A learning rate
            beside them is left out: without the order of its steps it cannot be replayed.
        dataset: a torchvision set whose published statistics the images were normalised with; or any name, where
            ``normalization`` is given.
        normalization: what the images were normalised with.

    Returns:
        The images; classes are named by their numbers.

    Raises:
        ValueError: when the normalisation is not known or the files cannot be read.
    """
    known = normalization or NORMALIZATIONS.get(dataset or "")
    if known is None:
        raise ValueError(
            f"expected the data set or normalisation that the images in {path} were made with, got {dataset!r}, and "
            f"the files do not say: give load a dataset among {', '.join(NORMALIZATIONS)}, or a normalization"
        )
    try:
        images, labels = _tensors(path)
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"its labels are {labels.dtype} {tuple(labels.shape)}, not one class number per image")
        if not images.is_floating_point():
            raise ValueError(f"its images are {images.dtype}, not normalised floating-point numbers")
        classes = int(labels.max()) + 1 if len(labels) else 0
        if classes > len(labels):
            raise ValueError(f"its labels reach {classes - 1}, but there are {len(labels)} images")
        return Distilled(
            images=images.float(),
            labels=labels.long(),
            class_names=tuple(map(str, range(classes))),
            normalization=known,
            dataset=dataset or "own",
        )
    except DAMAGE as error:
        raise ValueError(
            f"expected images and hard labels that another program saved in {path}, got files that are damaged or of "
            f"another kind ({reason(error)}): correct the path, or save them again"
        ) from error


def _pair(folder: Path) -> tuple[Path, Path] | None:
    for images, labels in PAIRS:
        if (folder / images).is_file() and (folder / labels).is_file():
            return folder / images, folder / labels
    return None


def _tensors(path: Path) -> tuple[Tensor, Tensor]:
    """Images ``[R, N, D, H, W]`` and labels as they were saved."""
    if path.is_file():
        return stacked_pairs(read_tensors(path))
    if pair := _pair(path):
        images, labels = (plain_tensor(read_tensors(file), file.name) for file in pair)
        return images[None], labels
    files = sorted(path.glob("res_*.pt"))
    if len(files) != 1:
        raise ValueError(f"it has {len(files)} files res_*.pt, name one of them")
    return stacked_pairs(read_tensors(files[0]))
