"""What the operators of `fastdistill_kernels.norm_act_pool` ask of their arguments."""

from __future__ import annotations

from torch import Tensor

from fastdistill_kernels import checks
from fastdistill_kernels.reference import norm_act_pool as reference
from fastdistill_kernels.reference.activation import ACTIVATIONS
from fastdistill_kernels.reference.pooling import POOLINGS, pooled_size


def expect_images(operator: str, x: Tensor, groups: int, activation: str, pooling: str) -> None:
    """Refuses x and choices that do not go together."""
    checks.expect_one_of(operator, "activation", activation, ACTIVATIONS)
    checks.expect_one_of(operator, "pooling", pooling, POOLINGS)
    checks.expect_alike(operator, x=x)
    if x.ndim != 6:
        raise ValueError(f"{operator} expected x [S, G, n, C, H, W], got {list(x.shape)}: give it six axes")
    least = 1 if pooling == "none" else 2
    if x.shape[3] < 1 or x.shape[4] < least or x.shape[5] < least:
        raise ValueError(
            f"{operator} expected at least one channel and {least}×{least} pixels for pooling {pooling!r}, got x "
            f"{list(x.shape)}: pool less often or leave the layer out"
        )
    if groups < 0 or (groups and x.shape[3] % groups):
        raise ValueError(
            f"{operator} expected norm groups that divide {x.shape[3]} channels, or 0 for no norm, got {groups}: "
            "choose another number"
        )


def expect_like_x(operator: str, x: Tensor, **tensors: Tensor) -> None:
    """Refuses tangents of another shape or kind than x."""
    for name, tensor in tensors.items():
        checks.expect_shape(operator, name, tensor, "[S, G, n, C, H, W]", tuple(x.shape))
    checks.expect_alike(operator, x=x, **tensors)


def expect_cotangent(operator: str, x: Tensor, pooling: str, **tensors: Tensor) -> None:
    """Refuses cotangents of another shape than y or another kind than x."""
    shape = (*x.shape[:4], *pooled_size(x, pooling))
    for name, tensor in tensors.items():
        checks.expect_shape(operator, name, tensor, "[S, G, n, C, H′, W′]", shape)
    checks.expect_alike(operator, x=x, **tensors)


def expect_statistics(operator: str, x: Tensor, groups: int, **tensors: Tensor) -> None:
    """Refuses statistics that are not those of x's forward pass."""
    dtype = reference.statistics_dtype(x)
    for name, tensor in tensors.items():
        checks.expect_shape(operator, name, tensor, "[S, G, n, groups]", (*x.shape[:3], groups))
        if tensor.dtype != dtype or tensor.device != x.device:
            raise ValueError(
                f"{operator} expected {name} in {dtype} on {x.device}, got {tensor.dtype} on {tensor.device}: hand "
                "over what the forward pass returned"
            )


def expect_affine(operator: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> None:
    """Refuses weight and bias that do not fit x, or come without a norm."""
    if (weight is None) != (bias is None) or (weight is not None and not groups):
        raise ValueError(
            f"{operator} expected weight and bias together, and none without a norm, got weight "
            f"{_given(weight)} and bias {_given(bias)} for groups {groups}: give both or neither"
        )
    if weight is None or bias is None:
        return
    students, channels, pixels = x.shape[0], x.shape[3], tuple(x.shape[4:])
    if tuple(weight.shape) not in ((students, channels), (students, channels, *pixels)):
        raise ValueError(
            f"{operator} expected weight [S, C] = {[students, channels]} or [S, C, H, W] = "
            f"{[students, channels, *pixels]}, got {list(weight.shape)}: give it one of these shapes"
        )
    checks.expect_shape(operator, "bias", bias, "as weight", tuple(weight.shape))
    _expect_parameters(operator, x, weight=weight, bias=bias)


def expect_tangents(
    operator: str,
    x: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Refuses tangents of weight and bias that do not fit these."""
    for name, value, tangent in (("weight", weight, dweight), ("bias", bias, dbias)):
        if (value is None) != (tangent is None):
            raise ValueError(
                f"{operator} expected a tangent of {name} where there is a {name}, got {name} {_given(value)} and "
                f"d{name} {_given(tangent)}: give both or neither"
            )
    if weight is None or dweight is None or dbias is None:
        return
    plain, by_group = tuple(weight.shape), (x.shape[0], x.shape[1], *weight.shape[1:])
    if tuple(dweight.shape) not in (plain, by_group):
        raise ValueError(
            f"{operator} expected dweight like weight {list(plain)} or with G {list(by_group)}, got "
            f"{list(dweight.shape)}: give it one of these shapes"
        )
    checks.expect_shape(operator, "dbias", dbias, "as dweight", tuple(dweight.shape))
    _expect_parameters(operator, x, weight=weight, dweight=dweight, dbias=dbias)


def _expect_parameters(operator: str, x: Tensor, **tensors: Tensor) -> None:
    """Refuses parameters that are neither in x's dtype nor in that of statistics."""
    allowed = {x.dtype, reference.statistics_dtype(x)}
    for name, tensor in tensors.items():
        if tensor.dtype not in allowed or tensor.device != x.device:
            raise ValueError(
                f"{operator} expected {name} in {' or '.join(sorted(map(str, allowed)))} on {x.device}, got "
                f"{tensor.dtype} on {tensor.device}: convert it first"
            )


def _given(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(list(tensor.shape))
