"""Backward kernels of `fastdistill_kernels.first_block`, which compute the convolution's output again.

The gradient kernel takes a run of images and some channels. Over an image's pixels it only sums ``A = Σ p·gu`` and its
tangent by the matrix units: what instance norm makes of them is a formula of ``A`` and the patches' covariance
(`kernels/README.md`), so that there is one pass, not three.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.first_block_images import images_launch
from fastdistill_kernels.gpu.first_block_parts import (
    Packed,
    activated_gradient,
    add_product,
    exact_products,
    image_index,
    load_coefficients,
    load_patches,
    load_weights,
    output_offsets,
    product,
    sizes_of,
    tile_of,
    winners,
)
from fastdistill_kernels.gpu.first_block_statistics import prepare_operands
from fastdistill_kernels.gpu.launching import Capability, Launch, interpreted
from fastdistill_kernels.reference.activation import CURVED

# images of one program: enough to make its start and its partial sums cheap, and 16 programs of a class of 256
RUN = 16


def prepare_backward(
    gy: Tensor,
    dgy: Tensor | None,
    x: Tensor,
    own: Packed,
    along: Packed | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
    value: bool,
    of: Capability,
) -> tuple[list[Tensor | None], list[Tensor | None], list[Launch]]:
    """Partial sums of gradients and of their tangents, columns of images' gradients and of their tangents, launches.

    Partial sums are ``[S, G, runs, O, columns]`` as weights are packed, columns ``[S·G·n, 9·D, H·W]`` of the
    convolution's output pixels, both float32; None where not wanted.
    """
    dual = along is not None
    sizes = sizes_of(x, own, gy.shape[1], padding, pooling)
    ieee = x.dtype == torch.float32 and precision == "ieee"
    operands = prepare_operands(x, own, along, sizes, padding, eps, exact_products(ieee, of))
    runs = -(-sizes.images // RUN)
    partial = (sizes.students, sizes.groups, runs, sizes.channels, sizes.columns)
    columns = (sizes.rows, sizes.taps, sizes.height * sizes.width)

    def buffer(shape: tuple[int, ...], wanted: bool) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=x.device) if wanted else None

    gradients = [buffer(partial, value), buffer(partial, dual)]
    images = [buffer(columns, inputs and value), buffer(columns, inputs and dual)]
    sums = buffer((sizes.rows, 4 if dual else 2, sizes.channels), inputs and sizes.normed)
    tile = tile_of("gradient", sizes.channels, ieee, of, dual=dual, maximum=pooling == "max")
    blocks = -(-sizes.channels // tile.channels)
    last = gy.permute(0, 1, 2, 4, 5, 3).is_contiguous()
    outer = [one if one is None else _in_layout(one, last) for one in (gy, dgy)]
    shared = operands.arguments | {"p_gy": outer[0], "p_dgy": outer[1]}
    constants = {
        **sizes.constants(activation, pooling),
        "LAST": last,
        "CURVED": activation in CURVED,
        "DUAL": dual,
        "UPCAST": interpreted(),
        "PRECISION": precision,
    }
    launches = [
        *operands.launches,
        Launch(
            kernel=gradient_kernel,
            grid=sizes.students * sizes.groups * runs * blocks,
            arguments={
                **shared,
                "p_gradient": gradients[0],
                "p_dgradient": gradients[1],
                "p_sums": sums,
                **operands.extents,
            },
            constants={
                **constants,
                **tile.constants(sizes.channels),
                "RUN": min(RUN, max(sizes.images, 1)),
                # a product as all others are, which three in TF32 would leave no registers for
                "MOMENTS": "ieee" if ieee else "tf32",
            },
            warps=tile.warps,
            registers=tile.registers,
        ),
    ]
    if inputs:
        launches.append(images_launch(sizes, operands.extents, shared, images, sums, constants, ieee, of))
    return gradients, images, launches


def _in_layout(gy: Tensor, last: bool) -> Tensor:
    """A dense gradient ``[S, G, n, O, H', W']``, channels last or not; copied only where it lies otherwise."""
    return gy.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4) if last else gy.contiguous()


@triton.jit
def gradient_kernel(
    p_x, p_parameters, p_tangents, p_moments, p_statistics, p_gy, p_dgy, p_gradient, p_dgradient, p_sums,
    groups, images, image_students, image_groups, tangent_groups,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, FACTOR: tl.constexpr, MAX: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PIXELS: tl.constexpr, CURVED: tl.constexpr,
    LAST: tl.constexpr, DUAL: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    MOMENTS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Gradients of a packed row, summed over up to ``RUN`` images, and their tangents."""
    program = tl.program_id(0).to(tl.int64)
    job = program // BLOCKS
    runs = (images + RUN - 1) // RUN
    pair = job // runs
    student = pair // groups
    group = pair % groups
    channel = (program % BLOCKS).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    here = channel < CHANNELS
    tap = tl.arange(0, COLUMNS)
    taps: tl.constexpr = 9 * DEPTH
    is_tap = (tap < taps)[None, :]
    behind = (tap == taps)[None, :]
    plane: tl.constexpr = (HEIGHT + 2) * (WIDTH + 2)
    out: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    p_own = p_parameters + student * CHANNELS * COLUMNS
    p_along = p_own
    weights = load_weights(p_own, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
    dweights = weights
    if DUAL:
        p_along = p_tangents + (student * tangent_groups + group % tangent_groups) * CHANNELS * COLUMNS
        dweights = load_weights(p_along, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
    alpha = tl.full([BLOCK, 1], 1.0, tl.float32)
    delta = tl.zeros([BLOCK, 1], tl.float32)
    dalpha = alpha
    ddelta = delta
    total = tl.zeros([BLOCK, COLUMNS], tl.float32)
    dtotal = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for step in range(RUN):
        image = (job % runs) * RUN + step
        alive = image < images
        row = pair * images + tl.where(alive, image, 0)
        index = image_index(student, group, tl.where(alive, image, 0), images, image_students, image_groups)
        p_image = p_x + index * DEPTH * plane
        if NORM:
            alpha, delta, dalpha, ddelta = load_coefficients(
                p_statistics, p_own, p_along, row, channel, DUAL, DEPTH, CHANNELS, COLUMNS
            )
        of_image = tl.zeros([BLOCK, COLUMNS], tl.float32)
        dof_image = tl.zeros([BLOCK, COLUMNS], tl.float32)
        for start in range(0, out, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            inside = pixel < out
            at = (pixel // OUT_WIDTH) * FACTOR * (WIDTH + 2) + (pixel % OUT_WIDTH) * FACTOR
            o = output_offsets(channel, pixel, out, CHANNELS, LAST)
            mask = here[:, None] & inside[None, :] & alive
            share: tl.constexpr = 1.0 if MAX else 1.0 / (FACTOR * FACTOR)
            g = tl.load(p_gy + row * CHANNELS * out + o, mask=mask, other=0.0).to(tl.float32) * share
            dg = g
            if DUAL:
                dg = tl.load(p_dgy + row * CHANNELS * out + o, mask=mask, other=0.0).to(tl.float32) * share
            if MAX:
                winner = winners(
                    p_image, weights, alpha, delta, at, inside,
                    DEPTH, WIDTH, plane, COLUMNS, ACTIVATION, NORM, UPCAST, PRECISION,
                )  # fmt: skip
            for place in range(FACTOR * FACTOR):
                corner = at + (place // FACTOR) * (WIDTH + 2) + place % FACTOR
                patches = load_patches(p_image, corner, inside, DEPTH, WIDTH, plane, COLUMNS)
                u = product(weights, patches, UPCAST, PRECISION)
                du = u
                if DUAL and CURVED:
                    du = product(dweights, patches, UPCAST, PRECISION)
                    if NORM:
                        du = alpha * du + dalpha * u + ddelta
                if NORM:
                    u = alpha * u + delta
                gu, dgu = activated_gradient(u, du, g, dg, ACTIVATION, CURVED, DUAL)
                if MAX:
                    gu = tl.where(winner == place, gu, 0.0)
                    dgu = tl.where(winner == place, dgu, 0.0)
                across = tl.trans(patches)
                of_image = add_product(of_image, gu.to(across.dtype), across, UPCAST, PRECISION)
                if DUAL:
                    dof_image = add_product(dof_image, dgu.to(across.dtype), across, UPCAST, PRECISION)
        if NORM:
            # from the sums over pixels to gradients: the norm's own derivative, by the patches' covariance
            kinds: tl.constexpr = 4 if DUAL else 2
            moments = tl.load(p_moments + (index * COLUMNS + tap[:, None]) * COLUMNS + tap[None, :])
            mean = tl.load(p_moments + (index * COLUMNS + tap) * COLUMNS + taps)[None, :]
            r = tl.load(p_statistics + row * kinds * CHANNELS + CHANNELS + channel, mask=here, other=0.0)[:, None]
            wide = weights.to(tl.float32)
            pulled = tl.dot(wide, moments, input_precision=MOMENTS)
            pulled = tl.where(is_tap, pulled, 0.0)
            gbeta = tl.sum(tl.where(behind, of_image, 0.0), 1)[:, None]
            of_image = tl.where(is_tap, of_image - mean * gbeta, 0.0)
            along = tl.sum(wide * of_image, 1)[:, None]
            rest = of_image - (r * r * along) * pulled
            total += alpha * rest
            total += tl.where((tap == taps + 1)[None, :], r * along, 0.0)
            total += tl.where((tap == taps + 2)[None, :], gbeta, 0.0)
            if p_sums is not None:
                p_row = p_sums + row * kinds * CHANNELS + channel[:, None]
                tl.store(p_row, gbeta, mask=here[:, None] & alive)
                tl.store(p_row + CHANNELS, r * along, mask=here[:, None] & alive)
            if DUAL:
                dwide = dweights.to(tl.float32)
                dr = tl.load(p_statistics + row * kinds * CHANNELS + 3 * CHANNELS + channel, mask=here, other=0.0)
                dr = dr[:, None]
                dpulled = tl.where(is_tap, tl.dot(dwide, moments, input_precision=MOMENTS), 0.0)
                dgbeta = tl.sum(tl.where(behind, dof_image, 0.0), 1)[:, None]
                dof_image = tl.where(is_tap, dof_image - mean * dgbeta, 0.0)
                dalong = tl.sum(dwide * of_image + wide * dof_image, 1)[:, None]
                dq = 2.0 * r * dr * along + r * r * dalong
                dtotal += dalpha * rest + alpha * (dof_image - dq * pulled - (r * r * along) * dpulled)
                dggamma = dr * along + r * dalong
                dtotal += tl.where((tap == taps + 1)[None, :], dggamma, 0.0)
                dtotal += tl.where((tap == taps + 2)[None, :], dgbeta, 0.0)
                if p_sums is not None:
                    tl.store(p_row + 2 * CHANNELS, dgbeta, mask=here[:, None] & alive)
                    tl.store(p_row + 3 * CHANNELS, dggamma, mask=here[:, None] & alive)
        else:
            total += of_image
            dtotal += dof_image
    o = (job * CHANNELS + channel[:, None]) * COLUMNS + tap[None, :]
    if p_gradient is not None:
        tl.store(p_gradient + o, total, mask=here[:, None])
    if DUAL:
        tl.store(p_dgradient + o, dtotal, mask=here[:, None])
