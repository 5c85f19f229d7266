"""Layouts, sizes and device functions that the kernels of `fastdistill_kernels.first_block` share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from fastdistill_kernels.gpu.activation import activation_curvature, activation_slope, activation_value
from fastdistill_kernels.gpu.launching import ALL_REGISTERS, AMD, Capability, expect_reachable, power_of_two
from fastdistill_kernels.reference.first_block import SIDE, pooled

# columns of a packed row behind its taps: bias, then the norm's weight and bias; a product wants at least 16
_VECTORS = 3
_LEAST_COLUMNS = 16

Packed = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Tile:
    """Channels and pixels that a program holds at once, its warps, and registers as of a launch."""

    channels: int
    pixels: int
    warps: int
    registers: int | None

    def constants(self, channels: int) -> dict[str, int]:
        """As a kernel takes them."""
        return {"BLOCK": self.channels, "BLOCKS": -(-channels // self.channels), "PIXELS": self.pixels}


def tile_of(kernel: str, channels: int, ieee: bool, of: Capability, *, dual: bool, maximum: bool) -> Tile:
    """Tile of a kernel, as large as leaves no register spilled when compiled for the targets of `aot`.

    Matrix units take 128 channels best, so that patches are gathered once for all of a ConvNet's. A backward pass also
    holds sums ``[channels, columns]``, hence fewer pixels there. Products without matrix units hold whole rows of their
    operands, and so want fewer channels. A wavefront of AMD's has 64 threads: half of both there. No tile was timed.

    Args:
        kernel: ``forward``, ``gradient`` or ``images``.
        channels: O.
        ieee: float32 products without matrix units.
        of: the device's capability.
        dual: with a tangent, whose product's operands are held as well.
        maximum: of pooling, whose places are held as well.
    """
    crowded = ieee and dual
    narrow = crowded and maximum and kernel == "gradient" and of >= (10, 0)
    if kernel == "forward":
        most, pixels, warps = 64 if crowded else 128, 32, 8
    elif narrow:
        most, pixels, warps = 16, 16, 8
    elif ieee:
        most, pixels, warps = 32, 16, 8 if kernel == "gradient" else 4
    else:
        most, pixels, warps = (128 if kernel == "gradient" else 64), 16, 8
    if of == AMD:
        most, warps = min(most, 64), 4
    block = min(max(power_of_two(channels), 16), most)
    # where the assembler, left to itself, would spill to have room for one program more; found by compiling, not timed
    limited = crowded and not narrow and (kernel != "images" or maximum)
    return Tile(block, pixels, warps if block == most else 4, ALL_REGISTERS if limited else None)


def exact_products(ieee: bool, of: Capability) -> str:
    """How to take products of covariances, which every precision has in float32.

    The matrix units of CUDA do it by three products in TF32 where they are in use anyway; AMD's take float32.
    """
    return "ieee" if ieee or of == AMD else "tf32x3"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Extents of one call; ``height`` and ``width`` are the convolution's, ``out_`` those of the pooled output."""

    students: int
    groups: int
    images: int
    depth: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    normed: bool

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.depth * SIDE * SIDE

    @property
    def columns(self) -> int:
        """Of a packed row."""
        return max(power_of_two(self.taps + _VECTORS), _LEAST_COLUMNS)

    @property
    def rows(self) -> int:
        """Images of all students and groups."""
        return self.students * self.groups * self.images

    def constants(self, activation: str, pooling: str) -> dict[str, object]:
        """Those of forward and backward kernels alike."""
        return {
            "CHANNELS": self.channels,
            "DEPTH": self.depth,
            "HEIGHT": self.height,
            "WIDTH": self.width,
            "OUT_HEIGHT": self.out_height,
            "OUT_WIDTH": self.out_width,
            "FACTOR": 1 if pooling == "none" else 2,
            "MAX": pooling == "max",
            "ACTIVATION": activation,
            "NORM": self.normed,
            "COLUMNS": self.columns,
        }


def sizes_of(x: Tensor, own: Packed, groups: int, padding: int, pooling: str) -> Sizes:
    """Of images ``[S, G, n, D, H, W]`` and weights ``[S, O, D, 3, 3]``.

    Raises:
        ValueError: for an image, or results of one, with more elements than 32 bits count.
    """
    height, width = (pooled(extent, padding, "none") for extent in x.shape[-2:])
    out_height, out_width = (pooled(extent, padding, pooling) for extent in x.shape[-2:])
    students, channels = own[0].shape[:2]
    expect_reachable("one padded image", x.shape[3], height + SIDE - 1, width + SIDE - 1)
    expect_reachable("a first block's results for one image", channels, out_height, out_width)
    return Sizes(
        students=students,
        groups=groups,
        images=x.shape[2],
        depth=x.shape[3],
        channels=channels,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        normed=own[2] is not None,
    )


def pack(parameters: Packed, columns: int) -> Tensor:
    """Rows ``[..., O, columns]``: a channel's taps, bias, norm weight and norm bias (zero where there is none)."""
    weight, *vectors = parameters
    taps = weight.flatten(-3)
    empty = taps.new_zeros(*taps.shape[:-1], columns - taps.shape[-1])
    held = [empty[..., :1] if vector is None else vector[..., None] for vector in vectors]
    return torch.cat([taps, *held, empty[..., _VECTORS:]], -1)


