"""Forward kernels of `fastdistill_kernels.first_block`: a program takes one image and some output channels.

It goes over tiles of pooled pixels; for each of the two by two places that a pooled pixel has, the patches
``[9·D, pixels]`` are gathered from the padded image and multiplied by the weights ``[channels, 9·D]``, and what comes
out is normalised, activated and pooled in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.activation import activation_slope, activation_value
from fastdistill_kernels.gpu.first_block_parts import (
    Packed,
    exact_products,
    image_index,
    load_coefficients,
    load_patches,
    load_weights,
    output_offsets,
    product,
    sizes_of,
    tile_of,
)
from fastdistill_kernels.gpu.first_block_statistics import prepare_operands
from fastdistill_kernels.gpu.launching import Capability, Launch, interpreted
from fastdistill_kernels.reference.first_block import empty_output, group_count


def prepare_forward(
    x: Tensor,
    own: Packed,
    along: Packed | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    of: Capability,
) -> tuple[list[Tensor], list[Launch]]:
    """Outputs (and tangents), not yet computed, and the launches that do."""
    sizes = sizes_of(x, own, x.shape[1] if along is None else group_count(x, along[0]), padding, pooling)
    ieee, dual = x.dtype == torch.float32 and precision == "ieee", along is not None
    operands = prepare_operands(x, own, along, sizes, padding, eps, exact_products(ieee, of))
    outputs = [empty_output(x, own[0], sizes.groups, padding, pooling) for _ in range(1 + dual)]
    tile = tile_of("forward", sizes.channels, ieee, of, dual=dual, maximum=pooling == "max")
    read = operands.arguments
    launch = Launch(
        kernel=forward_kernel,
        grid=sizes.rows * -(-sizes.channels // tile.channels),
        arguments={
            "p_x": read["p_x"],
            "p_parameters": read["p_parameters"],
            "p_tangents": read["p_tangents"],
            "p_statistics": read["p_statistics"],
            "p_y": outputs[0],
            "p_dy": outputs[1] if dual else None,
            **operands.extents,
        },
        constants={
            **sizes.constants(activation, pooling),
            **tile.constants(sizes.channels),
            "LAST": not outputs[0].is_contiguous(),
            "DUAL": dual,
            "UPCAST": interpreted(),
            "PRECISION": precision,
        },
        warps=tile.warps,
        registers=tile.registers,
    )
    return outputs, [*operands.launches, launch]


@triton.jit
def forward_kernel(
    p_x, p_parameters, p_tangents, p_statistics, p_y, p_dy,
    groups, images, image_students, image_groups, tangent_groups,
    CHANNELS: tl.constexpr, DEPTH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, FACTOR: tl.constexpr, MAX: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PIXELS: tl.constexpr,
    LAST: tl.constexpr, DUAL: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y`` and ``ẏ [channels, pooled pixels]`` of one image and ``BLOCK`` channels."""
    program = tl.program_id(0).to(tl.int64)
    row = program // BLOCKS
    student = row // images // groups
    group = (row // images) % groups
    channel = (program % BLOCKS).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    plane: tl.constexpr = (HEIGHT + 2) * (WIDTH + 2)
    p_image = p_x + image_index(student, group, row % images, images, image_students, image_groups) * DEPTH * plane
    p_own = p_parameters + student * CHANNELS * COLUMNS
    weights = load_weights(p_own, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
    p_along = p_own
    dweights = weights
    if DUAL:
        p_along = p_tangents + (student * tangent_groups + group % tangent_groups) * CHANNELS * COLUMNS
        dweights = load_weights(p_along, channel, DEPTH, CHANNELS, COLUMNS, 0 if NORM else 1)
    if NORM:
        alpha, delta, dalpha, ddelta = load_coefficients(
            p_statistics, p_own, p_along, row, channel, DUAL, DEPTH, CHANNELS, COLUMNS
        )
    out: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    offset = row * CHANNELS * out
    for start in range(0, out, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < out
        at = (pixel // OUT_WIDTH) * FACTOR * (WIDTH + 2) + (pixel % OUT_WIDTH) * FACTOR
        total = tl.full([BLOCK, PIXELS], float("-inf") if MAX else 0.0, tl.float32)
        dtotal = tl.zeros([BLOCK, PIXELS], tl.float32)
        for place in range(FACTOR * FACTOR):
            corner = at + (place // FACTOR) * (WIDTH + 2) + place % FACTOR
            patches = load_patches(p_image, corner, inside, DEPTH, WIDTH, plane, COLUMNS)
            u = product(weights, patches, UPCAST, PRECISION)
            if DUAL:
                du = product(dweights, patches, UPCAST, PRECISION)
                if NORM:
                    du = alpha * du + dalpha * u + ddelta
            if NORM:
                u = alpha * u + delta
            a = activation_value(u, ACTIVATION)
            if DUAL:
                du = activation_slope(u, ACTIVATION) * du
            if MAX:  # the first of equals, and what is not a number, as torch has it
                chosen = (a > total) | (a != a) | (place == 0)
                total = tl.where(chosen, a, total)
                if DUAL:
                    dtotal = tl.where(chosen, du, dtotal)
            else:
                total += a
                if DUAL:
                    dtotal += du
        if not MAX:
            total *= 1.0 / (FACTOR * FACTOR)
            dtotal *= 1.0 / (FACTOR * FACTOR)
        o = output_offsets(channel, pixel, out, CHANNELS, LAST)
        mask = (channel < CHANNELS)[:, None] & inside[None, :]
        tl.store(p_y + offset + o, total.to(p_y.dtype.element_ty), mask=mask)
        if DUAL:
            tl.store(p_dy + offset + o, dtotal.to(p_dy.dtype.element_ty), mask=mask)
