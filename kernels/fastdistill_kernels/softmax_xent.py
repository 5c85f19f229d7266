"""Softmax cross-entropy of every (student, group) pair with its derivatives, for hard and soft labels.

Logits ``z [S, G, n, C]``; hard labels are class indices ``[S, G, n]``, soft ones ``[S, G, n, C]`` with rows of any sum
``σ``, and their first two axes may be 1. With ``p = softmax(z)`` over classes and ``y`` the label's row:

- ``softmax_xent``: the loss ``−(1/n) Σ y log p`` ``[S, G]`` and its gradient ``(σ p − y)/n`` in the logits.
- ``dual_softmax_xent``: with a tangent ``ż`` of the logits and ``ℓ̇ = ż − ⟨p, ż⟩``, that of ``log p``, also the
  loss's tangent ``−(1/n) Σ y ℓ̇``, the gradient's ``σ p ℓ̇/n``, and the label product ``−ℓ̇/n``: the derivative in the
  labels of the loss's tangent (soft labels only).

Least traffic: logits (and tangent) and labels in, gradient (and tangent, and label product) out, once each, one launch
where a pair's rows are few. Operations a logit, all of them counted: 6 for hard labels and 11 for soft ones, 10 and 18
in the dual.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_shape, refuse_derivatives
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import softmax_xent as reference

# Per logit: maximum, difference, exponential, sum, p scaled, y taken off; soft labels need their sum, log p, its
# product and sum, and y scaled. The dual adds ⟨p, ż⟩'s product and sum, ℓ̇ and p ℓ̇; with soft labels a product and sum
# for the loss's tangent, and ℓ̇ scaled.
_FLOPS = {(False, False): 6, (True, False): 11, (False, True): 10, (True, True): 18}
_INDEX_BYTES = 8


def cost_softmax_xent(shape: Sequence[int], labels: Sequence[int], itemsize: int, *, dual: bool) -> Cost:
    """Of one call; the labels' shape counts every distinct one once, and has a class axis for soft labels.

    Args:
        shape: of the logits.
        labels: shape of the labels.
        itemsize: bytes of a logit and of a soft label.
        dual: with tangents.
    """
    soft = len(labels) == len(shape)
    passes = 2 if not dual else 5 if soft else 4
    of_labels = prod(labels) * (itemsize if soft else _INDEX_BYTES)
    return Cost(flops=_FLOPS[soft, dual] * prod(shape), bytes=passes * prod(shape) * itemsize + of_labels)


def _fake(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    return z.new_empty(z.shape[:2], dtype=wide), z.new_empty(z.shape)


def _dual_fake(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, gradient = _fake(z, labels)
    product = z.new_empty(z.shape if labels.ndim == z.ndim else (0,))
    return loss.new_empty(2, *loss.shape), gradient, z.new_empty(z.shape), product


_value = register(
    "softmax_xent(Tensor z, Tensor labels) -> (Tensor, Tensor)",
    reference=reference.softmax_xent,
    kernels="softmax_xent",
    fake=_fake,
    flops=lambda z, labels: cost_softmax_xent(z, labels, 1, dual=False).flops,
)
_dual = register(
    "dual_softmax_xent(Tensor z, Tensor dz, Tensor labels) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.dual_softmax_xent,
    kernels="softmax_xent",
    fake=_dual_fake,
    flops=lambda z, dz, labels: cost_softmax_xent(z, labels, 1, dual=True).flops,
)


def softmax_xent(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each pair's samples, and its gradient in the logits.

    Args:
        z: logits ``[S, G, n, C]``.
        labels: class indices, int64 ``[S, G, n]``, whose values are not looked at beforehand (one outside ``[0, C)``
            raises on a CPU and makes the loss NaN on a GPU); or soft labels ``[S, G, n, C]`` in the logits' dtype, rows
            of any sum. ``S`` and ``G`` may be 1 here, for labels that students or groups share.

    Returns:
        The loss ``[S, G]``, float32 for bfloat16 logits, zero for ``n = 0``; and its gradient ``[S, G, n, C]``.

    Raises:
        TypeError: for a tensor with a derivative.
        ValueError: for wrong shapes, dtypes or devices.
    """
    _check("softmax_xent", z, labels)
    loss, gradient = _value(z, labels)
    return loss, gradient


def dual_softmax_xent(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """`softmax_xent` and its derivative along a tangent of the logits.

    Args:
        z: logits ``[S, G, n, C]``.
        dz: their tangent, alike.
        labels: as of `softmax_xent`; they have no tangent.

    Returns:
        The loss and its tangent ``[S, G]``, float32 for bfloat16 logits; the gradient and its tangent
        ``[S, G, n, C]``; and the derivative in the labels of the loss's tangent ``[S, G, n, C]``, which is not summed
        over students that share them: None for hard labels.

    Raises:
        TypeError: for a tensor with a derivative.
        ValueError: for wrong shapes, dtypes or devices.
    """
    name = "dual_softmax_xent"
    _check(name, z, labels, dz)
    expect_alike(name, z=z, dz=dz)
    expect_shape(name, "dz", dz, "[S, G, n, C]", tuple(z.shape))
    losses, gradient, gradient_tangent, product = _dual(z, dz, labels)
    return losses[0], losses[1], gradient, gradient_tangent, product if labels.ndim == z.ndim else None


def _check(operator: str, z: Tensor, labels: Tensor, dz: Tensor | None = None) -> None:
    refuse_derivatives(operator, z, labels, dz)
    expect_alike(operator, z=z)
    if z.ndim != 4 or z.shape[-1] == 0:
        raise ValueError(
            f"{operator} expected z [S, G, n, C] with at least one class, got {list(z.shape)}: give it these axes"
        )
    if labels.dtype == torch.int64:
        if labels.device != z.device:
            raise ValueError(f"{operator} expected labels on {z.device} like z, got {labels.device}: move one of them")
        letters, own = "[S or 1, G or 1, n]", tuple(z.shape[:3])
    else:
        expect_alike(operator, z=z, labels=labels)
        letters, own = "[S or 1, G or 1, n, C] or class indices in int64", tuple(z.shape)
    shared = tuple(1 if extent == 1 else mine for extent, mine in zip(labels.shape[:2], own[:2], strict=False))
    expect_shape(operator, "labels", labels, letters, (*shared, *own[len(shared) :]))
