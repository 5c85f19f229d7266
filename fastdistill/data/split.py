"""Stratified splits: the same share of every class is held out."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill.data.class_index import class_index
from fastdistill.draws import Purpose, uniform

TEST_SPLIT_SEED = 0  # a data set without test images gets the same ones in every run, whatever the run's seed


def stratified_split(
    labels: Tensor, fraction: float, seed: int, *, purpose: Purpose = Purpose.VALIDATION_SPLIT
) -> tuple[Tensor, Tensor]:
    """Holds out a share of every class.

    Of a class with m images ``round(fraction * m)`` are held out, but at least one stays for training. The images are
    chosen by keyed draws, made on the CPU, so the split is the same on every device.

    Args:
        labels: int64 ``[n]``, classes ``0 .. C - 1``.
        fraction: share held out, in ``[0, 1)``; 0 holds out nothing.
        seed: the run's seed.
        purpose: stream of the draws.

    Returns:
        Training and held-out indices, each ascending int64, on the device of `labels`.

    Raises:
        ValueError: if `fraction` is outside ``[0, 1)``.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"expected a fraction in [0, 1), got {fraction}: 0.1 holds out a tenth of every class")
    host = labels.cpu()
    keys = uniform(seed, purpose, 0, torch.zeros(1, dtype=torch.int64), len(host))[0]
    shuffled = torch.argsort(keys, stable=True)
    by_class = class_index(host[shuffled], int(host.max()) + 1 if len(host) else 0)
    held_out = torch.zeros(len(host), dtype=torch.bool)
    for label, size in enumerate(by_class.sizes):
        count = min(round(fraction * size), size - 1)
        held_out[shuffled[by_class.of_class(label)[: max(count, 0)]]] = True
    training, validation = ((held_out == side).nonzero().flatten() for side in (False, True))
    return training.to(labels.device), validation.to(labels.device)
