"""The backward pass of `fastdistill_kernels.norm_act_pool` and its tangent; shapes, traffic and arithmetic are there.

What lies between x and y is computed again from x and the saved statistics instead of being kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels import checks, operators
from fastdistill_kernels import norm_act_pool_checks as given
from fastdistill_kernels.norm_act_pool import count_flops
from fastdistill_kernels.reference import norm_act_pool_backward as reference
from fastdistill_kernels.reference.norm_act_pool import empty_in_layout, statistics_dtype


def _fake_gradient(x: Tensor, weight: Tensor | None, wanted: bool = True) -> Tensor:
    shape = (0,) if weight is None or not wanted else (x.shape[0], x.shape[1], *weight.shape[1:])
    return torch.empty(shape, dtype=statistics_dtype(x), device=x.device)


def _fake_backward(gy: Tensor, x: Tensor, weight: Tensor | None, *_: object) -> tuple[Tensor, ...]:
    gx = empty_in_layout(x, *x.shape[4:])
    return gx, _fake_gradient(x, weight), _fake_gradient(x, weight)


def _fake_dual_backward(
    gy: Tensor, dgy: Tensor, x: Tensor, dx: Tensor, weight: Tensor | None, *rest: object
) -> tuple[Tensor, ...]:
    gx, dgx = (empty_in_layout(x, *x.shape[4:]) for _ in range(2))
    value = bool(rest[-1])
    gradients = (_fake_gradient(x, weight, wanted) for wanted in (value, True, value, True))
    return gx, dgx, *gradients


_backward = operators.register(
    "norm_act_pool_backward(Tensor gy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int groups,"
    " str activation, str pooling) -> (Tensor, Tensor, Tensor)",
    reference=reference.norm_act_pool_backward,
    kernels="norm_act_pool_backward",
    fake=_fake_backward,
    flops=lambda gy, x, weight, bias, mean, rstd, groups, activation, pooling: count_flops(
        x, weight, groups, pooling, False, True
    ),
)
_dual_backward = operators.register(
    "dual_norm_act_pool_backward(Tensor gy, Tensor dgy, Tensor x, Tensor dx, Tensor? weight, Tensor? dweight,"
    " Tensor? bias, Tensor? dbias, Tensor mean, Tensor rstd, Tensor dmean, Tensor drstd, int groups, str activation,"
    " str pooling, bool value) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.dual_norm_act_pool_backward,
    kernels="norm_act_pool_backward",
    fake=_fake_dual_backward,
    flops=lambda gy, dgy, x, dx, weight, *rest: count_flops(x, weight, rest[7], rest[9], True, True),
)


def norm_act_pool_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    groups: int,
    activation: str,
    pooling: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Cotangents of x, weight and bias.

    Args:
        gy: cotangent of y, its shape and x's dtype.
        x: as `norm_act_pool` took it, like weight and bias.
        weight: see there.
        bias: see there.
        mean: as `norm_act_pool` returned it.
        rstd: the same.
        groups: as `norm_act_pool` took it.
        activation: the same.
        pooling: the same.

    Returns:
        ``gx`` in x's dtype and layout; the weight's and the bias's ``[S, G, ...]`` summed over images in float32
        (float64 for float64), None for None.

    Raises:
        ValueError: for shapes, dtypes, devices or choices that do not go together.
        TypeError: for tensors whose derivative would be lost.
    """
    operator = "norm_act_pool_backward"
    checks.refuse_derivatives(operator, gy, x, weight, bias, mean, rstd)
    given.expect_images(operator, x, groups, activation, pooling)
    given.expect_cotangent(operator, x, pooling, gy=gy)
    given.expect_affine(operator, x, weight, bias, groups)
    given.expect_statistics(operator, x, groups, mean=mean, rstd=rstd)
    gx, gweight, gbias = _backward(gy, x, weight, bias, mean, rstd, groups, activation, pooling)
    return (gx, None, None) if weight is None else (gx, gweight, gbias)


def dual_norm_act_pool_backward(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dmean: Tensor,
    drstd: Tensor,
    *,
    groups: int,
    activation: str,
    pooling: str,
    value: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`norm_act_pool_backward` and its tangent along ``(dgy, dx, dweight, dbias)``.

    Args:
        gy: cotangent of y, its shape and x's dtype.
        dgy: its tangent.
        x: as `dual_norm_act_pool` took it, like all down to dbias.
        dx: see there.
        weight: see there.
        dweight: see there.
        bias: see there.
        dbias: see there.
        mean: as `dual_norm_act_pool` returned it, like all down to drstd.
        rstd: see there.
        dmean: see there.
        drstd: see there.
        groups: as `dual_norm_act_pool` took it.
        activation: the same.
        pooling: the same.
        value: whether the affine gradients themselves are wanted, beside their tangents.

    Returns:
        ``gx, dgx, gweight, dgweight, gbias, dgbias``, shaped as `norm_act_pool_backward` has them; gweight and gbias
        are None without ``value``.

    Raises:
        ValueError: for shapes, dtypes, devices or choices that do not go together.
        TypeError: for tensors whose derivative would be lost.
    """
    operator = "dual_norm_act_pool_backward"
    checks.refuse_derivatives(operator, gy, dgy, x, dx, weight, dweight, bias, dbias, mean, rstd, dmean, drstd)
    given.expect_images(operator, x, groups, activation, pooling)
    given.expect_like_x(operator, x, dx=dx)
    given.expect_cotangent(operator, x, pooling, gy=gy, dgy=dgy)
    given.expect_affine(operator, x, weight, bias, groups)
    given.expect_tangents(operator, x, weight, dweight, bias, dbias)
    given.expect_statistics(operator, x, groups, mean=mean, rstd=rstd, dmean=dmean, drstd=drstd)
    statistics = (mean, rstd, dmean, drstd)
    affine = (weight, dweight, bias, dbias)
    gx, dgx, gweight, dgweight, gbias, dgbias = _dual_backward(
        gy, dgy, x, dx, *affine, *statistics, groups, activation, pooling, value
    )
    if weight is None:
        return gx, dgx, None, None, None, None
    return gx, dgx, gweight if value else None, dgweight, gbias if value else None, dgbias
