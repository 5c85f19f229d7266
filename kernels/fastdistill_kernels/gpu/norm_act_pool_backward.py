"""Kernels of the backward pass of `norm_act_pool` and of its tangent; truth is `reference.norm_act_pool_backward`.

`backward_kernel` cuts images as the forward pass does: a unit that fits a tile is read once, a larger one twice, for
sums and for results. Affine gradients per channel fall out of those sums, one row an image, which torch then adds up;
those per pixel are sums over images, which `pixel_affine_kernel` makes by reading everything once more.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.activation import activation_curvature, activation_slope, activation_value
from fastdistill_kernels.gpu.launching import ALL_REGISTERS, Launch, programs
from fastdistill_kernels.gpu.norm_act_pool_plan import Parameter, constants, in_layout, pixel_plan
from fastdistill_kernels.gpu.norm_act_pool_tile import (
    Form,
    by_channel,
    by_window,
    channel_sums,
    group_sums,
    load_affine,
    load_pair,
    normalised,
    outside_at,
    scaled,
    tile_at,
    tile_channels,
    window_winner,
)
from fastdistill_kernels.reference.activation import CURVED
from fastdistill_kernels.reference.norm_act_pool import empty_in_layout, statistics_dtype
from fastdistill_kernels.reference.pooling import channels_last


@triton.jit
def load_statistics(statistics, image, channel, last_channel, FORM: tl.constexpr):
    """Saved statistics of every channel ``[BC]``: mean, 1/std r, tangents of the mean and of log r; zeros for none."""
    if FORM.GROUPS == 0:
        nothing = tl.zeros([FORM.BC], tl.float32)
        return nothing, nothing, nothing, nothing
    else:
        row = image * FORM.GROUPS + channel // (FORM.C // FORM.GROUPS)
        inside = channel < last_channel
        average = tl.load(statistics[0] + row, mask=inside, other=0.0)
        r = tl.load(statistics[1] + row, mask=inside, other=1.0)
        if FORM.DUAL:
            daverage = tl.load(statistics[2] + row, mask=inside, other=0.0)
            return average, r, daverage, tl.load(statistics[3] + row, mask=inside, other=0.0) / r
        else:
            return average, r, average, r


@triton.jit
def load_cotangents(cotangents, images, affine, statistics, place, FORM: tl.constexpr):
    """A tile of x̂, its tangent, the cotangent of ``z = w·x̂ + b``, its tangent; zero cotangents where none exists."""
    value, tangent = load_pair(images, place.offset, place.exists, FORM)
    xhat, dxhat = normalised(value, tangent, statistics, FORM)
    z, dz = scaled(xhat, dxhat, affine, place, FORM)
    offset, exists = outside_at(place, FORM)
    g, dg = load_pair(cotangents, offset, exists, FORM)
    if FORM.POOLING == "avg":
        g, dg = by_window(g * 0.25, FORM), by_window(dg * 0.25, FORM)
    elif FORM.POOLING == "max":
        winner = window_winner(activation_value(z, FORM.ACTIVATION), FORM)
        g, dg = tl.where(winner, by_window(g, FORM), 0.0), tl.where(winner, by_window(dg, FORM), 0.0)
    slope = activation_slope(z, FORM.ACTIVATION)
    gz = slope * g
    dgz = gz
    if FORM.DUAL:
        dgz = slope * dg
        if FORM.ACTIVATION == "softplus" or FORM.ACTIVATION == "sigmoid" or FORM.ACTIVATION == "swish":
            dgz += activation_curvature(z, FORM.ACTIVATION) * dz * g
    return xhat, dxhat, gz, dgz


@triton.jit
def times_weight(e, de, affine, place, FORM: tl.constexpr):
    """The cotangent of x̂ and its tangent from those of z."""
    if FORM.AFFINE == "none":
        return e, de
    else:
        w = load_affine(affine[0], place, FORM)
        if FORM.DUAL:
            return e * w, de * w + e * load_affine(affine[1], place, FORM)
        else:
            return e * w, e


@triton.jit
def four_sums(xhat, dxhat, e, de, FORM: tl.constexpr):
    """Sums over pixels ``[BC]`` of ``e`` and ``e·x̂``, and the tangents of these."""
    one, two = channel_sums(e, FORM), channel_sums(e * xhat, FORM)
    if FORM.DUAL:
        return one, two, channel_sums(de, FORM), channel_sums(de * xhat + e * dxhat, FORM)
    else:
        return one, two, one, two


@triton.jit
def store_sums(sums, gradients, image, channel, last_channel, VALUE: tl.constexpr, FORM: tl.constexpr):
    """An image's share of the affine gradients per channel."""
    row = image * FORM.C + channel
    inside = channel < last_channel
    if VALUE:
        tl.store(gradients[0] + row, sums[1], mask=inside)
        tl.store(gradients[2] + row, sums[0], mask=inside)
    if FORM.DUAL:
        tl.store(gradients[1] + row, sums[3], mask=inside)
        tl.store(gradients[3] + row, sums[2], mask=inside)


