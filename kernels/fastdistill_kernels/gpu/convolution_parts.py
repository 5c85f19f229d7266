"""What both kernels of convolutions share: the tiles of their products, and layouts of value and tangent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, shared_bytes
from fastdistill_kernels.reference.convolution import empty_images

LEAST = 16  # rows, columns and depth of the smallest product that tensor cores take
_GATHERED = 512  # elements with an address each that a warp loads a step: 16 addresses of a thread fit its registers
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
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def narrow(exact: bool, dual: bool, of: Capability) -> bool:
    """Whether two accumulators of 128 by 128 would spill: before Hopper, operands of products are in registers, too."""
    return of < (9, 0) and dual and not exact


def fit(tile: Tile, stage: int, *, gathered: int, exact: bool, tangent: bool, of: Capability) -> Tile:
    """The tile with the depth, warps and stages that its device has memory and registers for.

    Args:
        tile: wished for.
        stage: bytes that one step loads for every unit of depth.
        gathered: rows or columns of images whose elements have an address each; 0 where a step is within one tap.
        exact: as in `choose_tile`.
        tangent: more than one operand of rows or of columns.
        of: the device.
    """
    budget, depth, area = shared_bytes(of), tile.depth, tile.rows * tile.columns
    crowded = gathered * depth > 4 * _GATHERED
    large = area * (1 + tangent) >= 128 * 128 or crowded or (exact and (tangent or gathered > 0))
    warps = 8 if large else 4
    while depth > LEAST and gathered * depth > warps * _GATHERED:
        depth //= 2
    if of == (9, 4):
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
