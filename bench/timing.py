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
from fastdistill.loop.peaks import matmul_flops, synchronize


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


def write_results(path: str, name: str, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Writes rows with the environment they were measured in."""
    content = {
        "benchmark": name,
        "matmul_2048_float32_gflops": round(matmul_flops(device) / 1e9, 1),
        "environment": describe_environment(),
        "rows": rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1) + "\n")
