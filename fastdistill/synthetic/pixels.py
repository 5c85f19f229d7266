"""Synthetic images learned pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill.data.sampler import class_batches
from fastdistill.data.store import ImageStore
from fastdistill.draws import Purpose, normal, uniform


def initial_pixels(store: ImageStore, kind: str, *, ipc: int, runs: int, seed: int, dtype: torch.dtype) -> Tensor:
    """The images a run starts from, keyed by run.

    Args:
        store: the training images; gives shape, classes and, for ``real``, the images.
        kind: ``noise`` (standard normal in normalised space), ``unit`` (the same, every image scaled to length 1),
            ``uniform`` (in [0, 1) in normalised space) or ``real`` (drawn without replacement).
        ipc: ``M``.
        runs: ``R``.
        seed: of the draws.
        dtype: of the result.

    Returns:
        ``φ [R, C, M, D, H, W]``.

    Raises:
        ValueError: for ``real`` with more images per class than the smallest class has.
    """
    indices = torch.arange(runs, device=store.device)
    shape = (runs, store.num_classes, ipc, *store.shape)
    count = torch.Size(shape[1:]).numel()
    if kind == "uniform":
        return uniform(seed, Purpose.PIXELS, 0, indices, count).view(shape).to(dtype)
    if kind in ("noise", "unit"):
        noise = normal(seed, Purpose.PIXELS, 0, indices, count).view(shape).to(dtype)
        return noise if kind == "noise" else noise / torch.linalg.vector_norm(noise, dim=(-3, -2, -1), keepdim=True)
    if min(store.class_sizes) < ipc:
        raise ValueError(
            f"expected at least {ipc} training images in every class to start from real ones, got "
            f"{min(store.class_sizes)} in class {store.class_sizes.index(min(store.class_sizes))}: lower ipc or start "
            "from noise"
        )
    chosen = class_batches(store.class_index, seed=seed, step=0, students=indices, batch=ipc, purpose=Purpose.PIXELS)
    return store.batch(chosen, dtype)