@triton.jit
def folded(sums, affine, channel, last_channel, FORM: tl.constexpr):
    """Means over norm groups of the cotangent of x̂ and of it times x̂, from the channels' sums; their tangents too."""
    count: tl.constexpr = (FORM.C // FORM.GROUPS) * FORM.H * FORM.W
    one, two, done, dtwo = sums
    if FORM.AFFINE == "channel":
        inside = channel < last_channel
        w = tl.load(affine[0] + channel, mask=inside, other=0.0).to(tl.float32)
        if FORM.DUAL:
            dw = tl.load(affine[1] + channel, mask=inside, other=0.0).to(tl.float32)
            done, dtwo = w * done + dw * one, w * dtwo + dw * two
        one, two = w * one, w * two
    one, two = group_sums(one, FORM) / count, group_sums(two, FORM) / count
    if FORM.DUAL:
        return one, two, group_sums(done, FORM) / count, group_sums(dtwo, FORM) / count
    else:
        return one, two, one, two


@triton.jit
def store_cotangents(outputs, xhat, dxhat, h, dh, statistics, folds, place, FORM: tl.constexpr):
    """``r (h − first − x̂·second)`` and its tangent, first and second being the means `folded` returns."""
    g, dg = h, dh
    if FORM.GROUPS > 0:
        r = by_channel(statistics[1], FORM)
        second = by_channel(folds[1], FORM)
        g = r * (h - by_channel(folds[0], FORM) - xhat * second)
        if FORM.DUAL:
            dg = r * (dh - by_channel(folds[2], FORM) - dxhat * second - xhat * by_channel(folds[3], FORM))
            dg += by_channel(statistics[3], FORM) * g
    tl.store(outputs[0] + place.offset, g.to(outputs[0].dtype.element_ty), mask=place.exists)
    if FORM.DUAL:
        tl.store(outputs[1] + place.offset, dg.to(outputs[1].dtype.element_ty), mask=place.exists)


@triton.jit
def loop_sums(
    cotangents,
    images,
    affine,
    saved,
    gradients,
    image,
    begin,
    last_channel,
    VALUE: tl.constexpr,
    TILES_C: tl.constexpr,
    TILES_P: tl.constexpr,
    FORM: tl.constexpr,
):
    """The means that `folded` returns of a unit of several tiles; stores its affine gradients per channel."""
    first = tl.zeros([FORM.BC], tl.float32)
    second = tl.zeros([FORM.BC], tl.float32)
    dfirst = tl.zeros([FORM.BC], tl.float32)
    dsecond = tl.zeros([FORM.BC], tl.float32)
    for tile_c in range(TILES_C):
        channel = tile_channels(begin + tile_c * FORM.BC, FORM)
        statistics = load_statistics(saved, image, channel, last_channel, FORM)
        one = tl.zeros([FORM.BC], tl.float32)
        two = tl.zeros([FORM.BC], tl.float32)
        done = tl.zeros([FORM.BC], tl.float32)
        dtwo = tl.zeros([FORM.BC], tl.float32)
        for tile_p in range(TILES_P):
            place = tile_at(channel, last_channel, tile_p * FORM.BP, FORM)
            xhat, dxhat, e, de = load_cotangents(cotangents, images, affine, statistics, place, FORM)
            if FORM.AFFINE == "element":
                e, de = times_weight(e, de, affine, place, FORM)
            more_one, more_two, more_done, more_dtwo = four_sums(xhat, dxhat, e, de, FORM)
            one += more_one
            two += more_two
            done += more_done
            dtwo += more_dtwo
        sums = (one, two, done, dtwo)
        if FORM.AFFINE == "channel":
            store_sums(sums, gradients, image, channel, last_channel, VALUE, FORM)
        one, two, done, dtwo = folded(sums, affine, channel, last_channel, FORM)
        first += one
        second += two
        dfirst += done
        dsecond += dtwo
    return first, second, dfirst, dsecond


@triton.jit
def backward_kernel(
    gy, dgy, x, dx, weight, dweight, bias, dbias, mean, rstd, dmean, drstd,
    gx, dgx, gweight, dgweight, gbias, dgbias,
    images, gradient_groups, weight_student, bias_student, dweight_student, dweight_group, dbias_student, dbias_group,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, GROUPS: tl.constexpr, ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr, AFFINE: tl.constexpr, DUAL: tl.constexpr, VALUE: tl.constexpr, LAST: tl.constexpr,
    UNITS: tl.constexpr, CHANNELS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, TILES_C: tl.constexpr,
    TILES_P: tl.constexpr,
):  # fmt: skip
    """One unit of one image; ``images`` are those of a gradient group."""
    POOLED: tl.constexpr = POOLING != "none"
    FORM: tl.constexpr = Form(
        C, H, W, GROUPS, ACTIVATION, POOLING, AFFINE, DUAL, LAST, BC, BP, GROUPS == 0 or GROUPS == C, POOLED
    )
    program = tl.program_id(0).to(tl.int64)
    image = program // UNITS
    begin = (program % UNITS).to(tl.int32) * CHANNELS
    last_channel = tl.minimum(begin + CHANNELS, C)
    group = image // images
    student = group // gradient_groups
    group = group % gradient_groups
    inside: tl.constexpr = C * H * W
    outside: tl.constexpr = C * (H // 2) * (W // 2) if POOLED else C * H * W
    x += image * inside
    gx += image * inside
    gy += image * outside
    if AFFINE != "none":
        weight += student * weight_student
        bias += student * bias_student
    if DUAL:
        dx += image * inside
        dgx += image * inside
        dgy += image * outside
        if AFFINE != "none":
            dweight += student * dweight_student + group * dweight_group
            dbias += student * dbias_student + group * dbias_group
    cotangents, pair, affine = (gy, dgy), (x, dx), (weight, dweight, bias, dbias)
    saved, outputs, gradients = (mean, rstd, dmean, drstd), (gx, dgx), (gweight, dgweight, gbias, dgbias)

    if TILES_C * TILES_P == 1:
        channel = tile_channels(begin, FORM)
        statistics = load_statistics(saved, image, channel, last_channel, FORM)
        place = tile_at(channel, last_channel, 0, FORM)
        xhat, dxhat, e, de = load_cotangents(cotangents, pair, affine, statistics, place, FORM)
        if AFFINE == "element":
            e, de = times_weight(e, de, affine, place, FORM)
        folds = statistics
        if GROUPS > 0:
            sums = four_sums(xhat, dxhat, e, de, FORM)
            if AFFINE == "channel":
                store_sums(sums, gradients, image, channel, last_channel, VALUE, FORM)
            folds = folded(sums, affine, channel, last_channel, FORM)
        if AFFINE == "channel":
            e, de = times_weight(e, de, affine, place, FORM)
        store_cotangents(outputs, xhat, dxhat, e, de, statistics, folds, place, FORM)
    else:
        nothing = tl.zeros([BC], tl.float32)
        folds = (nothing, nothing, nothing, nothing)
        if GROUPS > 0:
            folds = loop_sums(
                cotangents, pair, affine, saved, gradients, image, begin, last_channel, VALUE, TILES_C, TILES_P, FORM
            )
        for tile_c in range(TILES_C):
            channel = tile_channels(begin + tile_c * BC, FORM)
            statistics = load_statistics(saved, image, channel, last_channel, FORM)
            for tile_p in range(TILES_P):
                place = tile_at(channel, last_channel, tile_p * BP, FORM)
                xhat, dxhat, e, de = load_cotangents(cotangents, pair, affine, statistics, place, FORM)
                h, dh = times_weight(e, de, affine, place, FORM)
                store_cotangents(outputs, xhat, dxhat, h, dh, statistics, folds, place, FORM)


@triton.jit
def pixel_affine_kernel(
    gy, dgy, x, dx, weight, dweight, bias, dbias, mean, rstd, dmean, drstd, gweight, dgweight, gbias, dgbias,
    images, gradient_groups, weight_student, bias_student, dweight_student, dweight_group, dbias_student, dbias_group,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, GROUPS: tl.constexpr, ACTIVATION: tl.constexpr,
    POOLING: tl.constexpr, DUAL: tl.constexpr, VALUE: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr,
    BP: tl.constexpr, TILES_C: tl.constexpr, TILES_P: tl.constexpr,
):  # fmt: skip
    """Affine gradients of one tile of pixels, summed over the images of a gradient group."""
    POOLED: tl.constexpr = POOLING != "none"
    FORM: tl.constexpr = Form(C, H, W, GROUPS, ACTIVATION, POOLING, "element", DUAL, LAST, BC, BP, GROUPS == C, POOLED)
    program = tl.program_id(0).to(tl.int64)
    tile = (program % (TILES_C * TILES_P)).to(tl.int32)
    pair = program // (TILES_C * TILES_P)
    student = pair // gradient_groups
    group = pair % gradient_groups
    inside: tl.constexpr = C * H * W
    outside: tl.constexpr = C * (H // 2) * (W // 2) if POOLED else C * H * W
    weight += student * weight_student
    bias += student * bias_student
    x += pair * images * inside
    gy += pair * images * outside
    if DUAL:
        dx += pair * images * inside
        dgy += pair * images * outside
        dweight += student * dweight_student + group * dweight_group
        dbias += student * dbias_student + group * dbias_group
    affine, saved = (weight, dweight, bias, dbias), (mean, rstd, dmean, drstd)
    channel = tile_channels(tile // TILES_P * BC, FORM)
    place = tile_at(channel, C, tile % TILES_P * BP, FORM)
    of_weight = tl.zeros(place.offset.shape, tl.float32)
    of_bias = tl.zeros(place.offset.shape, tl.float32)
    dof_weight = tl.zeros(place.offset.shape, tl.float32)
    dof_bias = tl.zeros(place.offset.shape, tl.float32)
    for image in range(images):
        statistics = load_statistics(saved, pair * images + image, channel, C, FORM)
        xhat, dxhat, gz, dgz = load_cotangents((gy, dgy), (x, dx), affine, statistics, place, FORM)
        if VALUE:
            of_weight += gz * xhat
            of_bias += gz
        if DUAL:
            dof_weight += dgz * xhat + gz * dxhat
            dof_bias += dgz
            dx += inside
            dgy += outside
        x += inside
        gy += outside
    row = pair * inside + place.offset
    if VALUE:
        tl.store(gweight + row, of_weight, mask=place.exists)
        tl.store(gbias + row, of_bias, mask=place.exists)
    if DUAL:
        tl.store(dgweight + row, dof_weight, mask=place.exists)
        tl.store(dgbias + row, dof_bias, mask=place.exists)


def _gradient(x: Tensor, weight: Tensor | None, last: bool, wanted: bool) -> Tensor | None:
    """A buffer of affine gradients: a row an image, or ``[S, G, ...]`` with axes ordered as in x; None for none."""
    if weight is None or not wanted:
        return None
    students, groups, images, channels, height, width = x.shape
    shape: tuple[int, ...] = (students, groups, images, channels)
    if weight.ndim == 4:
        shape = (students, groups, *((height, width, channels) if last else (channels, height, width)))
    return torch.empty(shape, dtype=statistics_dtype(x), device=x.device)


def _prepare(
    gy: Tensor,
    dgy: Tensor | None,
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor | None,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dmean: Tensor | None,
    drstd: Tensor | None,
    groups: int,
    activation: str,
    pooling: str,
    value: bool,
) -> tuple[list[Tensor | None], list[Launch]]:
    dual, last = dx is not None, channels_last(x)
    crowded = dual and (activation in CURVED or pooling == "max")
    cut, fixed = constants(x, weight, groups, activation, pooling, dual=dual, crowded=crowded)
    dense = in_layout(last)
    axes = 0 if weight is None else weight.ndim - 1
    w, dw, b, db = (Parameter.of(one, axes, last) for one in (weight, dweight, bias, dbias))
    gx, dgx = (empty_in_layout(x, *x.shape[4:]) if wanted else None for wanted in (True, dual))
    gradients = [_gradient(x, weight, last, wanted) for wanted in (value, dual, value, dual)]
    inputs = {
        "gy": dense(gy),
        "dgy": None if dgy is None else dense(dgy),
        "x": dense(x),
        "dx": None if dx is None else dense(dx),
        "weight": w.tensor,
        "dweight": dw.tensor,
        "bias": b.tensor,
        "dbias": db.tensor,
        "mean": mean.contiguous(),
        "rstd": rstd.contiguous(),
        "dmean": None if dmean is None else dmean.contiguous(),
        "drstd": None if drstd is None else drstd.contiguous(),
    }
    affine = dict(zip(("gweight", "dgweight", "gbias", "dgbias"), gradients, strict=True))
    sizes = {
        "images": x.shape[2],
        "gradient_groups": x.shape[1],
        "weight_student": w.student,
        "bias_student": b.student,
        "dweight_student": dw.student,
        "dweight_group": dw.group,
        "dbias_student": db.student,
        "dbias_group": db.group,
    }
    fixed["VALUE"] = value and weight is not None
    launches = [
        Launch(
            kernel=backward_kernel,
            grid=programs(*x.shape[:3], cut.units),
            arguments=inputs | {"gx": gx, "dgx": dgx} | affine | sizes,
            constants=fixed,
            warps=cut.warps,
        )
    ]
    if weight is not None and weight.ndim == 4:
        tile = pixel_plan(x, pooling)
        launches.append(
            Launch(
                kernel=pixel_affine_kernel,
                grid=programs(*x.shape[:2], tile["TILES_C"], tile["TILES_P"]),
                arguments=inputs | affine | sizes,
                constants={key: fixed[key] for key in pixel_affine_kernel.arg_names if key in fixed} | tile,
                warps=4,
                registers=ALL_REGISTERS if crowded else None,
            )
        )
    return [gx, dgx, *gradients], launches


def _finished(gradient: Tensor | None, x: Tensor, last: bool) -> Tensor:
    """An affine gradient as the operator returns it; of size 0 for none."""
    if gradient is None:
        return torch.empty(0, dtype=statistics_dtype(x), device=x.device)
    if gradient.ndim == 4:
        return gradient.sum(2)
    return gradient.movedim(-1, -3).contiguous() if last else gradient


def _run(outputs: list[Tensor | None], launches: list[Launch], x: Tensor) -> list[Tensor]:
    for launch in launches:
        launch.run()
    gx, dgx, *gradients = outputs
    last = channels_last(x)
    return [one for one in (gx, dgx) if one is not None] + [_finished(one, x, last) for one in gradients]


def prepare_norm_act_pool_backward(*arguments: Any) -> tuple[list[Tensor | None], list[Launch]]:
    """Buffers of `norm_act_pool_backward`, yet to be written, and the launches that write them."""
    gy, x, weight, bias, mean, rstd, groups, activation, pooling = arguments
    values = (weight, None, bias, None, mean, rstd, None, None)
    return _prepare(gy, None, x, None, *values, groups, activation, pooling, True)


def prepare_dual_norm_act_pool_backward(*arguments: Any) -> tuple[list[Tensor | None], list[Launch]]:
    """Buffers of `dual_norm_act_pool_backward`, yet to be written, and the launches that write them."""
    return _prepare(*arguments)


def norm_act_pool_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """What `reference.norm_act_pool_backward.norm_act_pool_backward` takes and returns, on the device."""
    outputs, launches = prepare_norm_act_pool_backward(*arguments)
    gx, gweight, _, gbias, _ = _run(outputs, launches, arguments[1])
    return gx, gweight, gbias


def dual_norm_act_pool_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """What `reference.norm_act_pool_backward.dual_norm_act_pool_backward` takes and returns, on the device."""
    outputs, launches = prepare_dual_norm_act_pool_backward(*arguments)
    return tuple(_run(outputs, launches, arguments[2]))
