"""How the kernels of `norm_act_pool` cut images into programs and tiles, and take their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels.gpu.launching import expect_reachable, power_of_two
from fastdistill_kernels.reference.pooling import channels_last

# Elements of one tensor that a thread holds: a backward pass with tangents keeps four tensors from its sums to its
# results, 64 registers of the 128 that 16 warps leave a thread. Half as many where it needs more for each of them on
# the way: a curved activation's exponential and both its derivatives, a maximum's place in its window.
_PER_THREAD = 16
_PER_CROWDED_THREAD = 8
_MOST_WARPS = 16
_LOOP_WARPS = 8
_LEAST_BYTES = 16  # of neighbouring channels to read at once, half of what memory hands out
_MOST_BYTES = 128  # a whole cache line: wider tiles gain nothing


@dataclass(frozen=True)
class Plan:
    """How an image is cut: programs have a unit each (norm group, or channels with a norm each), in tiles.

    Attributes:
        units: of an image.
        channels: of a unit, the last unit's fewer.
        block_channels: of a tile.
        block_windows: of a tile.
        tiles_of_channels: of a unit.
        tiles_of_windows: of a unit.
        warps: of a program.
    """

    units: int
    channels: int
    block_channels: int
    block_windows: int
    tiles_of_channels: int
    tiles_of_windows: int
    warps: int


def windows_of(height: int, width: int, pooling: str) -> int:
    """Windows of an image, cropped ones included; without pooling any four pixels."""
    return -(-height * width // 4) if pooling == "none" else -(-height // 2) * -(-width // 2)


def plan(
    shape: tuple[int, ...], groups: int, pooling: str, *, last: bool, itemsize: int, crowded: bool = False
) -> Plan:
    """Cuts images so that a unit is one tile in registers where it fits, and loops over tiles where it does not.

    Args:
        shape: ``[S, G, n, C, H, W]``.
        groups: norm groups, 0 for none.
        pooling: by windows or not.
        last: whether the channels of a pixel lie together.
        itemsize: bytes of an element.
        crowded: a thread has registers for half as many elements.
    """
    channels, height, width = shape[3:]
    windows = windows_of(height, width, pooling)
    single = groups in (0, channels)
    unit = channels if single else channels // groups
    held = _PER_CROWDED_THREAD if crowded else _PER_THREAD
    most = held * 32 * _MOST_WARPS // 4  # channels · windows of a tile
    narrowest = min(power_of_two(unit), max(_LEAST_BYTES // itemsize, 1) if last else 1)
    widest = min(power_of_two(unit), _MOST_BYTES // itemsize if last else most)
    block_windows = power_of_two(windows)
    needed = narrowest if single else power_of_two(unit)
    if block_windows * needed <= most:
        wished = max(held * 32 * 4 // 4 // block_windows, _LEAST_BYTES * 2 // itemsize if last else 1)
        block_channels = max(needed, min(wished, widest, most // block_windows))
        warps = power_of_two(-(-4 * block_windows * block_channels // (32 * held)))
    else:
        warps = _LOOP_WARPS
        tile = held * 32 * warps // 8  # half a tile: triton 3.6 spilled the dual backward pass of a whole one
        block_channels = widest if last else max(min(tile // block_windows, widest), 1)
        block_channels = min(block_channels, tile)
        block_windows = min(block_windows, tile // block_channels)
    owned = min(block_channels, channels) if single else unit
    return Plan(
        units=-(-channels // owned),
        channels=owned,
        block_channels=block_channels,
        block_windows=block_windows,
        tiles_of_channels=-(-owned // block_channels),
        tiles_of_windows=-(-windows // block_windows),
        warps=warps,
    )


def constants(
    x: Tensor, weight: Tensor | None, groups: int, activation: str, pooling: str, *, dual: bool, crowded: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """The plan for ``x`` and what all kernels here are compiled for.

    Raises:
        ValueError: for an image with more elements than 32 bits count.
    """
    expect_reachable("one image", *x.shape[3:])
    last = channels_last(x)
    cut = plan(tuple(x.shape), groups, pooling, last=last, itemsize=x.element_size(), crowded=crowded)
    channels, height, width = x.shape[3:]
    affine = "none" if weight is None else "channel" if weight.ndim == 2 else "element"
    return cut, {
        "C": channels,
        "H": height,
        "W": width,
        "GROUPS": groups,
        "ACTIVATION": activation,
        "POOLING": pooling,
        "AFFINE": affine,
        "DUAL": dual,
        "LAST": last,
        "UNITS": cut.units,
        "CHANNELS": cut.channels,
        "BC": cut.block_channels,
        "BP": cut.block_windows,
        "TILES_C": cut.tiles_of_channels,
        "TILES_P": cut.tiles_of_windows,
    }


def in_layout(last: bool) -> Callable[[Tensor], Tensor]:
    """What makes images ``[S, G, n, C, H, W]`` dense, channels of a pixel together or not; most already are."""
    if last:
        return lambda x: x.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    return lambda x: x.contiguous()


@dataclass(frozen=True)
class Parameter:
    """An affine parameter as kernels take it.

    Attributes:
        tensor: with dense axes after S and G; None for none.
        student: elements from one student to the next.
        group: elements from one gradient group to the next, 0 where they share.
    """

    tensor: Tensor | None
    student: int
    group: int

    @classmethod
    def of(cls, tensor: Tensor | None, axes: int, last: bool) -> Parameter:
        """Args are the parameter, its axes after S and G (1 or 3), and whether channels move behind pixels."""
        if tensor is None:
            return cls(None, 0, 0)
        if axes == 3 and last:
            tensor = tensor.movedim(-3, -1)
        expected = 1
        for size, stride in zip(reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True):
            if size > 1 and stride != expected:
                tensor = tensor.contiguous()
                break
            expected *= size
        return cls(tensor, tensor.stride(0), tensor.stride(1) if tensor.ndim == axes + 2 else 0)


def pixel_plan(x: Tensor, pooling: str) -> dict[str, int]:
    """Constants of tiles of pixels without statistics: 1024 elements, along memory."""
    channels, height, width = x.shape[3:]
    windows = windows_of(height, width, pooling)
    block_channels = min(power_of_two(channels), 32) if channels_last(x) else 1
    block_windows = min(power_of_two(windows), 256 // block_channels)
    return {
        "BC": block_channels,
        "BP": block_windows,
        "TILES_C": -(-channels // block_channels),
        "TILES_P": -(-windows // block_windows),
    }
