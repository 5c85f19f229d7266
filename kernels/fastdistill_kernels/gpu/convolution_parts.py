"""What both kernels of convolutions share: the tiles of their products, and layouts of value and tangent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdistill_kernels.gpu.launching import AMD, Capability, shared_bytes
from fastdistill_kernels.reference.convolution import empty_images, output_size

LEAST = 16  # rows, columns and depth of the smallest product that tensor cores take
_GATHERED = 512  # elements with an address each that a warp loads a step: 16 addresses of a thread fit its registers
PRECISIONS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "ieee"),
}
# layers that kernels are compiled for ahead of time, ten classes each: images of a class, channels, features, side,
# kernel, stride, padding, and whether channels are last
_LAYERS = {
    "real": (256, 128, 128, 14, 3, 1, 1, True),  # of a ConvNet-3-128, whose first has these grey or coloured images
    "few": (10, 128, 128, 16, 3, 1, 1, True),
    "planes": (10, 128, 128, 16, 3, 1, 1, False),
    "grey": (256, 1, 128, 28, 3, 1, 1, True),
    "colour": (10, 3, 128, 32, 3, 1, 1, True),
    "five-taps": (10, 20, 50, 12, 5, 1, 0, True),  # channels that fill no step, as a LeNet's
    "lenet": (10, 1, 6, 28, 5, 1, 2, True),
    "stride-2": (10, 64, 128, 16, 3, 2, 1, True),  # of a ResNet
}
_INDEXABLE = 2**31 - 2**16  # positions of one student, counted in 32 bits with a tile to spare; offsets have 64


@dataclass(frozen=True)
class Tile:
    """What one program computes and with what.

    Attributes:
        rows: output positions.
        columns: output channels.
        depth: contracted in one step.
        warps: of the program.
        stages: of loads under way.
        registers: as of a launch.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int | None = None


def narrow(exact: bool, dual: bool, of: Capability) -> bool:
    """Whether two accumulators of 128 by 128 would spill: before Hopper, operands of products are in registers, too."""
    return of < (9, 0) and dual and not exact


def most_depth(itemsize: int, *, exact: bool, crowded: bool, of: Capability) -> int:
    """The most that is contracted in a step: 128 bytes are the widest row of swizzled shared memory.

    Exact products keep whole rows of their operands in registers, and so do all before Hopper and on AMD, where half as
    many bytes must do if registers are crowded.
    """
    return LEAST if exact else (64 if crowded and (of < (9, 0) or of == AMD) else 128) // itemsize


def sparing(side: int, depth: int, *, exact: bool, crowded: bool) -> tuple[int, int]:
    """The gathered side of a tile and its depth, at most, where every element of images has an address of its own.

    Args:
        side: wished for.
        depth: same.
        exact: as in `choose_tile`.
        crowded: they are so many, or registers so few, that half of them must do.
    """
    if not crowded:
        return side, depth
    return (min(side, 32), depth) if exact else (side, max(depth // 2, LEAST))


def fit(
    tile: Tile, stage: int, *, gathered: int, exact: bool, tangent: bool, of: Capability, ragged: bool = False
) -> Tile:
    """The tile with the depth, warps and stages that its device has memory and registers for.

    Args:
        tile: wished for.
        stage: bytes that one step loads for every unit of depth.
        gathered: rows or columns of images whose elements have an address each; 0 where a step is within one tap.
        exact: as in `choose_tile`.
        tangent: more than one operand of rows or of columns.
        of: the device.
        ragged: results are stored one by one, with an address each, as their rows are no whole number of vectors.
    """
    budget, depth, area = shared_bytes(of), tile.depth, tile.rows * tile.columns
    crowded = gathered * depth > 4 * _GATHERED
    large = area * (1 + tangent + ragged) >= 128 * 128 or crowded or (exact and (tangent or gathered > 0))
    warps = 8 if large else 4
    while depth > LEAST and gathered * depth > warps * _GATHERED:
        depth //= 2
    if of == AMD:
        # one stage is in shared memory, the next in registers; a wavefront is two warps
        while depth > LEAST and stage * depth > budget * 3 // 4:
            depth //= 2
        return replace(tile, depth=depth, warps=4 if large or area >= 64 * 64 else 2, stages=2)
    while depth > LEAST and 2 * stage * depth > budget:
        depth //= 2
    stages = budget // 2 // (stage * depth)  # of two programs at a time, where they find the registers
    if tangent or stages < 2:
        stages = budget // (stage * depth)
    return replace(tile, depth=depth, warps=warps, stages=max(2, min(4, stages)))


def same_strides(a: Tensor, b: Tensor, axes: int) -> bool:
    """Whether the last axes are strided alike, those of size one aside."""
    trailing = zip(a.shape[-axes:], a.stride()[-axes:], b.stride()[-axes:], strict=True)
    return all(size == 1 or one == other for size, one, other in trailing)


def alike(x: Tensor, dx: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Images and their tangent with one layout of an image batch ``[n, C, H, W]``; copied only where they differ."""
    if dx is None or same_strides(x, dx, 4):
        return x, dx
    tangent = empty_images(x, *x.shape[3:]).copy_(dx)
    if same_strides(x, tangent, 4):
        return x, tangent
    return empty_images(x, *x.shape[3:]).copy_(x), tangent


def expect_indexable(positions: int) -> None:
    """Refuses more positions than kernels count.

    Raises:
        ValueError: naming the limit.
    """
    if positions > _INDEXABLE:
        raise ValueError(
            f"a convolution expected at most {_INDEXABLE} positions of one student, got {positions}: hand over fewer "
            "images at once"
        )


def example(layer: str, precision: str) -> tuple[dict[str, Tensor], dict[str, int], tuple[int, int]]:
    """Tensors of a layer by their names in formulas, with sixteen students; its kernel, stride and padding; its output.

    Call it where tensors are fake: those of one channel say that they lie on a device, as a real one's results are laid
    out by that.
    """
    count, channels, features, side, kernel, stride, padding, last = _LAYERS[layer]
    dtype, size = PRECISIONS[precision][0], output_size(side, kernel, stride, padding)
    device = "cuda" if channels == 1 else "meta"

    def empty(*shape: int) -> Tensor:
        return torch.empty(16, *shape, dtype=dtype, device=device)

    def images(channels: int, side: int) -> Tensor:
        if last:
            return empty(10, count, side, side, channels).permute(0, 1, 2, 5, 3, 4)
        return empty(10, count, channels, side, side)

    taps = (features, channels, kernel, kernel)
    tensors = {
        "x": images(channels, side),
        "gy": images(features, size),
        "w": empty(*taps),
        "dw": empty(10, *taps),
        "b": empty(features),
        "db": empty(10, features),
    }
    return tensors, {"kernel": kernel, "stride": stride, "padding": padding}, (size, size)
