"""Kernel of `fastdistill_kernels.dsa`: a program takes an image, or its share of one, and does what its pair drew.

Forward and transpose are one kernel. Which operation it is, is read on the device: nothing waits, nothing is computed
in vain, and the branch is the same for all threads of a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.dsa import LONGEST
from fastdistill_kernels.gpu.launching import Capability, Launch, addressable, power_of_two
from fastdistill_kernels.reference import dsa as reference
from fastdistill_kernels.reference.dsa import OPERATIONS

_CHUNK = 512  # values of a step: eight of each of 128 threads, whose nine taps stay in registers
_VALUES_OF_WARP = 128
_PROGRAMS = 2048  # a few for each multiprocessor: fewer images than this are shared out among programs
_COLOR, _CROP, _CUTOUT, _FLIP, _SCALE, _ROTATE = (tl.constexpr(code) for code in range(len(OPERATIONS)))
_NONE, _BITS = tl.constexpr(7), tl.constexpr(3)
_LAST = tl.constexpr(LONGEST)
_BRIGHTNESS = tl.constexpr(reference.BRIGHTNESS)
_SATURATION = tl.constexpr(reference.SATURATION)
_CONTRAST = tl.constexpr(reference.CONTRAST)
_MIRROR = tl.constexpr(reference.FLIP)
_LEAST = tl.constexpr(1 / reference.SCALE)
_SPAN = tl.constexpr(reference.SCALE - 1 / reference.SCALE)
_ARC = tl.constexpr(2 * reference.ROTATE)


@triton.jit
def _whole(number, COUNT: tl.constexpr):
    """An integer in ``[0, COUNT)``, rounded as the reference does."""
    return tl.minimum((number * COUNT).to(tl.int32), COUNT - 1)


@triton.jit
def _drawn(p_operation, codes):
    """The code of a pair's operation, ``_NONE`` for an index that the list does not have."""
    index = tl.load(p_operation)
    code = (codes >> (_BITS * tl.minimum(tl.maximum(index, 0), _LAST))) & _NONE
    return tl.where(index < 0, _NONE, code).to(tl.int32)


@triton.jit
def _matrix(code, first, second, ASPECT: tl.constexpr, SLANT: tl.constexpr):
    """``x' = xx·x + xy·y`` and ``y' = yx·x + yy·y``, in pixels from the image's centre."""
    angle = (first - 0.5) * _ARC
    # at most a quarter of a radian: the series ends below float32's last bit, and needs no stack as CUDA's cosine does
    square = angle * angle
    sine = angle * (1 - square * (1 / 6 - square * (1 / 120 - square * (1 / 5040))))
    cosine = 1 - square * (0.5 - square * (1 / 24 - square * (1 / 720 - square * (1 / 40320))))
    scaled = code == _SCALE
    xx = tl.where(scaled, _LEAST + first * _SPAN, cosine)
    yy = tl.where(scaled, _LEAST + second * _SPAN, cosine)
    slanted = tl.where(scaled, 0.0, sine)
    return xx, -slanted * ASPECT, slanted * SLANT, yy


@triton.jit
def _square(number, EXTENT: tl.constexpr, SIDE: tl.constexpr):
    """First and last position that cutout hides."""
    low = _whole(number, EXTENT + 1 - SIDE % 2) - SIDE // 2
    return tl.minimum(tl.maximum(low, 0), EXTENT - 1), tl.minimum(tl.maximum(low + SIDE - 1, 0), EXTENT - 1)


