"""Triton kernel of `fastdistill_kernels.softmax_xent`: a program takes some rows of one (student, group) pair.

Its sum over rows is a partial one; a pair whose rows fit in one program, as synthetic batches do, needs no second
launch. Classes that do not fit on chip are read twice: once for the sums over them, once for the results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, Launch, power_of_two
from fastdistill_kernels.gpu.partial_sums import prepare_partial_sums

# Logits of a program: eight a thread of four warps, so that the dual's eight arrays of them stay far from the 255
# registers; and of its longest row: with twice as many warps, sixteen. Not yet measured on a device.
_TILE, _LONGEST = 1024, 4096
_LEAST = tl.constexpr(-3.4028234663852886e38)  # finite: a tile of −∞ alone must not make NaN of 0


@triton.jit
def _logits(p_z, p_row, o_class, m_row, classes):
    """A tile of logits in float32: −∞ beyond the classes, 0 beyond the rows."""
    m_class = (o_class < classes)[None, :]
    b_z = tl.load(p_z + p_row[:, None] + o_class[None, :], mask=m_row[:, None] & m_class, other=0.0).to(tl.float32)
    return tl.where(m_class, b_z, float("-inf"))


@triton.jit
def _tangents(p_dz, p_row, o_class, m_row, classes):
    """A tile of tangents in float32, zero outside."""
    m = m_row[:, None] & (o_class < classes)[None, :]
    return tl.load(p_dz + p_row[:, None] + o_class[None, :], mask=m, other=0.0).to(tl.float32)


@triton.jit
def _labels(p_labels, p_label, o_class, m_row, classes, stride_c, SOFT: tl.constexpr):
    """A tile of labels in float32, zero outside."""
    m = m_row[:, None] & (o_class < classes)[None, :]
    if SOFT:
        p_soft = p_labels + p_label[:, None] + o_class.to(tl.int64)[None, :] * stride_c
        return tl.load(p_soft, mask=m, other=0.0).to(tl.float32)
    else:
        b_index = tl.load(p_labels + p_label, mask=m_row, other=-1)
        return tl.where(m & (o_class[None, :] == b_index[:, None]), 1.0, 0.0)


@triton.jit
def _results(
    b_z, b_dz, b_y, peak, mass, moved, weight, p_gradient, p_dgradient, p_product, p_row, o_class, m_row, classes,
    share, SOFT: tl.constexpr, DUAL: tl.constexpr,
):  # fmt: skip
    """Writes a tile of every result; the rows' parts of the loss and its tangent."""
    m = m_row[:, None] & (o_class < classes)[None, :]
    o = p_row[:, None] + o_class[None, :]
    b_shifted = b_z - peak[:, None]
    b_log = b_shifted - tl.log(mass)[:, None]
    b_scaled = tl.exp(b_shifted) * (weight * share / mass)[:, None]
    tl.store(p_gradient + o, (b_scaled - b_y * share).to(p_gradient.dtype.element_ty), mask=m)
    counted = m if SOFT else b_y > 0  # nothing times −∞ must not spoil the sum
    loss = tl.sum(b_y * tl.where(counted, b_log, 0.0), 1)
    dloss = tl.zeros_like(loss)
    if DUAL:
        b_tangent = b_dz - (moved / mass)[:, None]
        tl.store(p_dgradient + o, (b_scaled * b_tangent).to(p_dgradient.dtype.element_ty), mask=m)
        dloss = tl.sum(b_y * b_tangent, 1)
        if SOFT:
            tl.store(p_product + o, (b_tangent * -share).to(p_product.dtype.element_ty), mask=m)
    return loss, dloss


