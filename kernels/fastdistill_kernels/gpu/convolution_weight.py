"""Weight gradients of student-batched convolutions as one matrix product over positions, value and tangent together.

Rows are output channels, columns are (tap, input channel), and the contracted axis is (image, output position), split
over programs where a few large students would leave the device idle: every split writes its own partial sums, which
are added in order afterwards, so results are the same bits every time. The bias is the weight of a channel of ones,
one more column that costs nothing where columns do not fill a tile anyway.
Values: `fastdistill_kernels.reference.convolution`; derivation: ``kernels/README.md``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdistill_kernels.gpu.convolution_parts import (
    LEAST,
    PRECISIONS,
    Tile,
    alike,
    example,
    expect_indexable,
    fit,
    most_depth,
    narrow,
    sparing,
)
from fastdistill_kernels.gpu.launching import (
    ALL_REGISTERS,
    Capability,
    Launch,
    addressable,
    capability,
    expect_reachable,
    interpreted,
    power_of_two,
)

_PROGRAMS = 512  # that fill a device: two to four on each of 108 to 304 multiprocessors
_STEPS = 8  # least of a split, so that its partial sums are not most of its traffic


@triton.jit
def weight_kernel(
    x, dx, gy, dgy, gw, dgw, gb, dgb, images, steps, splits, groups,
    x_s, x_g, dx_s, dx_g, x_n, x_c, x_h, x_w, gy_s, gy_g, dgy_s, dgy_g, gy_n, gy_f, gy_h, gy_w,
    CHANNELS: tl.constexpr, FEATURES: tl.constexpr, H_IN: tl.constexpr, W_IN: tl.constexpr,
    H_OUT: tl.constexpr, W_OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    VALUE: tl.constexpr, DUAL: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of one (student, group)'s gradient over one split of its positions."""
    HAS_DX: tl.constexpr = dx is not None
    TAPS: tl.constexpr = KERNEL * KERNEL
    SCALAR_TAP: tl.constexpr = CHANNELS % BN == 0
    # a tile that lies within one tap has no column to spare: its bias is summed elsewhere
    ONES: tl.constexpr = BIAS and not SCALAR_TAP
    COLUMN_TILES: tl.constexpr = (TAPS * CHANNELS + (1 if ONES else 0) + BN - 1) // BN
    FEATURE_TILES: tl.constexpr = (FEATURES + BM - 1) // BM

    index = tl.program_id(0).to(tl.int64)
    column_tile = (index % COLUMN_TILES).to(tl.int32)
    index = index // COLUMN_TILES
    feature = (index % FEATURE_TILES).to(tl.int32) * BM + tl.arange(0, BM)
    index = index // FEATURE_TILES
    split = index % splits
    pair = index // splits
    student = pair // groups
    group = pair % groups

    column = column_tile * BN + tl.arange(0, BN)
    if SCALAR_TAP:
        tap = column_tile // (CHANNELS // BN)
        channel = column_tile % (CHANNELS // BN) * BN + tl.arange(0, BN)
    else:
        tap = column // CHANNELS
        channel = column % CHANNELS
    tap_y = tap // KERNEL - PADDING
    tap_x = tap % KERNEL - PADDING
    o_column = channel * x_c + tap_y * x_h + tap_x * x_w
    m_column = column < TAPS * CHANNELS
    m_feature = feature < FEATURES
    p_x = x + student * x_s + group * x_g + o_column[None, :]
    p_gy = gy + student * gy_s + group * gy_g + (feature * gy_f)[None, :]
    if HAS_DX:
        p_dx = dx + student * dx_s + group * dx_g + o_column[None, :]
    if DUAL:
        p_dgy = dgy + student * dgy_s + group * dgy_g + (feature * gy_f)[None, :]

    value = tl.zeros((BM, BN), tl.float32)
    tangent = tl.zeros((BM, BN), tl.float32)
    first = split.to(tl.int32) * steps
    for step in range(first, first + steps):
        position = step * BK + tl.arange(0, BK)
        image = position // (H_OUT * W_OUT)
        row = position % (H_OUT * W_OUT) // W_OUT
        place = position % W_OUT
        inside = image < images
        o_x = image.to(tl.int64) * x_n + (row * STRIDE * x_h + place * STRIDE * x_w)
        o_gy = image.to(tl.int64) * gy_n + (row * gy_h + place * gy_w)
        if SCALAR_TAP:
            at_y = row * STRIDE + tap_y
            at_x = place * STRIDE + tap_x
            m_x = (inside & (at_y >= 0) & (at_y < H_IN) & (at_x >= 0) & (at_x < W_IN))[:, None]
        else:
            at_y = row[:, None] * STRIDE + tap_y[None, :]
            at_x = place[:, None] * STRIDE + tap_x[None, :]
            m_x = inside[:, None] & (at_y >= 0) & (at_y < H_IN) & (at_x >= 0) & (at_x < W_IN) & m_column[None, :]
        m_gy = inside[:, None] & m_feature[None, :]
        b_x = tl.load(p_x + o_x[:, None], mask=m_x, other=0.0)
        b_gy = tl.load(p_gy + o_gy[:, None], mask=m_gy, other=0.0)
        if UPCAST:
            b_x = b_x.to(tl.float32)
            b_gy = b_gy.to(tl.float32)
        if ONES:
            b_x = tl.where((column == TAPS * CHANNELS)[None, :], 1.0, b_x)
        if VALUE:
            value = tl.dot(tl.trans(b_gy), b_x, value, input_precision=PRECISION)
        if HAS_DX:
            b_dx = tl.load(p_dx + o_x[:, None], mask=m_x, other=0.0)
            if UPCAST:
                b_dx = b_dx.to(tl.float32)
            tangent = tl.dot(tl.trans(b_gy), b_dx, tangent, input_precision=PRECISION)
        if DUAL:
            b_dgy = tl.load(p_dgy + o_gy[:, None], mask=m_gy, other=0.0)
            if UPCAST:
                b_dgy = b_dgy.to(tl.float32)
            tangent = tl.dot(tl.trans(b_dgy), b_x, tangent, input_precision=PRECISION)

    # partial sums [splits, S, G, O, (k, k, I)] and [splits, S, G, O]: neighbouring channels, so that stores are whole
    part = split * (tl.num_programs(0) // (COLUMN_TILES * FEATURE_TILES * splits)) + pair
    o_w = feature[:, None] * (TAPS * CHANNELS) + column[None, :]
    o_b = feature[:, None] + tl.zeros((BM, BN), tl.int32)
    m_w = m_feature[:, None] & m_column[None, :]
    m_b = m_feature[:, None] & (column == TAPS * CHANNELS)[None, :]
    if VALUE:
        tl.store(gw + part * (FEATURES * TAPS * CHANNELS) + o_w, value, mask=m_w)
        if ONES:
            tl.store(gb + part * FEATURES + o_b, value, mask=m_b)
    if DUAL:
        tl.store(dgw + part * (FEATURES * TAPS * CHANNELS) + o_w, tangent, mask=m_w)
        if ONES:
            tl.store(dgb + part * FEATURES + o_b, tangent, mask=m_b)


def choose_tile(
    features: int,
    columns: int,
    channels: int,
    positions: int,
    itemsize: int,
    *,
    exact: bool,
    dual: bool,
    operands: int,
    of: Capability,
) -> Tile:
    """The tile of a weight gradient, by its shape and the device.

    Args:
        features: output channels.
        columns: taps times input channels, and one for a bias.
        channels: of the input.
        positions: contracted, of all images of one (student, group).
        itemsize: bytes of an operand's element.
        exact: float32 products, which tensor cores do not take: their operands live in registers.
        dual: two accumulators.
        operands: tiles of rows and of columns loaded at every step.
        of: the device.
    """
    widest = 64 if exact else 128
    tall = min(widest, max(LEAST, power_of_two(features)))
    within = next((w for w in (128, 64, 32) if w <= widest and channels % w == 0), 0)
    wide = within or min(widest, max(LEAST, power_of_two(columns)))
    lean = narrow(exact, dual, of)
    if lean and tall * wide > 128 * 64:
        wide //= 2
    gathered, tangent = channels % wide != 0, operands > 2
    deepest = most_depth(itemsize, exact=exact, crowded=lean or (gathered and tangent), of=of)
    if gathered:
        wide, deepest = sparing(wide, deepest, exact=exact, crowded=tangent and (itemsize == 4 or of < (9, 0)))
    depth = min(deepest, max(LEAST, power_of_two(positions)))
    stage = (operands // 2 * wide + (operands - operands // 2) * tall) * itemsize
    # where the assembler, left to itself, would spill to have room for one program more; found by compiling, not timed
    limit = ALL_REGISTERS if tangent and (gathered or (itemsize == 4 and of >= (10, 0))) else None
    tile = Tile(tall, wide, depth, 8, 4, limit)
    return fit(tile, stage, gathered=wide if gathered else 0, exact=exact, tangent=tangent, of=of)


def prepare_weight_gradient(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    precision: str,
    *,
    value: bool,
    of: Capability | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Launch]]:
    """Partial sums of ``gw, ġw`` ``[splits, S, G, O, k, k, I]`` and ``gb, ġb`` ``[splits, S, G, O]``, and the launch.

    What is not wanted is empty, and so are the biases' where no column is to spare for them.

    Args:
        x: ``[S, G, n, I, H, W]``.
        dx: like x, or None for zero.
        gy: ``[S, G, n, O, H', W']``.
        dgy: like gy, or None without a tangent.
        kernel: taps a side.
        stride: of the kernel.
        padding: of the convolution.
        bias: whether the bias's gradient is wanted.
        precision: ``ieee`` or ``tf32``.
        value: whether the value is wanted.
        of: the device to prepare for; x's by default.

    Raises:
        ValueError: for more positions, or an image with more elements, than 32 bits count.
    """
    expect_reachable("one student's weight gradient", gy.shape[3], x.shape[3], kernel, kernel)
    x, gy = addressable(x, 3, "one image"), addressable(gy, 3, "one image")
    dx = None if dx is None else addressable(dx, 3, "one image")
    dgy = None if dgy is None else addressable(dgy, 3, "one image")
    dual = dgy is not None
    of = of or capability(x.device)
    students, groups, count, channels, height, width = x.shape
    features, high, wide = gy.shape[3:]
    taps, positions = kernel * kernel, count * high * wide
    expect_indexable(positions)
    tile = choose_tile(
        features,
        taps * channels + bias,
        channels,
        positions,
        x.element_size(),
        exact=x.dtype == torch.float32 and precision == "ieee",
        dual=dual and value,
        operands=2 + dual + (dx is not None),
        of=of,
    )
    ones = bias and channels % tile.columns != 0
    tiles = -(-features // tile.rows) * -(-(taps * channels + ones) // tile.columns)
    steps = -(-positions // tile.depth)
    splits = max(1, min(-(-_PROGRAMS // max(tiles * students * groups, 1)), steps // _STEPS))
    steps = -(-steps // splits)
    splits = max(1, -(-positions // (steps * tile.depth))) if steps else 1
    x, dx = alike(x, dx)
    gy, dgy = alike(gy, dgy)

    def partial(wanted: bool, *shape: int) -> Tensor:
        lead = (splits, students, groups, features, *shape) if wanted else (0,)
        return torch.empty(lead, dtype=torch.float32, device=x.device)

    gw, dgw = partial(value, kernel, kernel, channels), partial(dual, kernel, kernel, channels)
    gb, dgb = partial(value and ones), partial(dual and ones)
    launch = Launch(
        kernel=weight_kernel,
        grid=students * groups * splits * tiles,
        arguments={
            "x": x,
            "dx": dx,
            "gy": gy,
            "dgy": dgy,
            "gw": gw if value else None,
            "dgw": dgw if dual else None,
            "gb": gb if value and ones else None,
            "dgb": dgb if dual and ones else None,
            "images": count,
            "steps": steps,
            "splits": splits,
            "groups": groups,
            **dict(zip(("x_s", "x_g"), x.stride(), strict=False)),
            **dict(zip(("dx_s", "dx_g"), (0, 0) if dx is None else dx.stride(), strict=False)),
            **dict(zip(("x_n", "x_c", "x_h", "x_w"), x.stride()[2:], strict=True)),
            **dict(zip(("gy_s", "gy_g"), gy.stride(), strict=False)),
            **dict(zip(("dgy_s", "dgy_g"), (0, 0) if dgy is None else dgy.stride(), strict=False)),
            **dict(zip(("gy_n", "gy_f", "gy_h", "gy_w"), gy.stride()[2:], strict=True)),
        },
        constants={
            "CHANNELS": channels,
            "FEATURES": features,
            "H_IN": height,
            "W_IN": width,
            "H_OUT": high,
            "W_OUT": wide,
            "KERNEL": kernel,
            "STRIDE": stride,
            "PADDING": padding,
            "VALUE": value,
            "DUAL": dual,
            "BIAS": bias,
            "PRECISION": precision,
            "UPCAST": interpreted() and x.dtype == torch.bfloat16,
            "BM": tile.rows,
            "BN": tile.columns,
            "BK": tile.depth,
        },
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )
    return gw, dgw, gb, dgb, [launch]


def _finished(partial: Tensor) -> Tensor:
    """The sum over splits, in their order, with the channels of weights in their place; nothing of nothing."""
    if partial.ndim == 1:
        return partial
    whole = partial[0] if partial.shape[0] == 1 else partial.sum(0)
    return whole.movedim(-1, -3) if whole.ndim > 4 else whole


def _bias(gy: Tensor, partial: Tensor) -> Tensor:
    """A bias's gradient: what the kernel summed beside the weights, or a sum of its own."""
    return _finished(partial) if partial.ndim > 1 else gy.sum((2, 4, 5), dtype=torch.float32)


def convolution_weight_gradient(
    x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int, bias: bool, precision: str
) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    gw, _, gb, _, launches = prepare_weight_gradient(
        x, None, gy, None, kernel, stride, padding, bias, precision, value=True
    )
    for launch in launches:
        launch.run()
    return _finished(gw), _bias(gy, gb) if bias else gb


def dual_convolution_weight_gradient(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    precision: str,
    value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    gw, dgw, gb, dgb, launches = prepare_weight_gradient(
        x, dx, gy, dgy, kernel, stride, padding, bias, precision, value=value
    )
    for launch in launches:
        launch.run()
    return (
        _finished(gw),
        _finished(dgw),
        _bias(gy, gb) if bias and value else gb,
        _bias(dgy, dgb) if bias else dgb,
    )


_VARIANTS = (  # layer, product, precisions
    ("real", "weight_gradient", ("float32", "tf32", "bf16")),
    ("few", "dual_weight_gradient", ("float32", "tf32", "bf16")),
    ("few", "weight_tangent", ("bf16",)),
    ("planes", "dual_weight_gradient", ("float32",)),
    ("grey", "weight_gradient", ("bf16",)),
    ("grey", "weight_tangent", ("tf32", "bf16")),
    ("colour", "dual_weight_gradient", ("float32", "tf32", "bf16")),
    ("five-taps", "weight_gradient", ("float32",)),
    ("five-taps", "dual_weight_gradient", ("float32", "tf32", "bf16")),
    ("lenet", "weight_tangent", ("float32",)),
    ("stride-2", "dual_weight_gradient", ("tf32",)),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches of layers that students have, sixteen students, ten classes of 256 real or 10 synthetic images."""
    found = {}
    with FakeTensorMode():
        for layer, product, precisions in _VARIANTS:
            for precision in precisions:
                t, settings, _ = example(layer, precision)
                dx, dgy = (None, None) if product == "weight_gradient" else (t["x"], t["gy"])
                found[f"convolution/{layer}/{product}/{precision}"] = prepare_weight_gradient(
                    t["x"], dx, t["gy"], dgy, **settings, bias=True, precision=PRECISIONS[precision][1],
                    value=product != "weight_tangent", of=capability,
                )[-1]  # fmt: skip
    return found
