"""Kernels of `fastdistill_kernels.match`: a program takes one row, or a run of elements, of one pair of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, Launch, power_of_two
from fastdistill_kernels.gpu.partial_sums import prepare_partial_sums
from fastdistill_kernels.match import LONGEST_ROW, RowTable, longest_program
from fastdistill_kernels.reference.match import EPSILON

_MOST_SUMS = 512  # partial products that a program adds up for itself: 6 KB beside the 24 KB that it moves
_PER_THREAD = 16  # elements of each gradient that a thread holds: enough loads in flight, far from the 255 registers


@triton.jit
def _cosine(dot, square_a, square_b, EPSILON: tl.constexpr):
    """Distance of a row, the factors of ``a`` and ``b`` in its cotangent, and whether it is dead."""
    norm_a, norm_b = tl.sqrt(square_a), tl.sqrt(square_b)
    scale = norm_a * norm_b + EPSILON
    dead = norm_a == 0  # a row that is no number is not dead
    pull = dot * norm_b / (scale * scale * tl.where(dead, 1.0, norm_a))
    return 1.0 - dot / scale, pull, 1.0 / scale, dead


@triton.jit
def _row(p_table, program):
    """Pair, offset from the pair's start, length, columns and whether it is alive, of a program."""
    p_row = p_table + program * 4
    return tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2), tl.load(p_row + 3) > 0


@triton.jit
def _block(p_a, p_b, o, length, alive):
    """A block of both gradients in float32, zero outside of a living row, and which of its elements are inside."""
    m = (o < length) & alive
    b_a = tl.load(p_a + o, mask=m, other=0.0).to(tl.float32)
    b_b = tl.load(p_b + o, mask=m, other=0.0).to(tl.float32)
    return b_a, b_b, m


