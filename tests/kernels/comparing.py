"""How far a kernel's results may lie from float64's, as a share of their norm."""

import torch

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def error(found, truth):
    """‖found − truth‖ / ‖truth‖ in float64; infinite where anything found is not a number."""
    if found.shape != truth.shape:
        raise AssertionError(f"shapes differ: {tuple(found.shape)} and {tuple(truth.shape)}")
    difference = (found.double() - truth.double()).norm()
    if not difference.isfinite():
        return float("inf")
    scale = truth.double().norm()
    return (difference / scale if scale > 0 else difference).item()