@triton.jit
def _moved(
    p_image, o_y, o_x, m, code, first, second, stride_h, stride_w,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH_H: tl.constexpr, REACH_W: tl.constexpr,
    SIDE_H: tl.constexpr, SIDE_W: tl.constexpr, TRANSPOSE: tl.constexpr,
):  # fmt: skip
    """Crop, cutout, flip and no operation: one value read for one written, or none."""
    down = _whole(first, 2 * REACH_H + 1) - REACH_H
    right = _whole(second, 2 * REACH_W + 1) - REACH_W
    if TRANSPOSE:
        down, right = -down, -right
    cropped = code == _CROP
    at_y = o_y + tl.where(cropped, down, 0)
    at_x = o_x + tl.where(cropped, right, 0)
    at_x = tl.where((code == _FLIP) & (first < _MIRROR), WIDTH - 1 - o_x, at_x)
    top, bottom = _square(first, HEIGHT, SIDE_H)
    left, end = _square(second, WIDTH, SIDE_W)
    hidden = (code == _CUTOUT) & (o_y >= top) & (o_y <= bottom) & (o_x >= left) & (o_x <= end)
    seen = (at_y >= 0) & (at_y < HEIGHT) & (at_x >= 0) & (at_x < WIDTH) & (hidden == 0)
    return tl.load(p_image + at_y * stride_h + at_x * stride_w, mask=m & seen, other=0.0).to(tl.float32)


