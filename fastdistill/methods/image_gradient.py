"""What a step's students say about the synthetic images: every method's answer to the outer loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImageGradient:
    """Gradient in the images, with what it was averaged from.

    Attributes:
        gradient: mean over every run's finite students, shaped as the images ``[R, C, M, D, H, W]``; zero for a run
            without any.
        loss: of every student ``[R·S]``.
        finite: whether a student's loss and derivative are finite, bool ``[R·S]``; the others count for nothing.
    """

    gradient: Tensor
    loss: Tensor
    finite: Tensor
