"""Kernel of `fastdistill_kernels.norm_act_pool`, value and tangent; truth is `reference.norm_act_pool`.

A program has one image and one unit of its channels: one norm group, or some channels with a norm each. Where the unit
fits a tile it is read once; larger ones are read twice, for statistics and for results.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.activation import activation_slope, activation_value
from fastdistill_kernels.gpu.launching import Capability, Launch, programs
from fastdistill_kernels.gpu.norm_act_pool_plan import Parameter, constants, in_layout
from fastdistill_kernels.gpu.norm_act_pool_tile import (
    Form,
    by_channel,
    channel_sums,
    group_sums,
    load_pair,
    moment_tangents,
    moments,
    normalised,
    outside_at,
    scaled,
    tile_at,
    tile_channels,
    window_sum,
    window_winner,
)
from fastdistill_kernels.reference.norm_act_pool import empty_in_layout, statistics_dtype
from fastdistill_kernels.reference.pooling import channels_last, pooled_size


@triton.jit
def loop_statistics(images, first, last_channel, TILES_C: tl.constexpr, TILES_P: tl.constexpr, FORM: tl.constexpr):
    """Mean, variance, mean tangent and covariance with the tangent of a unit of several tiles, ``[BC]`` each."""
    count = tl.zeros([FORM.BC], tl.float32)
    mean = tl.zeros([FORM.BC], tl.float32)
    squares = tl.zeros([FORM.BC], tl.float32)
    dmean = tl.zeros([FORM.BC], tl.float32)
    products = tl.zeros([FORM.BC], tl.float32)
    for tile_c in range(TILES_C):
        channel = tile_channels(first + tile_c * FORM.BC, FORM)
        for tile_p in range(TILES_P):
            place = tile_at(channel, last_channel, tile_p * FORM.BP, FORM)
            value, tangent = load_pair(images, place.offset, place.exists, FORM)
            more = group_sums(channel_sums(place.exists.to(tl.float32), FORM), FORM)
            divisor = tl.maximum(more, 1.0)
            centred, more_mean, variance = moments(value, place.exists, divisor, FORM)
            # Chan's update: sums about the means of a union from those of its parts
            share = more / tl.maximum(count + more, 1.0)
            apart = more_mean - mean
            squares += variance * more + apart * apart * count * share
            if FORM.DUAL:
                _, more_dmean, covariance = moment_tangents(tangent, centred, divisor, FORM)
                dapart = more_dmean - dmean
                products += covariance * more + apart * dapart * count * share
                dmean += dapart * share
            mean += apart * share
            count += more
    count = tl.maximum(count, 1.0)
    return mean, squares / count, dmean, products / count


@triton.jit
def store_forward(xhat, dxhat, affine, outputs, place, FORM: tl.constexpr):
    """Affine, activation and pooling of a normalised tile."""
    z, dz = scaled(xhat, dxhat, affine, place, FORM)
    u = activation_value(z, FORM.ACTIVATION)
    du = u
    if FORM.DUAL:
        du = activation_slope(z, FORM.ACTIVATION) * dz
    if FORM.POOLING == "none":
        y, dy = u, du
    elif FORM.POOLING == "avg":
        y, dy = window_sum(u, FORM) * 0.25, window_sum(du, FORM) * 0.25
    else:
        winner = window_winner(u, FORM)
        y, dy = window_sum(tl.where(winner, u, 0.0), FORM), window_sum(tl.where(winner, du, 0.0), FORM)
    offset, exists = outside_at(place, FORM)
    tl.store(outputs[0] + offset, y.to(outputs[0].dtype.element_ty), mask=exists)
    if FORM.DUAL:
        tl.store(outputs[1] + offset, dy.to(outputs[1].dtype.element_ty), mask=exists)


@triton.jit
def forward_kernel(
    x, dx, weight, dweight, bias, dbias, y, dy, mean, rstd, dmean, drstd,
    images, gradient_groups, weight_student, bias_student, dweight_student, dweight_group, dbias_student, dbias_group,
    eps,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, GROUPS: tl.constexpr, ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr, AFFINE: tl.constexpr, DUAL: tl.constexpr, LAST: tl.constexpr, UNITS: tl.constexpr,
    CHANNELS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, TILES_C: tl.constexpr, TILES_P: tl.constexpr,
):  # fmt: skip
    """One unit of one image; ``images`` are those of a gradient group."""
    POOLED: tl.constexpr = POOLING != "none"
    FORM: tl.constexpr = Form(
        C, H, W, GROUPS, ACTIVATION, POOLING, AFFINE, DUAL, LAST, BC, BP, GROUPS == 0 or GROUPS == C, POOLED
    )
    program = tl.program_id(0).to(tl.int64)
    image = program // UNITS
    first = (program % UNITS).to(tl.int32) * CHANNELS
    last_channel = tl.minimum(first + CHANNELS, C)
    group = image // images
    student = group // gradient_groups
    group = group % gradient_groups
    inside: tl.constexpr = C * H * W
    outside: tl.constexpr = C * (H // 2) * (W // 2) if POOLED else C * H * W
    x += image * inside
    y += image * outside
    if AFFINE != "none":
        weight += student * weight_student
        bias += student * bias_student
    if DUAL:
        dx += image * inside
        dy += image * outside
        if AFFINE != "none":
            dweight += student * dweight_student + group * dweight_group
            dbias += student * dbias_student + group * dbias_group
    pair, affine, outputs = (x, dx), (weight, dweight, bias, dbias), (y, dy)

    RESIDENT: tl.constexpr = TILES_C * TILES_P == 1
    WITHIN: tl.constexpr = C // GROUPS if GROUPS > 0 else 1
    count: tl.constexpr = WITHIN * H * W
    channel = tile_channels(first, FORM)
    r = tl.zeros([BC], tl.float32)
    average, daverage, dlog = r, r, r
    if GROUPS > 0:
        if RESIDENT:
            place = tile_at(channel, last_channel, 0, FORM)
            value, tangent = load_pair(pair, place.offset, place.exists, FORM)
            centred, average, variance = moments(value, place.exists, count, FORM)
            dcentred, covariance = centred, variance
            if DUAL:
                dcentred, daverage, covariance = moment_tangents(tangent, centred, count, FORM)
        else:
            average, variance, daverage, covariance = loop_statistics(pair, first, last_channel, TILES_C, TILES_P, FORM)
        r = 1.0 / tl.sqrt(variance + eps)
        # one program writes a norm group's statistics, from its first channel
        row = image * GROUPS + channel // WITHIN
        own = (channel < last_channel) & (channel % WITHIN == 0)
        tl.store(mean + row, average, mask=own)
        tl.store(rstd + row, r, mask=own)
        if DUAL:
            dlog = -r * r * covariance
            tl.store(dmean + row, daverage, mask=own)
            tl.store(drstd + row, r * dlog, mask=own)
    if GROUPS > 0 and RESIDENT:
        xhat = centred * by_channel(r, FORM)
        dxhat = xhat
        if DUAL:
            dxhat = dcentred * by_channel(r, FORM) + xhat * by_channel(dlog, FORM)
        store_forward(xhat, dxhat, affine, outputs, place, FORM)
    else:
        for tile_c in range(TILES_C):
            channel = tile_channels(first + tile_c * BC, FORM)
            for tile_p in range(TILES_P):
                place = tile_at(channel, last_channel, tile_p * BP, FORM)
                value, tangent = load_pair(pair, place.offset, place.exists, FORM)
                xhat, dxhat = normalised(value, tangent, (average, r, daverage, dlog), FORM)
                store_forward(xhat, dxhat, affine, outputs, place, FORM)


def _prepare(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    groups: int,
    activation: str,
    pooling: str,
    eps: float,
) -> tuple[list[Tensor], list[Launch]]:
    dual, last = dx is not None, channels_last(x)
    cut, fixed = constants(x, weight, groups, activation, pooling, dual=dual)
    dense = in_layout(last)
    axes = 0 if weight is None else weight.ndim - 1
    w, dw, b, db = (Parameter.of(one, axes, last) for one in (weight, dweight, bias, dbias))
    y, dy = (empty_in_layout(x, *pooled_size(x, pooling)) if wanted else None for wanted in (True, dual))
    mean, rstd, dmean, drstd = (
        torch.empty(*x.shape[:3], groups, dtype=statistics_dtype(x), device=x.device) if wanted else None
        for wanted in (True, True, dual, dual)
    )
    launch = Launch(
        kernel=forward_kernel,
        grid=programs(*x.shape[:3], cut.units),
        arguments={
            "x": dense(x),
            "dx": None if dx is None else dense(dx),
            "weight": w.tensor,
            "dweight": dw.tensor,
            "bias": b.tensor,
            "dbias": db.tensor,
            "y": y,
            "dy": dy,
            "mean": mean,
            "rstd": rstd,
            "dmean": dmean,
            "drstd": drstd,
            "images": x.shape[2],
            "gradient_groups": x.shape[1],
            "weight_student": w.student,
            "bias_student": b.student,
            "dweight_student": dw.student,
            "dweight_group": dw.group,
            "dbias_student": db.student,
            "dbias_group": db.group,
            "eps": eps,
        },
        constants=fixed,
        warps=cut.warps,
    )
    return [one for one in (y, dy, mean, rstd, dmean, drstd) if one is not None], [launch]


def prepare_norm_act_pool(*arguments: Any) -> tuple[list[Tensor], list[Launch]]:
    """Outputs of `norm_act_pool`, yet to be written, and the launches that write them."""
    x, weight, bias, *rest = arguments
    return _prepare(x, None, weight, None, bias, None, *rest)


def prepare_dual_norm_act_pool(*arguments: Any) -> tuple[list[Tensor], list[Launch]]:
    """Outputs of `dual_norm_act_pool`, yet to be written, and the launches that write them."""
    return _prepare(*arguments)


def norm_act_pool(*arguments: Any) -> tuple[Tensor, ...]:
    """What `reference.norm_act_pool.norm_act_pool` takes and returns, on the device."""
    outputs, launches = prepare_norm_act_pool(*arguments)
    for launch in launches:
        launch.run()
    return tuple(outputs)


def dual_norm_act_pool(*arguments: Any) -> tuple[Tensor, ...]:
    """What `reference.norm_act_pool.dual_norm_act_pool` takes and returns, on the device."""
    outputs, launches = prepare_dual_norm_act_pool(*arguments)
    for launch in launches:
        launch.run()
    return tuple(outputs)


# what a ConvNet-3-128 asks for on images of 32×32 and 28×28; then other norms, what no tile holds, curved activations,
# maxima, affine parameters of every pixel, and no norm
_VARIANTS = (
    # passes, channels, side, norm groups, activation, pooling, affine, channels of a pixel together, dtype
    ("forward", 128, 32, 128, "relu", "avg", "channel", False, "float32"),
    ("forward", 128, 28, 128, "relu", "avg", "channel", True, "bf16"),
    ("backward", 128, 16, 128, "relu", "avg", "channel", True, "float32"),
    ("backward", 128, 32, 128, "relu", "avg", "channel", True, "bf16"),
    ("dual_forward", 128, 32, 128, "relu", "avg", "channel", True, "float32"),
    ("dual_forward", 128, 28, 128, "relu", "avg", "channel", False, "bf16"),
    ("dual_backward", 128, 32, 128, "relu", "avg", "channel", False, "float32"),
    ("dual_backward", 128, 14, 128, "relu", "avg", "channel", True, "float32"),
    ("dual_backward", 128, 32, 128, "relu", "avg", "channel", True, "bf16"),
    ("dual_backward", 128, 8, 128, "relu", "avg", "channel", False, "bf16"),
    ("dual_forward", 128, 32, 1, "swish", "max", "channel", True, "bf16"),
    ("dual_backward", 128, 32, 1, "swish", "max", "channel", True, "bf16"),
    ("dual_backward", 128, 32, 128, "softplus", "max", "channel", True, "float32"),
    ("dual_backward", 128, 32, 128, "softplus", "none", "channel", True, "bf16"),
    ("dual_backward", 128, 32, 128, "relu", "max", "channel", True, "bf16"),
    ("dual_backward", 128, 32, 128, "leaky_relu", "avg", "channel", True, "bf16"),
    ("forward", 128, 16, 4, "relu", "max", "channel", True, "bf16"),
    ("dual_forward", 128, 32, 4, "swish", "none", "channel", False, "float32"),
    ("backward", 128, 8, 4, "sigmoid", "avg", "channel", True, "float32"),
    ("dual_backward", 128, 32, 4, "swish", "avg", "channel", True, "float32"),
    ("dual_backward", 128, 16, 4, "relu", "max", "channel", False, "bf16"),
    ("dual_forward", 128, 16, 1, "relu", "avg", "element", True, "float32"),
    ("backward", 128, 16, 1, "relu", "avg", "element", False, "bf16"),
    ("dual_backward", 128, 32, 1, "softplus", "none", "element", True, "float32"),
    ("dual_backward", 128, 16, 1, "relu", "avg", "element", True, "bf16"),
    ("dual_backward", 64, 32, 0, "relu", "max", "none", True, "bf16"),
    ("dual_forward", 6, 28, 0, "sigmoid", "avg", "none", False, "float32"),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for sixteen students, ten classes and 256 images; the same for every device."""
    found = {}
    for passes, channels, side, groups, activation, pooling, affine, last, name in _VARIANTS:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        launches = _example(passes, channels, side, groups, activation, pooling, affine, last, dtype)
        kind = f"{passes}/{channels}x{side}/{groups}/{activation}-{pooling}/{affine}"
        found[f"norm_act_pool/{kind}/{'last' if last else 'first'}/{name}"] = launches
    return found


