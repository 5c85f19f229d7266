"""Normalisation, activation and 2×2 pooling in one, with backward pass and the tangents of both.

``y = pool(a(w·x̂ + b))`` with ``x̂ = (x − μ)/√(σ² + ε)`` over norm groups of ``C/groups`` channels and all pixels of an
image: ``groups = C`` is instance norm, 1 layer norm, 0 none. ``x [S, G, n, C, H, W]``; weight and bias ``[S, C]`` or
``[S, C, H, W]``, their tangents with or without G after S, all in x's dtype or float32.

Least traffic in elements of x, with ¼ for what is pooled: forward read 1, write ¼; backward read 1¼, write 1; twice
these with tangents. Arithmetic: 9 (forward) and 15 (backward) operations an element, 23 and 45 with tangents: far below
what the traffic leaves time for, so a kernel is as good as its share of the bandwidth. Formulas are derived in
``kernels/README.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels import checks, operators
from fastdistill_kernels import norm_act_pool_checks as given
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.reference import norm_act_pool as reference
from fastdistill_kernels.reference.pooling import pooled_size

EPS = 1e-5  # torch's default

# Arithmetic of an element of x: norm, affine, activation with pooling. Every addition and multiplication counts one, an
# activation or one of its derivatives one.
_FORWARD = (5, 2, 2)  # sum, centre, square and add, scale
_DUAL_FORWARD = (5 + 7, 2 + 4, 2 + 3)  # also sum, centre, product and add of ẋ, x̂'s tangent 3; ż; a′, its product, pool
_BACKWARD = (2 + 3 + 4, 2 + 1, 3)  # x̂, sums of g and g·x̂, gx; z and w·g; a′, its product, ¼
_DUAL_BACKWARD = (9 + 4 + 5 + 8, 3 + 4 + 3, 3 + 6)  # also x̂'s tangent, the sums', gx's; ż and ḣ; a′·ġ/4, a″·ż·g


def cost_norm_act_pool(
    shape: tuple[int, ...],
    *,
    groups: int,
    parameters: int,
    pooling: str,
    itemsize: int,
    dual: bool = False,
    backward: bool = False,
) -> Cost:
    """Arithmetic and least traffic of one of the four operators.

    Args:
        shape: of ``x [S, G, n, C, H, W]``.
        groups: norm groups of an image, 0 for none.
        parameters: elements of one weight for one student, ``C`` or ``C·H·W``; 0 for none.
        pooling: one of ``POOLINGS``.
        itemsize: bytes of an element of x; weights are counted with as many.
        dual: with tangents.
        backward: the backward pass, affine gradients included.
    """
    students, gradient_groups, images, channels, height, width = shape
    maps = students * gradient_groups * images
    whole = maps * channels * height * width
    outside = whole if pooling == "none" else maps * channels * (height // 2) * (width // 2)
    norm, affine, rest = {
        (False, False): _FORWARD,
        (True, False): _DUAL_FORWARD,
        (False, True): _BACKWARD,
        (True, True): _DUAL_BACKWARD,
    }[dual, backward]
    flops = whole * (norm * bool(groups) + affine * bool(parameters) + rest)
    pairs = 2 if dual else 1
    moved = pairs * ((2 * whole if backward else whole) + outside)
    weights = 2 * parameters * students * (1 + gradient_groups * (pairs - 1))
    gradients = 2 * parameters * students * gradient_groups * pairs if backward else 0
    return Cost(flops, itemsize * (moved + weights) + 4 * (gradients + 2 * pairs * maps * groups))


def count_flops(x: torch.Size, weight: torch.Size | None, groups: int, pooling: str, dual: bool, backward: bool) -> int:
    """The cost's arithmetic from shapes as torch's counter hands them over."""
    parameters = 0 if weight is None else weight[1:].numel()
    return cost_norm_act_pool(
        tuple(x), groups=groups, parameters=parameters, pooling=pooling, itemsize=4, dual=dual, backward=backward
    ).flops


def _fake_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, activation: str, pooling: str, eps: float
) -> tuple[Tensor, ...]:
    return reference.empty_in_layout(x, *pooled_size(x, pooling)), *_fake_statistics(x, groups, 2)


def _fake_statistics(x: Tensor, groups: int, count: int) -> tuple[Tensor, ...]:
    dtype = reference.statistics_dtype(x)
    return tuple(torch.empty(*x.shape[:3], groups, dtype=dtype, device=x.device) for _ in range(count))


def _fake_dual_forward(
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    groups: int,
    activation: str,
    pooling: str,
    eps: float,
) -> tuple[Tensor, ...]:
    y, dy = (reference.empty_in_layout(x, *pooled_size(x, pooling)) for _ in range(2))
    return y, dy, *_fake_statistics(x, groups, 4)


_forward = operators.register(
    "norm_act_pool(Tensor x, Tensor? weight, Tensor? bias, int groups, str activation, str pooling, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.norm_act_pool,
    kernels="norm_act_pool",
    fake=_fake_forward,
    flops=lambda x, weight, bias, groups, activation, pooling, eps: count_flops(
        x, weight, groups, pooling, False, False
    ),
)
_dual_forward = operators.register(
    "dual_norm_act_pool(Tensor x, Tensor dx, Tensor? weight, Tensor? dweight, Tensor? bias, Tensor? dbias, int groups,"
    " str activation, str pooling, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.dual_norm_act_pool,
    kernels="norm_act_pool",
    fake=_fake_dual_forward,
    flops=lambda x, dx, weight, dweight, bias, dbias, groups, activation, pooling, eps: count_flops(
        x, weight, groups, pooling, True, False
    ),
)


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    groups: int,
    activation: str,
    pooling: str,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """``pool(a(norm(x)))`` of every image.

    Args:
        x: ``[S, G, n, C, H, W]``, in one of torch's two layouts of images (any other is copied first).
        weight: ``[S, C]`` or ``[S, C, H, W]`` (as ``torch.nn.LayerNorm([C, H, W])`` has it), or None for none.
        bias: alike.
        groups: norm groups over channels; 0 for no norm, and then no weight and bias.
        activation: one of ``ACTIVATIONS``.
        pooling: one of ``POOLINGS``, of 2×2 windows; a row or column left over is cropped, though it counts for the
            statistics. The first maximum of a window is taken, or the last of what is not a number, as torch does.
        eps: added to the variance.

    Returns:
        ``y [S, G, n, C, H′, W′]`` in x's dtype and layout, mean and 1/std ``[S, G, n, groups]`` in float32 (float64
        for float64).

    Raises:
        ValueError: for shapes, dtypes, devices or choices that do not go together.
        TypeError: for tensors whose derivative would be lost.
    """
    operator = "norm_act_pool"
    checks.refuse_derivatives(operator, x, weight, bias)
    given.expect_images(operator, x, groups, activation, pooling)
    given.expect_affine(operator, x, weight, bias, groups)
    result: tuple[Tensor, Tensor, Tensor] = _forward(x, weight, bias, groups, activation, pooling, eps)
    return result


def dual_norm_act_pool(
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    *,
    groups: int,
    activation: str,
    pooling: str,
    eps: float = EPS,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``norm_act_pool`` and its tangent along ``(dx, dweight, dbias)``.

    Args:
        x: as `norm_act_pool` takes it.
        dx: its tangent, same shape and dtype.
        weight: as `norm_act_pool` takes it.
        dweight: its tangent, weight's shape or that with G after S; None for None.
        bias: as `norm_act_pool` takes it.
        dbias: its tangent, shaped as dweight.
        groups: as `norm_act_pool` takes it.
        activation: the same.
        pooling: the same; a maximum's tangent is the chosen element's.
        eps: the same.

    Returns:
        ``y`` and ``dy``, mean and 1/std, and the tangents of these two.

    Raises:
        ValueError: for shapes, dtypes, devices or choices that do not go together.
        TypeError: for tensors whose derivative would be lost.
    """
    operator = "dual_norm_act_pool"
    checks.refuse_derivatives(operator, x, dx, weight, dweight, bias, dbias)
    given.expect_images(operator, x, groups, activation, pooling)
    given.expect_like_x(operator, x, dx=dx)
    given.expect_affine(operator, x, weight, bias, groups)
    given.expect_tangents(operator, x, weight, dweight, bias, dbias)
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _dual_forward(
        x, dx, weight, dweight, bias, dbias, groups, activation, pooling, eps
    )
    return result
