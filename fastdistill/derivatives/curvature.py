"""Curvature of students as operators on vectors: the Hessian and the Gauss-Newton matrix, never formed.

Each is a function of the primitive that gives ``v → A v`` for vectors ``v [S, P]``, one symmetric matrix per student,
as the solvers of `solve` take it. Shapes: ``S`` students, ``P`` parameters with padding (zero in every vector), ``n``
images, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor
from torch.func import jvp, vjp

from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.solve import Operator


def hessian_product(
    primitive: Functional,
    weights: Tensor,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    decay: float = 0.0,
) -> Operator:
    """The operator ``v → (H + decay·I) v`` of the mean cross-entropy plus ``decay/2 · |θ|²``, buffers frozen.

    One forward-over-reverse pass of the primitive per product. Symmetric; indefinite for real students.

    Args:
        primitive: the student's primitive.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``, eval mode.
        images: one group of them, ``[S, 1, n, D, H, W]`` or, shared by all students, ``[1, n, D, H, W]``.
        labels: class indices ``[S, 1, n]`` / ``[1, n]`` or soft rows of any sum with a last axis ``C``.
        decay: the loss's own weight decay, at least 0; it leaves padding zero.

    Raises:
        ValueError: for several groups or shapes that do not fit together.
    """
    _check_group(weights, images, labels)
    ridge = _ridge(primitive, weights, decay)

    def apply(vector: Tensor) -> Tensor:
        _check_like(vector, weights)
        along = vector[:, None]
        product = primitive.products(weights, buffers, images, labels, along, wanted=("weights",)).weights
        assert product is not None
        return product[:, 0] + ridge * vector

    return apply


def gauss_newton_product(
    primitive: Functional,
    weights: Tensor,
    buffers: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    decay: float = 0.0,
) -> Operator:
    """The operator ``v → (Jᵀ H_L J + decay·I) v``, ``J = ∂logits/∂θ``, positive semi-definite (Schraudolph 2002).

    ``H_L = Σy · (diag(p) − p pᵀ) / n`` is the Hessian of the mean cross-entropy in the logits, ``p`` their softmax;
    ``Σy`` is the sum of the image's label row, 1 for class indices. ``J v`` is a forward-mode pass of values and
    ``Jᵀ u`` a reverse-mode pass; images are taken in the primitive's pieces.

    Args:
        primitive: the student's primitive.
        weights: ``[S, P]``.
        buffers: name to ``[S, ...]``, eval mode.
        images: one group of them, ``[S, 1, n, D, H, W]`` or, shared by all students, ``[1, n, D, H, W]``.
        labels: class indices ``[S, 1, n]`` / ``[1, n]`` or soft rows of any sum with a last axis ``C``.
        decay: the loss's own weight decay, at least 0; it leaves padding zero.

    Raises:
        ValueError: for several groups or shapes that do not fit together.
    """
    _check_group(weights, images, labels)
    ridge = _ridge(primitive, weights, decay)
    batching, pictures = primitive.batching, images.select(-5, 0)
    count = pictures.shape[-4]
    masses = (
        labels.select(-3, 0).sum(-1, keepdim=True) if labels.is_floating_point() else weights.new_ones(count, 1)
    )  # [S, n, 1] or [n, 1]

    def chunk(some: slice, vector: Tensor) -> Tensor:
        # dual tensors own their storage: forward mode makes zero tangents as large as what lies behind a view
        own, along = weights[some].clone(), vector[some].clone()
        state = {name: tensor[some] for name, tensor in buffers.items()}
        x = pictures[some] if images.ndim == 6 else pictures
        mass = masses[some] if masses.ndim == 3 else masses
        total = torch.zeros_like(own)
        for part, share in zip(x.split(batching.piece, dim=-4), mass.split(batching.piece, dim=-2), strict=True):

            def logits(flat: Tensor, part: Tensor = part) -> Tensor:
                return Functional.logits(primitive, flat, state, part)  # dual layers stand outside of transforms

            found = jvp(logits, (own,), (along,))
            probability, tangent = found[0].softmax(-1), found[1]
            weighed = probability * tangent
            cotangent = (weighed - probability * weighed.sum(-1, keepdim=True)) * share / count
            total = total + vjp(logits, own)[1](cotangent)[0]
        return total

    def apply(vector: Tensor) -> Tensor:
        _check_like(vector, weights)
        starts = range(0, weights.shape[0], batching.students)
        chunks = [chunk(slice(start, start + batching.students), vector) for start in starts]
        return torch.cat(chunks) + ridge * vector

    return apply


def _ridge(primitive: Functional, weights: Tensor, decay: float) -> Tensor:
    """``decay`` for every parameter and zero for the padding, ``[P]``."""
    if not 0 <= decay < inf:
        raise ValueError(f"expected a finite decay of at least 0, got {decay}: the loss adds decay / 2 times |θ|²")
    layout = primitive.layout
    return layout.flatten(layout.views(torch.full_like(weights[0], decay)))


def _check_group(weights: Tensor, images: Tensor, labels: Tensor) -> None:
    leading = labels.shape[:-1] if labels.is_floating_point() else labels.shape
    fitting = (images.shape[:-3], images.shape[-5:-3])
    lead = {5: (), 6: weights.shape[:1]}.get(images.ndim)
    if lead is None or images.shape[:-4] != (*lead, 1) or leading not in fitting:
        raise ValueError(
            f"expected images [{weights.shape[0]}, 1, n, D, H, W] or [1, n, D, H, W] and labels with their leading "
            f"axes, got {tuple(images.shape)} and {tuple(labels.shape)}: a student's images are one group"
        )


def _check_like(vector: Tensor, weights: Tensor) -> None:
    if vector.shape != weights.shape:
        raise ValueError(
            f"expected a vector {tuple(weights.shape)} like the weights, got {tuple(vector.shape)}: flatten with the "
            "student's layout"
        )
