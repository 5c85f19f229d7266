"""Truth of `fastdistill_kernels.linear`: batched matrix products of students, or of (student, group) pairs.

Arguments and results are those of the operators of the same names; ``precision`` is for devices with a choice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.reference.convolution import gradient_dtype, own_groups


def _wide(tensor: Tensor) -> Tensor:
    """In the dtype that is computed in."""
    return tensor.to(gradient_dtype(tensor.dtype))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [S, G, n, F]`` times ``weight [S, 1 or G, O, F]`` transposed, plus ``bias [S, 1 or G, O]``."""
    own = weight.shape[1]
    lead = (x.shape[0], 1, x.shape[1] * x.shape[2]) if own == 1 else x.shape[:3]
    rows = _wide(x).reshape(lead[0] * own, lead[2], x.shape[3])
    matrices = _wide(weight).flatten(0, 1).mT
    if bias is None:
        y = torch.bmm(rows, matrices)
    else:
        y = torch.baddbmm(_wide(bias).reshape(lead[0] * own, 1, bias.shape[-1]), rows, matrices)
    return y.view(*x.shape[:3], weight.shape[2])


def _tangents(tensor: Tensor | None, own: int) -> Tensor | None:
    """Weights or biases ``[S, G, ...]``, once where all groups share them."""
    return tensor if tensor is None or own > 1 else tensor[:, :1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """``y = x·wᵀ + b``."""
    return _product(x, weight[:, None], None if bias is None else bias[:, None]).to(x.dtype)


def dual_linear(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``y = x·wᵀ + b`` and ``ẏ = ẋ·wᵀ + x·ẇᵀ + ḃ``."""
    own = own_groups(dweight, dbias)
    dw, db = _tangents(dweight, own), _tangents(dbias, own)
    assert dw is not None
    dy = _product(x, dw, db)
    if dx is not None:
        dy += _product(dx, weight[:, None], None)
    return linear(x, weight, bias, precision), dy.to(x.dtype)


def linear_input_gradient(gy: Tensor, weight: Tensor, precision: str) -> Tensor:
    """``gx = gy·w``."""
    return _product(gy, weight.mT[:, None], None).to(gy.dtype)


def dual_linear_input_gradient(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, precision: str, value: bool
) -> tuple[Tensor, Tensor]:
    """``gx`` (empty without ``value``) and ``ġx = ġy·w + gy·ẇ``."""
    dw = _tangents(dweight, own_groups(dweight))
    assert dw is not None
    dgx = _product(dgy, weight.mT[:, None], None)
    dgx += _product(gy, dw.mT, None)
    return linear_input_gradient(gy, weight, precision) if value else gy.new_empty(0), dgx.to(gy.dtype)


def linear_weight_gradient(x: Tensor, gy: Tensor, bias: bool, precision: str) -> tuple[Tensor, Tensor]:
    """``gw = gyᵀ·x`` of every (student, group), and ``gb``, the sum of ``gy`` (empty without ``bias``)."""
    wide = _wide(gy)
    return wide.mT @ _wide(x), wide.sum(2) if bias else wide.new_empty(0)


def dual_linear_weight_gradient(
    x: Tensor, dx: Tensor | None, gy: Tensor, dgy: Tensor, bias: bool, precision: str, value: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``gw, ġw = ġyᵀ·x + gyᵀ·ẋ, gb, ġb``; those without ``value`` or ``bias`` are empty."""
    dgw, dgb = linear_weight_gradient(x, dgy, bias, precision)
    if dx is not None:
        dgw += linear_weight_gradient(dx, gy, False, precision)[0]
    gw, gb = linear_weight_gradient(x, gy, bias, precision) if value else (dgw.new_empty(0), dgw.new_empty(0))
    return gw, dgw, gb, dgb
