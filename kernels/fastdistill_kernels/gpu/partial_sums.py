"""The second half of a sum without atomics: what the programs of a kernel left behind, added up in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Launch, power_of_two

_LONGEST = 1024  # partial sums that one step of the loop takes: eight a thread


@triton.jit
def row_sum(p_partials, row, count, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Sum of one row of ``partials [rows, count]``."""
    total = tl.zeros([BLOCK], tl.float32)
    for tile in range(TILES):
        o = tile * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(p_partials + row * count + o, mask=o < count, other=0.0)
    return tl.sum(total)


@triton.jit
def sum_kernel(p_partials, p_sums, count, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """One row's sum."""
    row = tl.program_id(0).to(tl.int64)
    tl.store(p_sums + row, row_sum(p_partials, row, count, BLOCK, TILES))


def tiling(count: int) -> dict[str, int]:
    """The constants of a `row_sum` over rows of ``count`` partial sums, at least one."""
    block = min(power_of_two(count), _LONGEST)
    return {"BLOCK": block, "TILES": triton.cdiv(count, block)}


def prepare_partial_sums(partials: Tensor) -> tuple[Tensor, list[Launch]]:
    """Sums the last axis, each row in an order that depends on its length alone.

    Args:
        partials: float32 ``[..., blocks]``, contiguous, at least one block; filled by launches before these.

    Returns:
        The sums ``[...]`` and the launches that make them: none for a single block.
    """
    count = partials.shape[-1]
    if count == 1:
        return partials.squeeze(-1), []
    sums = torch.empty(partials.shape[:-1], dtype=partials.dtype, device=partials.device)
    launch = Launch(
        kernel=sum_kernel,
        grid=sums.numel(),
        arguments={"p_partials": partials, "p_sums": sums, "count": count},
        constants=tiling(count),
    )
    return sums, [launch]
