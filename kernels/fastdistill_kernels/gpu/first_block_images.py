"""Images' gradients of `fastdistill_kernels.first_block`, as gradients of the taps of every patch.

A program takes a tile of one image's windows and goes over all channels, so that the gradient of the convolution's
output never reaches memory: ``9·D`` numbers a pixel do, which are then folded.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.first_block_parts import (
    Sizes,
    activated_gradient,
    add_product,
    image_index,
    load_coefficients,
    load_patches,
    load_weights,
    output_offsets,
    product,
    tile_of,
    winners,
)
from fastdistill_kernels.gpu.launching import Capability, Launch


def images_launch(
    sizes: Sizes,
    extents: dict[str, int],
    shared: dict[str, Tensor | None],
    images: list[Tensor | None],
    sums: Tensor | None,
    constants: dict[str, Any],
    ieee: bool,
    of: Capability,
) -> Launch:
    """The launch that fills columns of images' gradients (and of their tangents) from per-image sums."""
    factor, dual, maximum = (constants[name] for name in ("FACTOR", "DUAL", "MAX"))
    tile = tile_of("images", sizes.channels, ieee, of, dual=dual, maximum=maximum)
    # windows that an odd last row or column leaves incomplete have gradients too, by way of the statistics
    windows = -(-sizes.height // factor) * -(-sizes.width // factor)
    arguments = {name: tensor for name, tensor in shared.items() if name != "p_moments"}
    return Launch(
        kernel=images_kernel,
        grid=sizes.rows * -(-windows // tile.pixels),
        arguments={**arguments, "p_sums": sums, "p_columns": images[0], "p_dcolumns": images[1], **extents},
        constants=constants | tile.constants(sizes.channels),
        warps=tile.warps,
        registers=tile.registers,
    )


@triton.jit
def images_kernel(
    p_x, p_parameters, p_tangents, p_statistics, p_gy, p_dgy, p_sums, p_columns, p_dcolumns,
    groups, images, image_students, image_groups, tangent_groups,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, FACTOR: tl.constexpr, MAX: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PIXELS: tl.constexpr, CURVED: tl.constexpr,
    LAST: tl.constexpr, DUAL: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``wᵀgz`` of one image's windows, for each of their places and each tap, and its tangent."""
    program = tl.program_id(0).to(tl.int64)
    high: tl.constexpr = (HEIGHT + FACTOR - 1) // FACTOR
    wide: tl.constexpr = (WIDTH + FACTOR - 1) // FACTOR
    steps: tl.constexpr = (high * wide + PIXELS - 1) // PIXELS
    row = program // steps
    student = row // images // groups
    group = (row // images) % groups
    tap = tl.arange(0, COLUMNS)
    taps: tl.constexpr = 9 * DEPTH
    plane: tl.constexpr = (HEIGHT + 2) * (WIDTH + 2)
    out: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    p_image = p_x + image_index(student, group, row % images, images, image_students, image_groups) * DEPTH * plane
    p_own = p_parameters + student * CHANNELS * COLUMNS
    p_along = p_own
    if DUAL:
        p_along = p_tangents + (student * tangent_groups + group % tangent_groups) * CHANNELS * COLUMNS
    window = (program % steps).to(tl.int32) * PIXELS + tl.arange(0, PIXELS)
    i = window // wide
    j = window % wide
    whole = (i < OUT_HEIGHT) & (j < OUT_WIDTH)  # those that were pooled
    at = i * FACTOR * (WIDTH + 2) + j * FACTOR
    kinds: tl.constexpr = 4 if DUAL else 2
    for place in range(FACTOR * FACTOR):
        y = i * FACTOR + place // FACTOR
        x = j * FACTOR + place % FACTOR
        inside = (y < HEIGHT) & (x < WIDTH)
        patches = load_patches(p_image, y * (WIDTH + 2) + x, inside, DEPTH, WIDTH, plane, COLUMNS)
        columns = tl.zeros([COLUMNS, PIXELS], tl.float32)
        dcolumns = tl.zeros([COLUMNS, PIXELS], tl.float32)
        for block in range(BLOCKS):
            channel = block * BLOCK + tl.arange(0, BLOCK)
            here = channel < CHANNELS
            weights = load_weights(p_own, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
            dweights = weights
            if DUAL:
                dweights = load_weights(p_along, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
            alpha = tl.full([BLOCK, 1], 1.0, tl.float32)
            delta = tl.zeros([BLOCK, 1], tl.float32)
            dalpha = alpha
            ddelta = delta
            if NORM:
                alpha, delta, dalpha, ddelta = load_coefficients(
                    p_statistics, p_own, p_along, row, channel, DUAL, DEPTH, CHANNELS, COLUMNS
                )
            o = output_offsets(channel, i * OUT_WIDTH + j, out, CHANNELS, LAST)
            mask = here[:, None] & whole[None, :]
            share: tl.constexpr = 1.0 if MAX else 1.0 / (FACTOR * FACTOR)
            g = tl.load(p_gy + row * CHANNELS * out + o, mask=mask, other=0.0).to(tl.float32) * share
            dg = g
            if DUAL:
                dg = tl.load(p_dgy + row * CHANNELS * out + o, mask=mask, other=0.0).to(tl.float32) * share
            if MAX:
                winner = winners(
                    p_image, weights, alpha, delta, at, whole,
                    DEPTH, WIDTH, plane, COLUMNS, ACTIVATION, NORM, UPCAST, PRECISION,
                )  # fmt: skip
                g = tl.where(winner == place, g, 0.0)
                dg = tl.where(winner == place, dg, 0.0)
            z = product(weights, patches, UPCAST, PRECISION)
            dz = z
            u = z
            du = z
            if DUAL:
                dz = product(dweights, patches, UPCAST, PRECISION)
                du = dz
                if NORM:
                    du = alpha * dz + dalpha * z + ddelta
            if NORM:
                u = alpha * z + delta
            gz, dgz = activated_gradient(u, du, g, dg, ACTIVATION, CURVED, DUAL)
            if NORM:
                count: tl.constexpr = HEIGHT * WIDTH
                p_row = p_statistics + row * kinds * CHANNELS + channel[:, None]
                p_sum = p_sums + row * kinds * CHANNELS + channel[:, None]
                mean = tl.load(p_row, mask=here[:, None], other=0.0)
                r = tl.load(p_row + CHANNELS, mask=here[:, None], other=0.0)
                gbeta = tl.load(p_sum, mask=here[:, None], other=0.0) / count
                ggamma = tl.load(p_sum + CHANNELS, mask=here[:, None], other=0.0) / count
                hat = (z - mean) * r
                gz = gz - gbeta - hat * ggamma
                if DUAL:
                    dmean = tl.load(p_row + 2 * CHANNELS, mask=here[:, None], other=0.0)
                    dr = tl.load(p_row + 3 * CHANNELS, mask=here[:, None], other=0.0)
                    dgbeta = tl.load(p_sum + 2 * CHANNELS, mask=here[:, None], other=0.0) / count
                    dggamma = tl.load(p_sum + 3 * CHANNELS, mask=here[:, None], other=0.0) / count
                    dhat = (dz - dmean) * r + (z - mean) * dr
                    dgz = dalpha * gz + alpha * (dgz - dgbeta - dhat * ggamma - hat * dggamma)
                gz = alpha * gz
            gz = gz.to(patches.dtype)
            if p_columns is not None:
                columns = add_product(columns, tl.trans(weights), gz, UPCAST, PRECISION)
            if DUAL:
                dcolumns = add_product(dcolumns, tl.trans(weights), dgz.to(gz.dtype), UPCAST, PRECISION)
                dcolumns = add_product(dcolumns, tl.trans(dweights), gz, UPCAST, PRECISION)
        o = (row * taps + tap[:, None]) * (HEIGHT * WIDTH) + (y * WIDTH + x)[None, :]
        mask = (tap < taps)[:, None] & inside[None, :]
        if p_columns is not None:
            tl.store(p_columns + o, columns, mask=mask)
        if DUAL:
            tl.store(p_dcolumns + o, dcolumns, mask=mask)