@triton.jit
def rows_kernel(
    p_a, p_b, p_cotangent, p_partial, p_table, programs, size,
    DISTANCE: tl.constexpr, EPSILON: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program a row or run: its distance goes to ``partial [pairs, programs]``, its cotangent where it lies."""
    pid = tl.program_id(0).to(tl.int64)
    offset, length, columns, alive = _row(p_table, pid % programs)
    base = (pid // programs) * size + offset
    o_block = tl.arange(0, BLOCK)
    if DISTANCE == "ours":
        dot, square_a, square_b = 0.0, 0.0, 0.0
        b_a, b_b, m = _block(p_a + base, p_b + base, o_block, length, alive)
        for block in range(BLOCKS):
            if BLOCKS > 1:
                b_a, b_b, m = _block(p_a + base, p_b + base, block * BLOCK + o_block, length, alive)
            dot += tl.sum(b_a * b_b)
            square_a += tl.sum(b_a * b_a)
            square_b += tl.sum(b_b * b_b)
        value, of_a, of_b, dead = _cosine(dot, square_a, square_b, EPSILON)
        for block in range(BLOCKS):
            o = block * BLOCK + o_block
            if BLOCKS > 1:  # too long a row for the chip: read again, by a loop that is one, or all would be held
                b_a, b_b, m = _block(p_a + base, p_b + base, o, length, alive)
            tl.store(
                p_cotangent + base + o, tl.where(m, tl.where(dead, 0.0, of_a * b_a - of_b * b_b), 0.0), mask=o < length
            )
    else:
        m = (o_block < length) & alive
        b_a = tl.load(p_a + base + o_block, mask=m, other=0.0).to(tl.float32)
        b_b = tl.load(p_b + base + o_block, mask=m, other=0.0).to(tl.float32)
        difference = b_a - b_b
        if DISTANCE == "mse":
            value = tl.sum(difference * difference)
            pulled = 2.0 * difference
        else:
            share = 1.0
            if DISTANCE == "l1_mean":
                share = 1.0 / columns.to(tl.float32)
            value = tl.sum(tl.abs(difference)) * share
            pulled = tl.where(difference > 0, share, tl.where(difference < 0, -share, difference))
        tl.store(p_cotangent + base + o_block, pulled, mask=o_block < length)
    tl.store(p_partial + pid, tl.where(alive, value, 0.0))


@triton.jit
def sums_kernel(p_a, p_b, p_partial, p_table, programs, size, BLOCK: tl.constexpr):
    """The three products of one run, to ``partial [pairs, 3, programs]``."""
    pid = tl.program_id(0).to(tl.int64)
    program, pair = pid % programs, pid // programs
    offset, length, _, alive = _row(p_table, program)
    o = tl.arange(0, BLOCK)
    m = (o < length) & alive
    p_at = pair * size + offset + o
    b_a = tl.load(p_a + p_at, mask=m, other=0.0).to(tl.float32)
    b_b = tl.load(p_b + p_at, mask=m, other=0.0).to(tl.float32)
    p_out = p_partial + pair * 3 * programs + program
    tl.store(p_out, tl.sum(b_a * b_b))
    tl.store(p_out + programs, tl.sum(b_a * b_a))
    tl.store(p_out + 2 * programs, tl.sum(b_b * b_b))


@triton.jit
def cotangent_kernel(
    p_a, p_b, p_cotangent, p_value, p_partial, p_table, programs, sums, size,
    EPSILON: tl.constexpr, BLOCK: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The cotangent of one run; every program adds the partial products up for itself, in the same order."""
    pid = tl.program_id(0).to(tl.int64)
    program, pair = pid % programs, pid // programs
    o_sum = tl.arange(0, SUMS)
    p_in = p_partial + pair * 3 * sums + o_sum
    dot = tl.sum(tl.load(p_in, mask=o_sum < sums, other=0.0))
    square_a = tl.sum(tl.load(p_in + sums, mask=o_sum < sums, other=0.0))
    square_b = tl.sum(tl.load(p_in + 2 * sums, mask=o_sum < sums, other=0.0))
    value, of_a, of_b, dead = _cosine(dot, square_a, square_b, EPSILON)
    offset, length, _, alive = _row(p_table, program)
    o = tl.arange(0, BLOCK)
    m = (o < length) & alive
    p_at = pair * size + offset + o
    b_a = tl.load(p_a + p_at, mask=m, other=0.0).to(tl.float32)
    b_b = tl.load(p_b + p_at, mask=m, other=0.0).to(tl.float32)
    tl.store(p_cotangent + p_at, tl.where(m, tl.where(dead, 0.0, of_a * b_a - of_b * b_b), 0.0), mask=o < length)
    if program == 0:
        tl.store(p_value + pair, value)


def blocks(longest: int) -> tuple[int, int, int]:
    """Elements of a block, blocks of the longest row, and warps of a program."""
    block = min(power_of_two(longest), LONGEST_ROW)
    return block, -(-longest // block), min(max(block // (32 * _PER_THREAD), 1), 8)


def prepare_match(
    a: Tensor, b: Tensor, table: Tensor, longest: int, distance: str
) -> tuple[Tensor, Tensor, list[Launch]]:
    """Partial or whole distances, the cotangent, and the launches that fill them."""
    size, programs = a.shape[-1], len(table)
    pairs = prod(a.shape[:-1])
    block, count, warps = blocks(longest)
    shared = {"p_table": table, "programs": programs, "size": size}
    cotangent = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    if distance != "cos":
        partial = torch.empty(*a.shape[:-1], programs, dtype=torch.float32, device=a.device)
        rows = Launch(
            kernel=rows_kernel,
            grid=pairs * programs,
            arguments={"p_a": a, "p_b": b, "p_cotangent": cotangent, "p_partial": partial, **shared},
            constants={"DISTANCE": distance, "EPSILON": EPSILON, "BLOCK": block, "BLOCKS": count},
            warps=warps,
        )
        return partial, cotangent, [rows]
    # without programs nobody fills it, and 1 is the distance of nothing
    value = (torch.empty if programs else torch.ones)(a.shape[:-1], dtype=torch.float32, device=a.device)
    products = torch.empty(*a.shape[:-1], 3, programs, dtype=torch.float32, device=a.device)
    sums = Launch(
        kernel=sums_kernel,
        grid=pairs * programs,
        arguments={"p_a": a, "p_b": b, "p_partial": products, **shared},
        constants={"BLOCK": block},
        warps=warps,
    )
    # past a few hundred runs, adding their products up once is less than every program doing it
    added, adding = prepare_partial_sums(products) if programs > _MOST_SUMS else (products, [])
    count = added.numel() // max(3 * pairs, 1)
    pull = Launch(
        kernel=cotangent_kernel,
        grid=pairs * programs,
        arguments={
            "p_a": a,
            "p_b": b,
            "p_cotangent": cotangent,
            "p_value": value,
            "p_partial": added,
            "p_table": table,
            "programs": programs,
            "sums": count,
            "size": size,
        },
        constants={"EPSILON": EPSILON, "BLOCK": block, "SUMS": power_of_two(count)},
        warps=warps,
    )
    return value, cotangent, [sums, *adding, pull]


def match(
    a: Tensor,
    b: Tensor,
    table: Tensor,
    offsets: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    distance: str,
) -> tuple[Tensor, Tensor]:
    """Launches what `fastdistill_kernels.reference.match.match` computes.

    Args:
        a: synthetic gradients ``[..., P]``.
        b: real gradients ``[..., P]``.
        table: `fastdistill_kernels.match.RowTable.programs_on` of the segments, for this distance.
        offsets: where each segment begins.
        rows: how many rows it has.
        columns: how long these are.
        distance: its name.
    """
    longest = longest_program(columns, distance)
    value, cotangent, launches = prepare_match(a.contiguous(), b.contiguous(), table, longest, distance)
    for launch in launches:
        launch.run()
    return (value if distance == "cos" else value.sum(-1)), cotangent


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for a ConvNet-3-128 on images of 32×32, sixteen students, ten classes."""
    convnet = ((128, 27), (128, 1152), (128, 1152), (10, 2048))
    found = {}
    for distance, name, dtype, sizes in (
        ("ours", "float32", torch.float32, convnet),
        ("ours", "bf16", torch.bfloat16, convnet),
        ("mse", "float32", torch.float32, convnet),
        ("mse", "bf16", torch.bfloat16, convnet),
        ("l1", "float32", torch.float32, convnet),
        ("l1_mean", "float32", torch.float32, convnet),
        ("l1_mean", "bf16", torch.bfloat16, convnet),
        ("cos", "float32", torch.float32, convnet),
        ("cos", "bf16", torch.bfloat16, convnet),
        ("ours", "long/float32", torch.float32, ((10, 32_768),)),  # rows that no program holds, of images of 128×128
    ):
        begins = [sum(r * c for r, c in sizes[:i]) for i in range(len(sizes) + 1)]
        table = RowTable(tuple(zip(begins[:-1], *zip(*sizes, strict=True), strict=True)), begins[-1])
        a = torch.empty(16, 10, table.size, dtype=dtype, device="meta")
        programs = torch.empty(len(table.programs(distance)), 4, dtype=torch.int64, device="meta")
        longest = longest_program([columns for _, columns in sizes], distance)
        found[f"match/{distance}/{name}"] = prepare_match(a, a, programs, longest, distance)[2]
    return found
