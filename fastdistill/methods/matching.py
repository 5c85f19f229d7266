"""Gradient matching (DC, Zhao et al. 2021; DSA, Zhao and Bilen 2021).

For every student and group (a class, or all classes pooled) the gradient of the synthetic images is pulled towards
that of real ones. With ``v = ∂D(g_syn, g_real)/∂g_syn`` the image gradient is ``∂D/∂x = K v``: one value pass over the
real images, one over the synthetic ones, and one forward-over-reverse pass over the synthetic ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastdistill.derivatives.functional import Buffers, Functional
from fastdistill_kernels import RowTable, match


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and labels of every (student, class) pair.

    Attributes:
        images: ``[K, C, n, D, H, W]``, or ``[C, n, D, H, W]`` shared by all students.
        labels: ``[K, C, n]`` or ``[C, n]`` (int64), or soft rows with a last axis ``C``.
    """

    images: Tensor
    labels: Tensor

    def pooled(self) -> Batch:
        """All classes as one group."""
        images, labels = self.images, self.labels
        axis = images.ndim - 5
        label_axis = labels.ndim - (3 if labels.is_floating_point() else 2)
        return Batch(
            images=images.flatten(axis, axis + 1).unsqueeze(axis),
            labels=labels.flatten(label_axis, label_axis + 1).unsqueeze(label_axis),
        )


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What is matched.

    Attributes:
        distance: one of ``fastdistill_kernels.DISTANCES``.
        table: the rows of the student's tensors that take part.
        per_class: match class by class (``G = C``) rather than pooled (``G = 1``).
    """

    distance: str
    table: RowTable
    per_class: bool = True


def matching_cotangent(
    real_primitive: Functional,
    synthetic_primitive: Functional,
    weights: Tensor,
    buffers: Buffers,
    real: Batch,
    synthetic: Batch,
    matching: Matching,
) -> tuple[Tensor, Tensor]:
    """Matching loss of every student and its derivative in that student's synthetic images.

    Args:
        real_primitive: the student's derivative, planned for the real batch.
        synthetic_primitive: the same for the synthetic batch.
        weights: ``[K, P]``.
        buffers: name to ``[K, ...]``, frozen for the match.
        real: real images of every (student, class) pair, ``B`` each.
        synthetic: synthetic images as the student sees them, ``M`` each.
        matching: what is matched.

    Returns:
        The loss ``[K]``, summed over groups, and the cotangent ``[K, C, M, D, H, W]`` of each student's own loss.
    """
    shape = synthetic.images.shape[-5:]
    if not matching.per_class:
        real, synthetic = real.pooled(), synthetic.pooled()
    target = real_primitive.value_and_gradient(weights, buffers, real.images, real.labels).gradient
    gradient = synthetic_primitive.value_and_gradient(weights, buffers, synthetic.images, synthetic.labels).gradient
    distance, vector = match(gradient, target, matching.table, matching.distance)
    products = synthetic_primitive.products(
        weights, buffers, synthetic.images, synthetic.labels, vector, wanted=("images",)
    )
    assert products.images is not None
    return distance.sum(1), products.images.reshape(weights.shape[0], *shape)