def padded(x: Tensor, padding: int) -> Tensor:
    """Images with their zeros around them, each once: axes that are expanded shrink to 1."""
    for axis in (0, 1):
        if x.stride(axis) == 0 and x.shape[axis] > 1:
            x = x.narrow(axis, 0, 1)
    return functional.pad(x, (padding,) * 4).contiguous()


@triton.jit
def image_index(student, group, image, images, image_students, image_groups):
    """Where a student's and group's image lies among distinct ones."""
    return ((student % image_students) * image_groups + group % image_groups) * images + image


@triton.jit
def load_patches(
    p_image, at, inside, DEPTH: tl.constexpr, WIDTH: tl.constexpr, PLANE: tl.constexpr, COLUMNS: tl.constexpr
):
    """Patches ``[COLUMNS, pixels]`` whose corners lie at ``at`` in an image; a row of ones behind the taps."""
    tap = tl.arange(0, COLUMNS)
    taps: tl.constexpr = 9 * DEPTH
    offset = (tap // 9) * PLANE + ((tap % 9) // 3) * (WIDTH + 2) + tap % 3
    rest = tl.where(tap == taps, 1.0, 0.0).to(p_image.dtype.element_ty)
    mask = (tap < taps)[:, None] & inside[None, :]
    return tl.load(p_image + (offset[:, None] + at[None, :]), mask=mask, other=rest[:, None])


@triton.jit
def load_weights(
    p_row, channel, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr
):
    """Taps ``[channels, COLUMNS]`` of a packed matrix, zero elsewhere; with the bias, which meets the row of ones."""
    tap = tl.arange(0, COLUMNS)
    mask = (channel < CHANNELS)[:, None] & (tap < 9 * DEPTH + BIAS)[None, :]
    return tl.load(p_row + channel[:, None] * COLUMNS + tap[None, :], mask=mask, other=0.0)


@triton.jit
def load_vector(
    p_row, channel, WHICH: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A packed vector ``[channels]``: 0 is the bias, 1 the norm's weight, 2 its bias."""
    return tl.load(p_row + channel * COLUMNS + 9 * DEPTH + WHICH, mask=channel < CHANNELS, other=0.0).to(tl.float32)


@triton.jit
def product(a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """``a b`` in float32; bfloat16 is widened where it is interpreted, whose products are wrong there."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def add_product(total, a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """``total + a b``."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def load_coefficients(
    p_statistics, p_own, p_along, row, channel,
    DUAL: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``α, δ, α̇, δ̇ [channels, 1]`` of ``u = α z + δ`` and ``u̇ = α ż + α̇ z + δ̇``, norm included."""
    here = channel < CHANNELS
    kinds: tl.constexpr = 4 if DUAL else 2
    p_row = p_statistics + row * kinds * CHANNELS + channel
    mean = tl.load(p_row, mask=here, other=0.0)
    r = tl.load(p_row + CHANNELS, mask=here, other=0.0)
    scale = load_vector(p_own, channel, 1, DEPTH, CHANNELS, COLUMNS)
    alpha = scale * r
    delta = load_vector(p_own, channel, 2, DEPTH, CHANNELS, COLUMNS) - alpha * mean
    dalpha = alpha
    ddelta = delta
    if DUAL:
        dmean = tl.load(p_row + 2 * CHANNELS, mask=here, other=0.0)
        dr = tl.load(p_row + 3 * CHANNELS, mask=here, other=0.0)
        dalpha = load_vector(p_along, channel, 1, DEPTH, CHANNELS, COLUMNS) * r + scale * dr
        ddelta = load_vector(p_along, channel, 2, DEPTH, CHANNELS, COLUMNS) - dalpha * mean - alpha * dmean
    return alpha[:, None], delta[:, None], dalpha[:, None], ddelta[:, None]


@triton.jit
def output_offsets(channel, pixel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Where ``[channels, pixels]`` lie in one image's output, channels last or not."""
    return channel[:, None] + pixel[None, :] * CHANNELS if LAST else channel[:, None] * PIXELS + pixel[None, :]


@triton.jit
def winners(
    p_image, weights, alpha, delta, at, inside,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, PLANE: tl.constexpr, COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr, NORM: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Which of its four places a pooled pixel's maximum is from ``[channels, pixels]``, as the forward kernel chose."""
    best = tl.full([weights.shape[0], at.shape[0]], float("-inf"), tl.float32)
    winner = tl.zeros([weights.shape[0], at.shape[0]], tl.int32)
    for place in range(4):
        corner = at + (place // 2) * (WIDTH + 2) + place % 2
        patches = load_patches(p_image, corner, inside, DEPTH, WIDTH, PLANE, COLUMNS)
        u = product(weights, patches, UPCAST, PRECISION)
        if NORM:
            u = alpha * u + delta
        a = activation_value(u, ACTIVATION)
        chosen = (a > best) | (a != a)
        best = tl.where(chosen, a, best)
        winner = tl.where(chosen, place, winner)
    return winner


@triton.jit
def activated_gradient(
    u, du, g, dg, ACTIVATION: tl.constexpr, CURVED: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """``gu`` and its tangent from the gradient of the activation and its tangent."""
    slope = activation_slope(u, ACTIVATION)
    dgu = dg
    if DUAL:
        dgu = dg * slope
        if CURVED:
            dgu += g * activation_curvature(u, ACTIVATION) * du
    return g * slope, dgu
