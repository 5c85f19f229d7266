"""The student's derivative, batched for the shapes that a method takes it at."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.derivatives.functional import Functional


@dataclass(frozen=True, kw_only=True)
class Primitives:
    """One primitive for each of three shapes.

    Attributes:
        real: for real images.
        synthetic: for synthetic images.
        training: for the students' training between outer steps.
    """

    real: Functional
    synthetic: Functional
    training: Functional
