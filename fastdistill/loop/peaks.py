"""What the machine can do, measured in this process: the peaks that a program's work is held against.

A program that asks for ``f`` operations, ``b`` bytes and ``n`` launches takes at least ``max(f / matmul_flops,
b / copy_bandwidth)`` seconds of a device, and its host at least ``n · launch_seconds``. The rates are those that this
machine reaches at easy, large work with the threads that are set, not those of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_SIDE = 2048  # of the matrices
_BYTES = 256 * 2**20  # of the copy: beyond all caches
_ROUNDS = 7
_QUEUED = 20  # calls in a round on a device that runs behind the host
_CALLS = 1000  # tiny operators in a round: one alone is below the clock's grain


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The peaks of a device.

    Attributes:
        flops: floating-point operations per second of a matrix product.
        bandwidth: bytes per second of a copy, read and written.
        launch: seconds of one tiny operator.
    """

    flops: float
    bandwidth: float
    launch: float


def measure_peaks(device: torch.device, dtype: torch.dtype = torch.float32, *, tf32: bool = False) -> Peaks:
    """All peaks of a device; takes about a second, and half a gigabyte. Arguments as `matmul_flops`."""
    return Peaks(
        flops=matmul_flops(device, dtype, tf32=tf32), bandwidth=copy_bandwidth(device), launch=launch_seconds(device)
    )


def matmul_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, *, tf32: bool = False, side: int = _SIDE
) -> float:
    """Floating-point operations per second of a product of two square matrices, ``2 · side³`` each.

    Args:
        device: which.
        dtype: of the matrices.
        tf32: whether CUDA may round float32 to TF32, as it may in convolutions.
        side: of the matrices.
    """
    # values that differ, since a device runs faster on constant ones, and no draw of anybody's generator
    left = right = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    product = torch.empty_like(left)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_bandwidth(device: torch.device, *, size: int = _BYTES) -> float:
    """Bytes per second of a copy of ``size`` bytes on the device: as many read as written, both counted."""
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)  # written, so that its pages are there
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def launch_seconds(device: torch.device, *, calls: int = _CALLS) -> float:
    """Seconds from one tiny operator to the next where many follow each other: what an operator costs by itself.

    On CUDA it is the longer of the host's call and the device's turn to the next kernel.
    """
    one = torch.ones(1, device=device)

    def many() -> None:
        for _ in range(calls):
            one.add_(1)

    return _seconds(many, device) / calls


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call, after two that warm it up."""
    # a device is asked for many at once, or what is measured is how long the host waits for one
    calls = _QUEUED if device.type == "cuda" else 1
    for _ in range(2):
        call()
    found = []
    for _ in range(_ROUNDS):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        found.append((time.perf_counter() - begin) / calls)
    return median(found)


def synchronize(device: torch.device) -> None:
    """Waits for what a device has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
