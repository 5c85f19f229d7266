"""Peak memory of a call: of the allocator on CUDA; on a CPU of the whole process, which should be a fresh one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from fastdistill.loop.environment import peak_memory_mb, release_freed_memory, resident_memory


def peak_beyond(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that are held while a call runs, beyond those that were held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        release_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is none of ours; Linux forgets it
        before = resident_memory()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = round(peak_memory_mb(device) * 1e6)
    del result
    return max(0, peak - before)
