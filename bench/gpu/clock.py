"""Seconds of a call: on CUDA those of the device alone, by its own clock; on a CPU those of the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from math import ceil
from statistics import median

import torch

from fastdistill.loop.peaks import synchronize

Compute = Callable[[], object]
_LEAST, _MOST = 3, 50  # samples
_SAMPLE = 2e-3  # seconds of a sample on a device: some thousand times the grain of its clock
_CALLS = 64  # most calls of a sample: ten launches each still fit into the queue of a stream
_WAIT, _LONGEST_WAIT = 1e-3, 0.07  # seconds that a device is kept waiting while the host queues calls
_CYCLES = 2e9  # of a device in a second: a slower one only waits for longer
_COPY = 64 << 20, 1 << 30  # bytes of a tensor that is copied: beyond every cache, and where the rate grows no more


def seconds(compute: Compute, device: torch.device, budget: float) -> float:
    """Median seconds of a call, from samples within a budget of seconds, after two calls that warm up."""
    for _ in range(2):
        compute()
    synchronize(device)
    return _on_device(compute, device, budget) if device.type == "cuda" else _on_host(compute, budget)


def copy_rate(moved: int, device: torch.device, budget: float) -> float:
    """Bytes in a second, read and written, of a copy that moves about so many, measured as kernels are."""
    size = 1 << (max(moved // 2, 1).bit_length() - 1)
    return _copy_rate(min(max(size, _COPY[0]), _COPY[1]), device, budget)


@cache
def _copy_rate(size: int, device: torch.device, budget: float) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, budget)


def _on_host(compute: Compute, budget: float) -> float:
    taken: list[float] = []
    while len(taken) < _LEAST or (sum(taken) < budget and len(taken) < _MOST):
        begin = time.perf_counter()
        compute()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def _on_device(compute: Compute, device: torch.device, budget: float) -> float:
    """Seconds between two events around many calls that were queued before the device began with the first.

    So there is neither the host's work in them nor its launches. A sample whose queue was not whole in time is taken
    again behind a longer wait, or of fewer calls; calls that wait for the device themselves count as they are.
    """
    begin, taken, calls, most, wait = time.perf_counter(), list[float](), 1, _CALLS, _WAIT
    with torch.cuda.device(device):
        while len(taken) < _LEAST or (time.perf_counter() - begin < budget and len(taken) < _MOST):
            one, whole = _sample(compute, calls, wait)
            wanted = min(most, ceil(_SAMPLE / max(one, 1e-9)))
            if wait and not whole:
                if 2 * wait <= _LONGEST_WAIT:
                    wait *= 2
                elif calls > 1:
                    calls = most = calls // 2
                else:
                    wait = 0.0
            elif wanted > calls:
                calls = wanted
            else:
                taken.append(one)
    return median(taken)


def _sample(compute: Compute, calls: int, wait: float) -> tuple[float, bool]:
    """Seconds of one of some calls, and whether all were queued before the device began."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(wait * _CYCLES))
    start.record()
    for _ in range(calls):
        compute()
    end.record()
    whole = not start.query()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls, whole