@triton.jit
def softmax_xent_kernel(
    p_z, p_dz, p_labels, p_partials, p_gradient, p_dgradient, p_product, pairs, groups, samples, classes, blocks,
    stride_s, stride_g, stride_n, stride_c, share,
    SOFT: tl.constexpr, DUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Some rows of a pair; their parts of the loss (and its tangent) go to ``partials [1 or 2, S·G, blocks]``."""
    pid = tl.program_id(0).to(tl.int64)
    pair, block = pid // blocks, pid % blocks
    o_row = block * ROWS + tl.arange(0, ROWS)
    m_row = o_row < samples
    p_row = (pair * samples + o_row) * classes
    p_label = (pair // groups) * stride_s + (pair % groups) * stride_g + o_row * stride_n
    o_class = tl.arange(0, BLOCK)

    moved, weight = tl.zeros([ROWS], tl.float32), tl.full([ROWS], 1.0, tl.float32)
    b_dz = tl.zeros([ROWS, BLOCK], tl.float32)
    if TILES == 1:
        b_z = _logits(p_z, p_row, o_class, m_row, classes)
        b_y = _labels(p_labels, p_label, o_class, m_row, classes, stride_c, SOFT)
        peak = tl.max(b_z, 1)
        b_mass = tl.exp(b_z - peak[:, None])
        mass = tl.sum(b_mass, 1)
        if DUAL:
            b_dz = _tangents(p_dz, p_row, o_class, m_row, classes)
            moved = tl.sum(b_mass * b_dz, 1)
        if SOFT:
            weight = tl.sum(b_y, 1)
        loss, dloss = _results(
            b_z, b_dz, b_y, peak, mass, moved, weight, p_gradient, p_dgradient, p_product,
            p_row, o_class, m_row, classes, share, SOFT, DUAL,
        )  # fmt: skip
    else:
        peak, mass = tl.full([ROWS], _LEAST, tl.float32), tl.zeros([ROWS], tl.float32)
        loss, dloss = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        if SOFT:
            weight = tl.zeros([ROWS], tl.float32)
        for tile in range(TILES):
            o = tile * BLOCK + o_class
            b_z = _logits(p_z, p_row, o, m_row, classes)
            higher = tl.maximum(peak, tl.max(b_z, 1))
            b_mass = tl.exp(b_z - higher[:, None])
            shrunk = tl.exp(peak - higher)
            mass = mass * shrunk + tl.sum(b_mass, 1)
            if DUAL:
                moved = moved * shrunk + tl.sum(b_mass * _tangents(p_dz, p_row, o, m_row, classes), 1)
            if SOFT:
                weight += tl.sum(_labels(p_labels, p_label, o, m_row, classes, stride_c, SOFT), 1)
            peak = higher
        for tile in range(TILES):
            o = tile * BLOCK + o_class
            b_z = _logits(p_z, p_row, o, m_row, classes)
            b_y = _labels(p_labels, p_label, o, m_row, classes, stride_c, SOFT)
            if DUAL:
                b_dz = _tangents(p_dz, p_row, o, m_row, classes)
            more, dmore = _results(
                b_z, b_dz, b_y, peak, mass, moved, weight, p_gradient, p_dgradient, p_product,
                p_row, o, m_row, classes, share, SOFT, DUAL,
            )  # fmt: skip
            loss += more
            dloss += dmore
    if not SOFT:
        b_index = tl.load(p_labels + p_label, mask=m_row, other=0)
        loss = tl.where((b_index >= 0) & (b_index < classes), loss, float("nan"))
    # rows beyond the samples have no label, and so no part in either
    tl.store(p_partials + pid, -share * tl.sum(loss))
    if DUAL:
        tl.store(p_partials + pairs * blocks + pid, -share * tl.sum(dloss))


def tiles(samples: int, classes: int) -> tuple[int, int, int, int]:
    """Rows and classes of a program's tile, tiles of its rows, and its warps."""
    block = min(power_of_two(classes), _LONGEST)
    rows = min(power_of_two(samples), max(_TILE // block, 1))
    return rows, block, -(-classes // block), 4 if rows * block <= 2 * _TILE else 8


def prepare_softmax_xent(
    z: Tensor, dz: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Launch]]:
    """Losses ``[1 or 2, S, G]``, gradient, its tangent, label product, and the launches that fill them.

    Args:
        z: logits ``[S, G, n, C]``.
        dz: their tangent, for the dual.
        labels: class indices or soft labels, strided as they like.

    Returns:
        What is not wanted is an empty tensor.
    """
    students, groups, samples, classes = z.shape
    soft, dual = labels.ndim == z.ndim, dz is not None
    rows, block, count, warps = tiles(samples, classes)
    blocks = max(1, -(-samples // rows))  # one even for n = 0, whose loss is zero
    strides = labels.expand(students, groups, *labels.shape[2:]).stride()
    partials = torch.empty(1 + dual, students, groups, blocks, dtype=torch.float32, device=z.device)
    gradient, dgradient, product = (
        torch.empty(z.shape if wanted else (0,), dtype=z.dtype, device=z.device)
        for wanted in (True, dual, dual and soft)
    )
    launch = Launch(
        kernel=softmax_xent_kernel,
        grid=students * groups * blocks,
        arguments={
            "p_z": z.contiguous(),
            "p_dz": None if dz is None else dz.contiguous(),
            "p_labels": labels,
            "p_partials": partials,
            "p_gradient": gradient,
            "p_dgradient": dgradient if dual else None,
            "p_product": product if dual and soft else None,
            "pairs": students * groups,
            "groups": groups,
            "samples": samples,
            "classes": classes,
            "blocks": blocks,
            "stride_s": strides[0],
            "stride_g": strides[1],
            "stride_n": strides[2],
            "stride_c": strides[3] if soft else 0,
            "share": 1 / max(samples, 1),
        },
        constants={"SOFT": soft, "DUAL": dual, "ROWS": rows, "BLOCK": block, "TILES": count},
        warps=warps,
    )
    losses, second = prepare_partial_sums(partials)
    return losses, gradient, dgradient, product, [launch, *second]


def softmax_xent(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Launches what `fastdistill_kernels.reference.softmax_xent.softmax_xent` computes."""
    losses, gradient, _, _, launches = prepare_softmax_xent(z, None, labels)
    for launch in launches:
        launch.run()
    return losses[0], gradient


def dual_softmax_xent(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches what `fastdistill_kernels.reference.softmax_xent.dual_softmax_xent` computes."""
    losses, gradient, dgradient, product, launches = prepare_softmax_xent(z, dz, labels)
    for launch in launches:
        launch.run()
    return losses, gradient, dgradient, product


_SHAPES = {  # of logits: real images of a class, synthetic ones, many classes, more than fit on chip, ones
    "real": (16, 10, 256, 10),
    "synthetic": (16, 10, 10, 10),
    "many": (16, 1, 64, 1000),
    "most": (16, 10, 1, 20_000),
    "ones": (1, 1, 1, 1),
}
_VARIANTS = (
    ("real", "hard", "value", "float32"),
    ("real", "hard", "value", "bf16"),
    ("synthetic", "hard", "dual", "float32"),
    ("synthetic", "soft", "dual", "float32"),
    ("synthetic", "soft", "dual", "bf16"),
    ("many", "soft", "dual", "float32"),
    ("most", "soft", "dual", "float32"),
    ("ones", "hard", "value", "float32"),
    ("ones", "soft", "dual", "float32"),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for ConvNets of ten classes and more; extents of one too, which the compiler takes out."""
    found = {}
    for size, kind, mode, precision in _VARIANTS:
        z = torch.empty(_SHAPES[size], dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device="meta")
        hard = torch.empty(1, *z.shape[1:3], dtype=torch.int64, device="meta")
        prepared = prepare_softmax_xent(z, z if mode == "dual" else None, z[:1] if kind == "soft" else hard)
        found[f"softmax_xent/{size}/{kind}/{mode}/{precision}"] = prepared[-1]
    return found
