"""The tensor files that the field's own programs load, all with ``torch.load(path, weights_only=True)``.

    images.pt, labels.pt   float32 [N, D, H, W], normalised, and int64 [N], or soft rows [N, C]; of the first run
                           (DD-Ranking, MTT)
    lr.pt                  where the images have steps of their own: the rate where all are equal, else one per step;
                           else the learning rate that they were learned with, if any; of the first run (MTT)
    res_*.pt               {"data": [[images, labels], …], "accs_all_exps": {}}, one pair per run (DC, DSA, DM)
    distilled.json, statistics.safetensors, README.md

The images are exact. ``res_*.pt`` is what `read` reads, since it holds all runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill.synthetic.description import DAMAGE, of_kind
from fastdistill.synthetic.distilled import Distilled
from fastdistill.synthetic.formats.folder import damaged, read_beside, write_beside
from fastdistill.synthetic.formats.tensor_file import plain_tensor, read_tensors


def write(distilled: Distilled, folder: Path, card: str) -> None:
    """Writes the tensor files.

    Args:
        distilled: the images.
        folder: an empty folder.
        card: text of the card.
    """
    # clones, because torch.save writes a view with the whole storage behind it
    runs = [images.float().cpu().clone() for images in distilled.images]
    own = distilled.labels.cpu().clone()
    labels = [rows.clone() for rows in own] if own.ndim == 3 else [own] * len(runs)
    torch.save(runs[0], folder / "images.pt")
    torch.save(labels[0], folder / "labels.pt")
    if distilled.schedule is not None:
        rates = distilled.schedule.rates.cpu()
        first = rates if rates.ndim == 1 else rates[0]
        torch.save((first[0] if bool((first == first[0]).all()) else first).clone(), folder / "lr.pt")
    elif distilled.learning_rate is not None:
        torch.save(distilled.learning_rate.cpu()[0].clone(), folder / "lr.pt")
    pairs = [list(pair) for pair in zip(runs, labels, strict=True)]
    torch.save({"data": pairs, "accs_all_exps": {}}, folder / f"res_fastdistill_{_setting(distilled)}.pt")
    write_beside(distilled, folder, "pt", card)


def read(folder: Path) -> Distilled:
    """Reads what `write` wrote, exactly.

    Raises:
        ValueError: when anything is missing, damaged or of another shape.
    """
    beside = read_beside(folder)
    try:
        files = sorted(folder.glob("res_*.pt"))
        if len(files) != 1:
            raise ValueError(f"it has {len(files)} files res_*.pt")
        own_labels = beside.soft is not None and beside.soft.own
        images, labels = stacked_pairs(read_tensors(files[0]), own_labels=own_labels)
        if tuple(images.shape) != beside.shape or images.dtype != torch.float32:
            raise ValueError(f"{files[0].name} holds {images.dtype} images {tuple(images.shape)}, not {beside.shape}")
        return Distilled(images=images, labels=labels, **beside.fields)
    except DAMAGE as error:
        raise damaged(folder, error) from error


def stacked_pairs(content: Any, *, own_labels: bool = False) -> tuple[Tensor, Tensor]:
    """Images ``[R, N, D, H, W]`` and labels ``[N]`` or ``[N, C]`` of the pairs under ``data``.

    Args:
        content: what the file holds.
        own_labels: every run has rows of its own: the labels are ``[R, N, C]`` then.

    Raises:
        ValueError: when there are none, or their shapes or labels differ.
        LookupError, TypeError: when the content has another structure.
    """
    pairs = of_kind(list, of_kind(dict, content)["data"])
    images = _stacked([plain_tensor(pair[0], "images") for pair in pairs], "images")
    labels = [plain_tensor(pair[1], "labels") for pair in pairs]
    if own_labels:
        return images, _stacked(labels, "labels")
    if any(not torch.equal(other, labels[0]) for other in labels[1:]):
        raise ValueError("expected the same labels in every run, got several: split the file")
    return images, labels[0].contiguous()


def _stacked(tensors: list[Tensor], name: str) -> Tensor:
    if not tensors or any(other.shape != tensors[0].shape or other.dtype != tensors[0].dtype for other in tensors):
        raise ValueError(f"expected {name} of one shape in every run, got several or none: split the file")
    # one storage named a million times would become a million copies
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > sum(storages.values()):
        raise ValueError(f"expected {name} of their own in every run, got shared ones: save a tensor for each")
    return torch.stack(tensors)


def _setting(distilled: Distilled) -> str:
    """The data set and the number of images, as the field's file names have them."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(distilled.dataset).name).strip("-")[:40] or "own"
    per_class = torch.bincount(distilled.classes.cpu(), minlength=len(distilled.class_names))
    same = bool((per_class == per_class[0]).all())
    return f"{name}_{int(per_class[0])}ipc" if same else f"{name}_{len(distilled)}images"
