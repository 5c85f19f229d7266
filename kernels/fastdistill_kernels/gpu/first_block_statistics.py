"""Statistics of the convolution's output in `fastdistill_kernels.first_block`, without a convolution.

With patches ``p [9·D]`` of one image, their mean ``p̄`` and covariance ``C``, a channel's mean is ``w·p̄`` and its
variance ``wᵀCw``: a small matrix of each image, whatever the number of channels, so that every other kernel goes over
the pixels once (`kernels/README.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.first_block_parts import (
    Packed,
    Sizes,
    image_index,
    load_patches,
    load_weights,
    pack,
    padded,
)
from fastdistill_kernels.gpu.launching import Launch, power_of_two

# pixels of one step of the moments' loop; their product is 16 or 32 to a side, all that one or two warps can share
_MOMENT_PIXELS = 64
# channels of one program of the statistics kernel, in float32 without matrix units
_STATISTICS_CHANNELS = 64


@dataclass(frozen=True, eq=False)
class Operands:
    """What every kernel of a call reads, and the launches that fill the buffers among it."""

    arguments: dict[str, Tensor | None]
    extents: dict[str, int]
    launches: list[Launch]


def prepare_operands(
    x: Tensor, own: Packed, along: Packed | None, sizes: Sizes, padding: int, eps: float, exact: str
) -> Operands:
    """Packs weights, pads images, and prepares moments and statistics, where there is a norm.

    Args:
        x: images.
        own: weights.
        along: their tangents, if there are any.
        sizes: of the call.
        padding: of the convolution.
        eps: added to variances.
        exact: how products in float32 are taken: statistics have no other precision.
    """
    images = padded(x, padding)
    parameters = pack(own, sizes.columns)
    tangents = None if along is None else pack(along, sizes.columns)
    moments = statistics = None
    launches = []
    sets = {"image_students": images.shape[0], "image_groups": images.shape[1]}
    tangent_groups = tangents.shape[1] if tangents is not None and tangents.ndim == 4 else 1
    extents = {"groups": sizes.groups, "images": sizes.images, **sets, "tangent_groups": tangent_groups}
    if sizes.normed:
        distinct = images.shape[0] * images.shape[1] * images.shape[2]
        moments = torch.empty(distinct, sizes.columns, sizes.columns, dtype=torch.float32, device=x.device)
        kinds = 2 if tangents is None else 4
        statistics = torch.empty(sizes.rows, kinds, sizes.channels, dtype=torch.float32, device=x.device)
        shape = {"DEPTH": sizes.depth, "COLUMNS": sizes.columns}
        launches.append(
            Launch(
                kernel=moments_kernel,
                grid=distinct,
                arguments={"p_x": images, "p_moments": moments},
                constants={
                    **shape,
                    "HEIGHT": sizes.height,
                    "WIDTH": sizes.width,
                    "PIXELS": _MOMENT_PIXELS,
                    "PRECISION": exact,
                },
                warps=1,
            )
        )
        block = min(max(power_of_two(sizes.channels), 16), _STATISTICS_CHANNELS)
        blocks = -(-sizes.channels // block)
        launches.append(
            Launch(
                kernel=statistics_kernel,
                grid=sizes.rows * blocks,
                arguments={
                    "p_moments": moments,
                    "p_parameters": parameters,
                    "p_tangents": tangents,
                    "p_statistics": statistics,
                    **extents,
                },
                constants={
                    "EPSILON": eps,
                    **shape,
                    "CHANNELS": sizes.channels,
                    "DUAL": tangents is not None,
                    # said even where no matrix units are meant: the compiler takes them in TF32 for weights that it
                    # sees widened from bfloat16 (Triton 3.7 for Blackwell), whatever "ieee" asks for
                    "PRECISION": exact,
                    "BLOCK": block,
                    "BLOCKS": blocks,
                },
                warps=4,
            )
        )
    arguments = {
        "p_x": images,
        "p_parameters": parameters,
        "p_tangents": tangents,
        "p_moments": moments,
        "p_statistics": statistics,
    }
    return Operands(arguments, extents, launches)


@triton.jit
def moments_kernel(
    p_x, p_moments,
    DEPTH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Covariance of an image's patches ``[COLUMNS, COLUMNS]``, their mean in the column behind the taps."""
    image = tl.program_id(0).to(tl.int64)
    plane: tl.constexpr = (HEIGHT + 2) * (WIDTH + 2)
    taps: tl.constexpr = 9 * DEPTH
    count: tl.constexpr = HEIGHT * WIDTH
    p_image = p_x + image * DEPTH * plane
    tap = tl.arange(0, COLUMNS)
    step = tl.arange(0, PIXELS)
    # covariance is the same for shifted pixels, and near zero little is lost when the mean's square is taken off
    shift = tl.zeros([COLUMNS], tl.float32)
    for depth in tl.static_range(DEPTH):
        total = tl.zeros([PIXELS], tl.float32)
        for start in range(0, plane, PIXELS):
            pixel = start + step
            total += tl.load(p_image + depth * plane + pixel, mask=pixel < plane, other=0.0).to(tl.float32)
        shift = tl.where(tap // 9 == depth, tl.sum(total) / plane, shift)
    raw = tl.zeros([COLUMNS, COLUMNS], tl.float32)
    for start in range(0, count, PIXELS):
        pixel = start + step
        at = (pixel // WIDTH) * (WIDTH + 2) + pixel % WIDTH
        patches = load_patches(p_image, at, pixel < count, DEPTH, WIDTH, plane, COLUMNS).to(tl.float32)
        patches = tl.where((pixel < count)[None, :], patches - shift[:, None], 0.0)
        raw = tl.dot(patches, tl.trans(patches), raw, input_precision=PRECISION)
    raw = raw / count
    # both of one symmetric matrix, laid out along its rows and along its columns
    across = tl.sum(tl.where((tap == taps)[:, None], raw, 0.0), 0)
    down = tl.sum(tl.where((tap == taps)[None, :], raw, 0.0), 1)
    covariance = tl.where((tap < taps)[None, :], raw - down[:, None] * across[None, :], 0.0)
    covariance = tl.where((tap == taps)[None, :], (down + shift)[:, None], covariance)
    covariance = tl.where((tap < taps)[:, None], covariance, 0.0)
    tl.store(p_moments + (image * COLUMNS + tap[:, None]) * COLUMNS + tap[None, :], covariance)


@triton.jit
def statistics_kernel(
    p_moments, p_parameters, p_tangents, p_statistics,
    groups, images, image_students, image_groups, tangent_groups,
    EPSILON: tl.constexpr, DEPTH: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, DUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A channel's mean without bias and ``r = 1/√(variance + eps)`` of each image, then their tangents."""
    program = tl.program_id(0).to(tl.int64)
    row = program // BLOCKS
    student = row // images // groups
    group = (row // images) % groups
    index = image_index(student, group, row % images, images, image_students, image_groups)
    channel = (program % BLOCKS).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    here = channel < CHANNELS
    tap = tl.arange(0, COLUMNS)
    taps: tl.constexpr = 9 * DEPTH
    moments = tl.load(p_moments + (index * COLUMNS + tap[:, None]) * COLUMNS + tap[None, :])
    p_own = p_parameters + student * CHANNELS * COLUMNS
    weights = load_weights(p_own, channel, DEPTH, CHANNELS, COLUMNS, 0).to(tl.float32)
    pulled = tl.dot(weights, moments, input_precision=PRECISION)  # wᵀC, and w·p̄ behind the taps
    variance = tl.sum(weights * pulled, 1)
    # a sum of squares but for rounding; what is not a number stays so
    r = 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + EPSILON)
    kinds: tl.constexpr = 4 if DUAL else 2
    p_row = p_statistics + row * kinds * CHANNELS + channel
    tl.store(p_row, tl.sum(tl.where((tap == taps)[None, :], pulled, 0.0), 1), mask=here)
    tl.store(p_row + CHANNELS, r, mask=here)
    if DUAL:
        p_along = p_tangents + (student * tangent_groups + group % tangent_groups) * CHANNELS * COLUMNS
        dweights = load_weights(p_along, channel, DEPTH, CHANNELS, COLUMNS, 0).to(tl.float32)
        mean = tl.load(p_moments + (index * COLUMNS + tap) * COLUMNS + taps)
        tl.store(p_row + 2 * CHANNELS, tl.sum(dweights * mean[None, :], 1), mask=here)
        tl.store(p_row + 3 * CHANNELS, -r * r * r * tl.sum(dweights * pulled, 1), mask=here)
