"""A network's first block in one: 3x3 convolution from few channels, instance norm, activation and 2x2 pooling.

    z = x ∗ w + b    ẑ = (z − mean z) / √(var z + eps)    u = γ·ẑ + β    y = pool(a(u))

with statistics of each image and channel, or ``u = z`` without norm. Images ``x [S, G, n, D, H, W]``, D at most 3,
each leading axis of 1 or stride 0 where it is shared: the kernels read a copy of every distinct image with its zeros
around it, not one of every student and group. Weights
``[S, O, D, 3, 3]`` and vectors ``[S, O]``, in dual operators their tangents ``[S, G, …]`` or ``[S, …]``; images have no
tangent. Departures: the convolution is 3x3 with a stride of 1, and the norm is one of each channel (instance norm) or
none; for other kernels, strides and norms use the operators of convolution and of norm.

The convolution's output ``S·G·n·O·H·W`` never reaches memory: a backward pass computes it again, which costs
``2·9·D`` operations an element where reading it would cost its bytes. Least traffic: images read, ``y`` (a quarter of
``z`` with pooling) written; backward ``gy`` and images read. Products are ``2·9·D`` FLOPs an element of ``z``, for each
convolution or gradient; other arithmetic is counted per element of ``z`` as the formulas are written (`ARITHMETIC`).

The kernel's statistics are those of the image's patches seen through the filter, ``wᵀCw``: where a filter sees little
of what an image holds, a Laplacian of a smooth one say, their relative error is float32's rounding times
``|w|² tr C / var z``, more than that of two passes over ``z``. They are float32 in every precision; the backward
pass's ``C w`` is a product in TF32, like the others of that pass, for TF32 and bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.checks import refuse_derivatives
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.first_block_checks import check, paired
from fastdistill_kernels.operators import register
from fastdistill_kernels.reference import first_block as reference
from fastdistill_kernels.reference.first_block import SIDE, empty_output, group_count, pooled

# additions, multiplications and function values an element of z: without norm, and what instance norm adds
ARITHMETIC = {"forward": (3, 7), "backward": (5, 15), "dual": (7, 18), "dual_backward": (13, 46)}


def cost_first_block(
    students: int,
    groups: int,
    images: int,
    depth: int,
    height: int,
    width: int,
    channels: int,
    padding: int,
    pooling: str,
    itemsize: int,
    *,
    kind: str = "forward",
    normed: bool = True,
    inputs: bool = False,
    value: bool = True,
) -> Cost:
    """What one call takes at least.

    Args:
        students: S.
        groups: G.
        images: n.
        depth: D.
        height: of the images.
        width: of the images.
        channels: O.
        padding: of the convolution.
        pooling: as of `first_block`.
        itemsize: bytes of an element of images, weights and outputs.
        kind: ``forward``, ``backward``, ``dual`` or ``dual_backward``.
        normed: whether there is a norm.
        inputs: of a backward pass: with gradients of the images.
        value: of a dual backward pass: with gradients beside tangents.
    """
    pairs, kernel = students * groups, SIDE * SIDE * depth
    convolved = pairs * images * channels * pooled(height, padding, "none") * pooled(width, padding, "none")
    output = pairs * images * channels * pooled(height, padding, pooling) * pooled(width, padding, pooling)
    pictures = images * depth * height * width
    # convolutions and gradients: z, ż; then of weights and images those of value and tangent
    carried = 2 if kind.startswith("dual") else 1
    wanted = (1 + value if kind == "dual_backward" else 1) if kind.endswith("backward") else 0
    of_images = (2 + value if kind == "dual_backward" else 1) if inputs else 0
    products = 2 * kernel * convolved * (carried + wanted + (of_images if wanted else 0))
    plain, norm = ARITHMETIC[kind]
    parameters = channels * (kernel + (3 if normed else 1))
    read = pictures * pairs + students * parameters
    moved = itemsize * (read + output * carried + (pairs * parameters if carried == 2 else 0))
    moved += 4 * pairs * parameters * wanted + (itemsize * pairs * pictures * wanted if inputs else 0)
    return Cost(products + convolved * (plain + (norm if normed else 0)), moved, products)


def count_flops(
    kind: str, groups: int, x: torch.Size, weight: torch.Size, normed: bool, padding: int, pooling: str, **flags: bool
) -> int:
    """The cost's arithmetic from shapes as torch's counter hands them over."""
    students, channels = weight[:2]
    n, depth, height, width = x[2:]
    return cost_first_block(
        students, groups, n, depth, height, width, channels, padding, pooling, 1, kind=kind, normed=normed, **flags
    ).flops


def _fake(
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
) -> Tensor:
    return empty_output(x, weight, x.shape[1], padding, pooling)


def _fake_dual(
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
) -> tuple[Tensor, Tensor]:
    y, dy = (empty_output(x, weight, group_count(x, dweight), padding, pooling) for _ in range(2))
    return y, dy


def _flops(x: Any, weight: Any, bias: Any, norm_weight: Any, norm_bias: Any, *choices: Any) -> int:
    return count_flops("forward", x[1], x, weight, norm_weight is not None, choices[0], choices[2])


def _flops_dual(x: Any, weight: Any, dweight: Any, bias: Any, dbias: Any, norm_weight: Any, *rest: Any) -> int:
    groups = dweight[1] if len(dweight) == 6 and dweight[1] != 1 else x[1]
    return count_flops("dual", groups, x, weight, norm_weight is not None, rest[3], rest[5])


OWN = "Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias"
PAIRS = (
    "Tensor x, Tensor weight, Tensor dweight, Tensor? bias, Tensor? dbias, Tensor? norm_weight, Tensor? dnorm_weight, "
    "Tensor? norm_bias, Tensor? dnorm_bias"
)
CHOICES = "int padding, str activation, str pooling, float eps, str precision"

_forward = register(
    f"first_block({OWN}, {CHOICES}) -> Tensor",
    reference=reference.first_block,
    kernels="first_block",
    fake=_fake,
    flops=_flops,
)
_dual = register(
    f"dual_first_block({PAIRS}, {CHOICES}) -> (Tensor, Tensor)",
    reference=reference.dual_first_block,
    kernels="first_block",
    fake=_fake_dual,
    flops=_flops_dual,
)


def first_block(
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
) -> Tensor:
    """The block's output.

    Args:
        x: ``[S, G, n, D, H, W]``, D at most 3; S and G may be 1 or expanded.
        weight: ``[S, O, D, 3, 3]``, of the images' dtype and device as all others.
        bias: ``[S, O]`` or None.
        norm_weight: ``[S, O]``, or None for a block without norm.
        norm_bias: ``[S, O]``, None together with ``norm_weight``.
        padding: of the convolution, with zeros on all sides.
        activation: one of ``ACTIVATIONS``.
        pooling: ``avg`` or ``max`` over 2x2 (an odd last row or column is cropped), or ``none``.
        eps: added to the variance.
        precision: of float32 products: ``ieee``, or ``tf32`` on tensor cores.

    Returns:
        ``[S, G, n, O, H', W']`` in the images' dtype.

    Raises:
        TypeError: for a tensor whose derivative would be dropped.
        ValueError: for shapes, dtypes, devices or choices that do not fit.
    """
    own = (weight, bias, norm_weight, norm_bias)
    refuse_derivatives("first_block", x, *own)
    check("first_block", x, own, padding, activation, pooling, precision)
    y: Tensor = _forward(x, *own, padding, activation, pooling, eps, precision)
    return y


def dual_first_block(
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
) -> tuple[Tensor, Tensor]:
    """The block's output and its tangent along tangents of the weights.

    Args:
        x: as of `first_block`, with all others that it has; a G of 1 goes with tangents of any number of groups.
        weight: same.
        dweight: its tangent, ``[S, G, O, D, 3, 3]`` or, of all groups, ``[S, O, D, 3, 3]``.
        bias: same.
        dbias: its tangent, ``[S, G, O]`` or ``[S, O]`` like ``dweight``; None where ``bias`` is, as the others.
        norm_weight: same.
        dnorm_weight: its tangent.
        norm_bias: same.
        dnorm_bias: its tangent.
        padding: as of `first_block`.
        activation: same.
        pooling: same.
        eps: same.
        precision: same.

    Returns:
        ``y`` and ``ẏ [S, G, n, O, H', W']`` in the images' dtype.

    Raises:
        TypeError: for a tensor whose derivative would be dropped.
        ValueError: for shapes, dtypes, devices or choices that do not fit.
    """
    own, along = (weight, bias, norm_weight, norm_bias), (dweight, dbias, dnorm_weight, dnorm_bias)
    refuse_derivatives("dual_first_block", x, *own, *along)
    check("dual_first_block", x, own, padding, activation, pooling, precision, along=along)
    found: tuple[Tensor, Tensor] = _dual(x, *paired(own, along), padding, activation, pooling, eps, precision)
    return found
