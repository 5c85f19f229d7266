"""Labels of distilled images: a class for every image, or soft rows, which every run may have learned for itself.

Hard labels are int64 ``[N]``. Soft ones are floating rows ``[N, C]``, shared by all runs, or ``[R, N, C]``; a row may
have any sum, and a student's loss on it is ``−Σ_c y_c log p_c``.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # narrower ones lack most operations


def check_labels(labels: Tensor, *, runs: int, images: int, classes: int) -> None:
    """Refuses labels that do not belong to the images of all runs.

    Args:
        labels: see the module.
        runs: ``R``.
        images: ``N``.
        classes: ``C``.

    Raises:
        ValueError: for another shape or dtype, classes that there are not, or soft entries that are not finite or below
            0, which would reward a student for being wrong.
    """
    fitting = ((images,), (images, classes), (runs, images, classes))
    if 0 in labels.shape or tuple(labels.shape) not in fitting:
        raise ValueError(
            f"expected labels [{images}], or soft ones [{images}, {classes}] or [{runs}, {images}, {classes}], got "
            f"{tuple(labels.shape)}: give every image one label"
        )
    if labels.ndim == 1:
        if labels.dtype != torch.int64 or bool(((labels < 0) | (labels >= classes)).any()):
            whole = labels.dtype == torch.int64
            found = f"{int(labels.min())} to {int(labels.max())}" if whole else str(labels.dtype)
            raise ValueError(
                f"expected int64 labels in 0 to {classes - 1}, got {found}: number the classes from 0 and name each"
            )
        return
    if labels.dtype not in FLOATS:
        raise ValueError(f"expected soft labels as floats of 16, 32 or 64 bits, got {labels.dtype}: convert them first")
    finite = labels.isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"expected finite soft labels, got NaN or infinity in {int((~finite).any(-1).sum())} of "
            f"{labels[..., 0].numel()} rows: take those of a run that did not diverge"
        )
    if bool((labels < 0).any()):
        raise ValueError(f"expected soft labels of at least 0, got {float(labels.min()):.4g}: clip them at 0")


def image_classes(labels: Tensor) -> Tensor:
    """The class that every image stands for, int64 ``[N]``.

    Those with soft labels stand in the order of the classes, equally many of each, as runs leave them: learned rows
    need not have their largest entry there.
    """
    if labels.ndim == 1:
        return labels
    images, classes = labels.shape[-2:]
    return torch.arange(images, device=labels.device) * classes // images
