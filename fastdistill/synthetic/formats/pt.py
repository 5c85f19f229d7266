"""The tensor files that the field's own programs load, all with ``torch.load(path, weights_only=True)``.

    images.pt, labels.pt   float32 [N, D, H, W], normalised, and int64 [N]; of the first run (DD-Ranking, MTT)
    lr.pt                  where the images have steps of their own: the rate where all are equal, else one per step
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
    labels = distilled.labels.cpu().clone()
    # clones, because torch.save writes a view with the whole storage behind it
    runs = [images.float().cpu().clone() for images in distilled.images]
    torch.save(runs[0], folder / "images.pt")
    torch.save(labels, folder / "labels.pt")
    if distilled.schedule is not None:
        rates = distilled.schedule.rates.cpu()
        first = rates if rates.ndim == 1 else rates[0]
        torch.save((first[0] if bool((first == first[0]).all()) else first).clone(), folder / "lr.pt")
    pairs = [[images, labels] for images in runs]
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
        images, labels = stacked_pairs(read_tensors(files[0]))
        if tuple(images.shape) != beside.shape or images.dtype != torch.float32:
            raise ValueError(f"{files[0].name} holds {images.dtype} images {tuple(images.shape)}, not {beside.shape}")
        return Distilled(images=images, labels=labels, **beside.fields)
    except DAMAGE as error:
        raise damaged(folder, error) from error


def stacked_pairs(content: Any) -> tuple[Tensor, Tensor]:
    """Images ``[R, N, D, H, W]`` and labels ``[N]`` of the pairs under ``data``.

    Raises:
        ValueError: when there are none, or their shapes or labels differ.
        LookupError, TypeError: when the content has another structure.
    """
    pairs = of_kind(list, of_kind(dict, content)["data"])
    images = [plain_tensor(pair[0], "images") for pair in pairs]
    labels = [plain_tensor(pair[1], "labels") for pair in pairs]
    if not pairs or any(other.shape != images[0].shape or other.dtype != images[0].dtype for other in images):
        raise ValueError("expected images of one shape in every run, got several or none: split the file")
    # one storage named a million times would become a million copies
    storages = {image.untyped_storage().data_ptr(): image.untyped_storage().nbytes() for image in images}
    if sum(image.numel() * image.element_size() for image in images) > sum(storages.values()):
        raise ValueError("expected images of their own in every run, got shared ones: save a tensor for each")
    if any(not torch.equal(other, labels[0]) for other in labels):
        raise ValueError("expected the same labels in every run, got several: split the file")
    return torch.stack(images), labels[0].contiguous()


def _setting(distilled: Distilled) -> str:
    """The data set and the number of images, as the field's file names have them."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(distilled.dataset).name).strip("-")[:40] or "own"
    per_class = torch.bincount(distilled.labels.cpu(), minlength=len(distilled.class_names))
    same = bool((per_class == per_class[0]).all())
    return f"{name}_{int(per_class[0])}ipc" if same else f"{name}_{len(distilled)}images"
