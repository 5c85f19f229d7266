"""Backward pass of `fastdistill_kernels.first_block`, computing the convolution's output again, and its tangent."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdistill_kernels.checks import refuse_derivatives
from fastdistill_kernels.first_block import CHOICES, OWN, PAIRS, count_flops
from fastdistill_kernels.first_block_checks import check, paired
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import first_block as reference
from fastdistill_kernels.reference.first_block import empty_gradients, empty_images


def _fake(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
) -> tuple[Tensor, ...]:
    return *empty_gradients(gy, x, weight, norm_weight is not None), empty_images(gy, x, inputs)


def _fake_dual(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
    value: bool,
) -> tuple[Tensor, ...]:
    values, tangents = (empty_gradients(gy, x, weight, norm_weight is not None, one) for one in (value, True))
    paired = [tensor for pair in zip(values, tangents, strict=True) for tensor in pair]
    return *paired, empty_images(gy, x, inputs and value), empty_images(gy, x, inputs)


def _flops(gy: Any, x: Any, weight: Any, bias: Any, norm_weight: Any, norm_bias: Any, *rest: Any) -> int:
    padding, _, pooling, _, _, inputs = rest
    return count_flops("backward", gy[1], x, weight, norm_weight is not None, padding, pooling, inputs=inputs)


def _flops_dual(gy: Any, dgy: Any, x: Any, weight: Any, *rest: Any) -> int:
    normed = rest[3] is not None
    padding, _, pooling, _, _, inputs, value = rest[7:]
    return count_flops("dual_backward", gy[1], x, weight, normed, padding, pooling, inputs=inputs, value=value)


_backward = register(
    f"first_block_backward(Tensor gy, {OWN}, {CHOICES}, bool inputs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.first_block_backward,
    kernels="first_block",
    fake=_fake,
    flops=_flops,
)
_dual_backward = register(
    f"dual_first_block_backward(Tensor gy, Tensor dgy, {PAIRS}, {CHOICES}, bool inputs, bool value) -> "
    f"({', '.join(['Tensor'] * 10)})",
    reference=reference.dual_first_block_backward,
    kernels="first_block",
    fake=_fake_dual,
    flops=_flops_dual,
)


def first_block_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    padding: int,
    activation: str,
    pooling: str,
    eps: float = 1e-5,
    precision: str = "ieee",
    inputs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of every (student, group) pair, from that of the output.

    Args:
        gy: ``[S, G, n, O, H', W']``.
        x: as of `first_block`, with all that follow.
        weight: same.
        bias: same.
        norm_weight: same.
        norm_bias: same.
        padding: same.
        activation: same.
        pooling: same.
        eps: same.
        precision: same.
        inputs: whether the images' gradient is wanted.

    Returns:
        ``gw [S, G, O, D, 3, 3]``, ``gb``, ``gnorm_weight``, ``gnorm_bias [S, G, O]`` in float32 (float64 for float64),
        the last two empty without norm, and ``gx [S, G, n, D, H, W]`` in the images' dtype, empty unless wanted.

    Raises:
        TypeError: for a tensor whose derivative would be dropped.
        ValueError: for shapes, dtypes, devices or choices that do not fit.
    """
    own = (weight, bias, norm_weight, norm_bias)
    refuse_derivatives("first_block_backward", gy, x, *own)
    check("first_block_backward", x, own, padding, activation, pooling, precision, outputs={"gy": gy})
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _backward(
        gy, x, *own, padding, activation, pooling, eps, precision, inputs
    )
    return found


def dual_first_block_backward(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    *,
    padding: int,
    activation: str,
    pooling: str,
    eps: float = 1e-5,
    precision: str = "ieee",
    inputs: bool,
    value: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of every (student, group) pair and their tangents, from those of the output.

    Args:
        gy: ``[S, G, n, O, H', W']``.
        dgy: its tangent.
        x: as of `dual_first_block`, with all that follow.
        weight: same.
        dweight: same.
        bias: same.
        dbias: same.
        norm_weight: same.
        dnorm_weight: same.
        norm_bias: same.
        dnorm_bias: same.
        padding: same.
        activation: same.
        pooling: same.
        eps: same.
        precision: same.
        inputs: whether gradients of the images are wanted.
        value: whether gradients are wanted beside their tangents.

    Returns:
        ``gw, ġw, gb, ġb, gγ, ġγ, gβ, ġβ, gx, ġx`` of the shapes and dtypes of `first_block_backward`; empty are those
        of a norm that there is not, of images unless ``inputs``, and all but tangents unless ``value``.

    Raises:
        TypeError: for a tensor whose derivative would be dropped.
        ValueError: for shapes, dtypes, devices or choices that do not fit.
    """
    own, along = (weight, bias, norm_weight, norm_bias), (dweight, dbias, dnorm_weight, dnorm_bias)
    refuse_derivatives("dual_first_block_backward", gy, dgy, x, *own, *along)
    outputs = {"gy": gy, "dgy": dgy}
    check("dual_first_block_backward", x, own, padding, activation, pooling, precision, along=along, outputs=outputs)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _dual_backward(
        gy, dgy, x, *paired(own, along), padding, activation, pooling, eps, precision, inputs, value
    )
    return found
