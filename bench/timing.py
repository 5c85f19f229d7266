"""Timing and environment for the measuring scripts: one process, interleaved repeats, medians."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastdistill.loop.environment import describe_environment


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every candidate; each repeat runs all of them in turn, so that drift hits all alike."""
    for call in candidates.values():  # warm-up
        call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def paired_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over repeats of the ratio within a repeat."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


def matmul_gflops(device: torch.device, size: int = 2048) -> float:
    """Rate of a float32 matrix product, the yardstick that makes times of different machines comparable."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    seconds = median(interleaved({"matmul": lambda: a @ b}, device=device, repeats=9)["matmul"])
    return 2 * size**3 / seconds / 1e9


def write_results(path: str, name: str, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Writes rows with the environment they were measured in."""
    content = {
        "benchmark": name,
        "matmul_2048_float32_gflops": round(matmul_gflops(device), 1),
        "environment": describe_environment(),
        "rows": rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def synchronize(device: torch.device) -> None:
    """Waits for a device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
