"""Truth of `fastdistill_kernels.softmax_xent`, on pieces of the logits that fit in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 1 << 16  # logits of a piece for each thread: 256 KiB of float32 in each of up to six tensors


def softmax_xent(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss ``[S, G]`` and gradient ``[S, G, n, C]``."""
    labels = labels.expand(*z.shape[:2], *labels.shape[2:])
    loss, gradient = _pairs(z), _empty(z)
    for part in _pieces(z):
        log_p, scaled, given = _softmax(z[part], labels[part])
        loss[part] = -_mean_of_label(log_p, given)
        gradient[part] = _less_label(scaled, given)
    return loss, gradient


def dual_softmax_xent(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and its tangent ``[2, S, G]``, gradient, its tangent and the label product (or nothing) ``[S, G, n, C]``."""
    labels = labels.expand(*z.shape[:2], *labels.shape[2:])
    soft = labels.ndim == z.ndim
    losses, gradient, gradient_tangent = torch.stack([_pairs(z), _pairs(z)]), _empty(z), _empty(z)
    product = _empty(z) if soft else z.new_empty(0)
    for part in _pieces(z):
        log_p, scaled, given = _softmax(z[part], labels[part])
        tangent = dz[part].to(log_p.dtype)
        tangent = tangent - (log_p.exp() * tangent).sum(-1, keepdim=True)  # of log p
        losses[0][part], losses[1][part] = -_mean_of_label(log_p, given), -_mean_of_label(tangent, given)
        gradient_tangent[part] = scaled * tangent
        gradient[part] = _less_label(scaled, given)
        if soft:
            product[part] = tangent * -_share(z)
    return losses, gradient, gradient_tangent, product


def _softmax(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p`` and ``σ p/n``, both new, and the labels, in at least float32."""
    log_p = torch.log_softmax(z, -1, dtype=_wide(z))
    if labels.ndim < z.ndim:
        return log_p, log_p.exp().mul_(_share(z)), labels
    labels = labels.to(log_p.dtype)
    return log_p, log_p.exp().mul_(labels.sum(-1, keepdim=True).mul_(_share(z))), labels


def _mean_of_label(rows: Tensor, labels: Tensor) -> Tensor:
    """``(1/n) Σ y rows``."""
    if labels.ndim < rows.ndim:
        return rows.gather(-1, labels[..., None]).sum((-2, -1)) * _share(rows)
    return (labels * rows).sum((-2, -1)) * _share(rows)


def _less_label(scaled: Tensor, labels: Tensor) -> Tensor:
    """``scaled − y/n``, in its place."""
    if labels.ndim < scaled.ndim:
        return scaled.scatter_add_(-1, labels[..., None], scaled.new_full((), -_share(scaled)).expand_as(scaled))
    return scaled.sub_(labels, alpha=_share(scaled))


def _share(z: Tensor) -> float:
    return 1 / max(z.shape[-2], 1)


def _wide(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _pairs(z: Tensor) -> Tensor:
    return z.new_zeros(z.shape[:2], dtype=_wide(z))


def _empty(z: Tensor) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _pieces(z: Tensor) -> Iterator[tuple[slice, slice]]:
    """Students and groups of every piece; one, at least, of each."""
    students, groups = z.shape[:2]
    whole = z.device.type != "cpu" or torch.compiler.is_compiling()
    room = z.numel() if whole else _PIECE * torch.get_num_threads()
    pairs = max(1, room // max(1, z.shape[2] * z.shape[3]))
    across, down = max(1, min(groups, pairs)), max(1, pairs // max(1, groups))
    for first in range(0, students, down):
        for group in range(0, groups, across):
            yield slice(first, first + down), slice(group, group + across)