@triton.jit
def _sampled(p_image, o_y, o_x, m, xx, xy, yx, yy, stride_h, stride_w, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Bilinear from four values around the mapped position, zeros outside."""
    from_y, from_x = o_y - (HEIGHT - 1) * 0.5, o_x - (WIDTH - 1) * 0.5
    at_y = yx * from_x + yy * from_y + (HEIGHT - 1) * 0.5
    at_x = xx * from_x + xy * from_y + (WIDTH - 1) * 0.5
    low_y, low_x = tl.floor(at_y), tl.floor(at_x)
    b_sum = tl.zeros(m.shape, tl.float32)
    for i in tl.static_range(2):
        y = low_y.to(tl.int32) + i
        for j in tl.static_range(2):
            x = low_x.to(tl.int32) + j
            weight = (1 - tl.abs(at_y - low_y - i)) * (1 - tl.abs(at_x - low_x - j))
            seen = m & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
            b_sum += weight * tl.load(p_image + y * stride_h + x * stride_w, mask=seen, other=0.0).to(tl.float32)
    return b_sum


@triton.jit
def _gathered(
    p_image, o_short, o_long, m, ss, sl, ls, ll, stride_short, stride_long, SHORT: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """The transpose of `_sampled`: every value gathers from the positions that map to within a pixel of its own.

    Along the shorter axis these are at most three, and along the longer one at most three on each of its lines.
    """
    centre_short, centre_long = (SHORT - 1) * 0.5, (LONG - 1) * 0.5
    own_short, own_long = o_short - centre_short, o_long - centre_long
    share = 1 / (ss * ll - sl * ls)
    reach = (tl.abs(ll) + tl.abs(sl)) * share
    low_short = tl.floor((ll * own_short - sl * own_long) * share - reach + centre_short) + 1
    b_sum = tl.zeros(m.shape, tl.float32)
    for i in range(3):
        short = low_short + i
        from_short = short - centre_short
        low_long = tl.floor((own_long - ls * from_short - 1) / ll + centre_long) + 1
        for j in tl.static_range(3):
            long = low_long + j
            from_long = long - centre_long
            off_short = tl.abs(ss * from_short + sl * from_long - own_short)
            off_long = tl.abs(ls * from_short + ll * from_long - own_long)
            weight = tl.maximum(1 - off_short, 0.0) * tl.maximum(1 - off_long, 0.0)
            seen = m & (short >= 0) & (short < SHORT) & (long >= 0) & (long < LONG) & (weight > 0)
            o = short.to(tl.int32) * stride_short + long.to(tl.int32) * stride_long
            b_sum += weight * tl.load(p_image + o, mask=seen, other=0.0).to(tl.float32)
    return b_sum


@triton.jit(do_not_specialize=["codes"])
def dsa_kernel(
    p_images, p_operation, p_parameters, p_out, codes, groups, count,
    stride_s, stride_g, stride_n, stride_d, stride_h, stride_w,
    stride_os, stride_og, stride_ps, stride_pg, stride_pn, stride_pk,
    DEPTH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, SIDE_H: tl.constexpr, SIDE_W: tl.constexpr,
    ASPECT: tl.constexpr, SLANT: tl.constexpr, FLAT: tl.constexpr, TRANSPOSE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Program ``i·SPLIT + j`` does every ``SPLIT``-th block of pixels of image ``i``, from the ``j``-th on."""
    pid = tl.program_id(0).to(tl.int64)
    image, part = pid // SPLIT, (pid % SPLIT).to(tl.int32)
    pair, member = image // count, image % count
    student, group = pair // groups, pair % groups
    code = _drawn(p_operation + student * stride_os + group * stride_og, codes)
    p_number = p_parameters + student * stride_ps + group * stride_pg + member * stride_pn
    first = tl.load(p_number).to(tl.float32)
    second = tl.load(p_number + stride_pk).to(tl.float32)
    third = tl.load(p_number + 2 * stride_pk).to(tl.float32)

    o_depth = tl.arange(0, BLOCK_D)[:, None]
    o_block = tl.arange(0, BLOCK)[None, :]
    m_depth = o_depth < DEPTH
    p_image = p_images + student * stride_s + group * stride_g + member * stride_n + o_depth * stride_d
    p_own = p_out + image * (DEPTH * HEIGHT * WIDTH) + o_depth * (HEIGHT * WIDTH)
    xx, xy, yx, yy = _matrix(code, first, second, ASPECT, SLANT)

    mean = 0.0
    if code == _COLOR:  # every program of an image sums all of it, in the same order
        b_sum = tl.zeros((BLOCK_D, BLOCK), tl.float32)
        for step in range(SPLIT * STEPS):
            o_pixel = step * BLOCK + o_block
            o = o_pixel if FLAT else (o_pixel // WIDTH) * stride_h + (o_pixel % WIDTH) * stride_w
            m = m_depth & (o_pixel < HEIGHT * WIDTH)
            b_sum += tl.load(p_image + o, mask=m, other=0.0).to(tl.float32)
        mean = tl.sum(b_sum) / (DEPTH * HEIGHT * WIDTH)

    for step in range(STEPS):
        o_pixel = (step * SPLIT + part) * BLOCK + o_block
        o_y, o_x = o_pixel // WIDTH, o_pixel % WIDTH
        m = m_depth & (o_pixel < HEIGHT * WIDTH)
        if code == _COLOR:
            o = o_pixel if FLAT else o_y * stride_h + o_x * stride_w
            b_own = tl.load(p_image + o, mask=m, other=0.0).to(tl.float32)
            grey = (tl.sum(b_own, 0) / DEPTH)[None, :]
            saturation, contrast = second * _SATURATION, third + _CONTRAST
            b = contrast * (saturation * b_own + (1 - saturation) * grey) + (1 - contrast) * mean
            if not TRANSPOSE:
                b += (first - 0.5) * _BRIGHTNESS
        elif (code == _SCALE) | (code == _ROTATE):
            if not TRANSPOSE:
                b = _sampled(p_image, o_y, o_x, m, xx, xy, yx, yy, stride_h, stride_w, HEIGHT, WIDTH)
            elif HEIGHT <= WIDTH:
                b = _gathered(p_image, o_y, o_x, m, yy, yx, xy, xx, stride_h, stride_w, HEIGHT, WIDTH)
            else:
                b = _gathered(p_image, o_x, o_y, m, xx, xy, yx, yy, stride_w, stride_h, WIDTH, HEIGHT)
        else:
            b = _moved(
                p_image, o_y, o_x, m, code, first, second, stride_h, stride_w,
                HEIGHT, WIDTH, REACH_H, REACH_W, SIDE_H, SIDE_W, TRANSPOSE,
            )  # fmt: skip
        tl.store(p_own + o_pixel, b, mask=m)


def blocks(images: int, depth: int, pixels: int) -> tuple[int, int, int, int, int]:
    """Channels and pixels of a block, programs of an image, steps of a program, and its warps."""
    channels = power_of_two(depth)
    block = min(power_of_two(pixels), max(_CHUNK // channels, 1))
    count = -(-pixels // block)
    split = min(count, max(_PROGRAMS // images, 1))
    return channels, block, split, -(-count // split), min(max(channels * block // _VALUES_OF_WARP, 1), 4)


def aspects(height: int, width: int, align_corners: bool) -> tuple[float, float]:
    """How far a turn moves a pixel along x for one along y, and the reverse, over the sine of its angle.

    Positions are normalised by the extents, or by the extents less one with ``align_corners``; an extent of nothing
    has a single position, which stays.
    """
    tall, wide = (height - 1, width - 1) if align_corners else (height, width)
    return (wide / tall, tall / wide) if tall and wide else (0.0, 0.0)


def prepare_dsa(
    images: Tensor,
    operation: Tensor,
    parameters: Tensor,
    operations: Sequence[int],
    align_corners: bool,
    *,
    transpose: bool,
) -> tuple[Tensor, list[Launch]]:
    """The result and the launch that fills it."""
    count, depth, height, width = images.shape[2:]
    out = torch.empty(*operation.shape, count, depth, height, width, dtype=images.dtype, device=images.device)
    if out.numel() == 0:
        return out, []
    images = addressable(images, 3)
    strides = [0 if extent == 1 else stride for extent, stride in zip(images.shape, images.stride(), strict=True)]
    flat = images.stride(5) == 1 and images.stride(4) == width
    of_member = parameters.stride(2) if parameters.shape[2] > 1 else 0
    channels, block, split, steps, warps = blocks(out[..., 0, 0, 0].numel(), depth, height * width)
    aspect, slant = aspects(height, width, align_corners)
    codes = [*operations, *[_NONE.value] * (LONGEST + 1 - len(operations))]
    launch = Launch(
        kernel=dsa_kernel,
        grid=prod(out.shape[:3]) * split,
        arguments={
            "p_images": images,
            "p_operation": operation,
            "p_parameters": parameters,
            "p_out": out,
            "codes": sum(code << _BITS.value * place for place, code in enumerate(codes)),
            "groups": operation.shape[1],
            "count": count,
            **dict(zip(("stride_s", "stride_g", "stride_n", "stride_d"), strides, strict=False)),
            "stride_h": images.stride(4),
            "stride_w": images.stride(5),
            "stride_os": operation.stride(0),
            "stride_og": operation.stride(1),
            "stride_ps": parameters.stride(0),
            "stride_pg": parameters.stride(1),
            "stride_pn": of_member,
            "stride_pk": parameters.stride(3),
        },
        constants={
            "DEPTH": depth,
            "HEIGHT": height,
            "WIDTH": width,
            "REACH_H": reference.reach(height),
            "REACH_W": reference.reach(width),
            "SIDE_H": reference.side(height),
            "SIDE_W": reference.side(width),
            "ASPECT": aspect,
            "SLANT": slant,
            "FLAT": flat,
            "TRANSPOSE": transpose,
            "BLOCK_D": channels,
            "BLOCK": block,
            "SPLIT": split,
            "STEPS": steps,
        },
        warps=warps,
    )
    return out, [launch]


def dsa(
    images: Tensor, operation: Tensor, parameters: Tensor, operations: Sequence[int], align_corners: bool
) -> Tensor:
    """Arguments and result as `fastdistill_kernels.reference.dsa.dsa`."""
    out, launches = prepare_dsa(images, operation, parameters, operations, align_corners, transpose=False)
    for launch in launches:
        launch.run()
    return out


def dsa_transpose(
    cotangent: Tensor, operation: Tensor, parameters: Tensor, operations: Sequence[int], align_corners: bool
) -> Tensor:
    """Arguments and result as `fastdistill_kernels.reference.dsa.dsa_transpose`."""
    out, launches = prepare_dsa(cotangent, operation, parameters, operations, align_corners, transpose=True)
    for launch in launches:
        launch.run()
    return out


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches to compile ahead of time: 16 students, 10 classes, 256 real images or ten synthetic ones of each."""
    found = {}
    for name, transpose, count in (("forward", False, 256), ("transpose", True, 10)):
        for depth, size in ((1, 28), (3, 32)):
            for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
                images = torch.empty(16, 10, count, depth, size, size, dtype=dtype, device="meta")
                operation = torch.empty(16, 10, dtype=torch.int64, device="meta")
                parameters = torch.empty(16, 10, 1, 3, device="meta")
                codes = range(len(OPERATIONS))
                _, launches = prepare_dsa(images, operation, parameters, codes, True, transpose=transpose)
                found[f"dsa/{name}-{size}x{size}/{precision}"] = launches
    return found
