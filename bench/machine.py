"""What a benchmark ran on, and what that machine can do at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fastdistill.loop.environment import describe_environment
from fastdistill.loop.peaks import copy_bandwidth, launch_seconds, matmul_flops

MACHINE = pytest.StashKey[Mapping[str, Any]]()  # where a session of pytest keeps it


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, threads, and the peaks measured in this process: a product, a copy, a tiny operator."""
    described = {"device": device.type, "environment": describe_environment(), "threads": torch.get_num_threads()}
    peaks = {"copy_bytes_per_s": copy_bandwidth(device), "launch_s": launch_seconds(device)}
    for precision in ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32",):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        side = 8192 if device.type == "cuda" else 2048
        peaks[f"matmul_{precision}_flops_per_s"] = matmul_flops(device, dtype, tf32=precision == "tf32", side=side)
    return {**described, "peaks": peaks}