def _example(
    passes: str,
    channels: int,
    side: int,
    groups: int,
    activation: str,
    pooling: str,
    affine: str,
    last: bool,
    dtype: torch.dtype,
) -> list[Launch]:
    from fastdistill_kernels.gpu import norm_act_pool_backward as backward

    def images(side: int) -> Tensor:
        sizes, order = ((side, side, channels), (0, 1, 2, 5, 3, 4)) if last else ((channels, side, side), range(6))
        return torch.empty(16, 10, 256, *sizes, dtype=dtype, device="meta").permute(*order)

    x, y = images(side), images(side if pooling == "none" else side // 2)
    own = {"none": None, "channel": (channels,), "element": (channels, side, side)}[affine]
    weight, tangent = (None if own is None else torch.empty(*lead, *own, device="meta") for lead in ((16,), (16, 10)))
    statistic = torch.empty(16, 10, 256, groups, device="meta")
    choices = (groups, activation, pooling)
    if passes == "forward":
        return prepare_norm_act_pool(x, weight, weight, *choices, 1e-5)[1]
    if passes == "dual_forward":
        return prepare_dual_norm_act_pool(x, x, weight, tangent, weight, tangent, *choices, 1e-5)[1]
    if passes == "backward":
        return backward.prepare_norm_act_pool_backward(y, x, weight, weight, statistic, statistic, *choices)[1]
    parameters, statistics = (weight, tangent, weight, tangent), (statistic,) * 4
    return backward.prepare_dual_norm_act_pool_backward(y, y, x, x, *parameters, *statistics, *choices, True)[1]
