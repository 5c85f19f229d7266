"""Student-batched convolution and its input gradient as one implicit matrix product, value and tangent together.

Rows are output positions, columns are output channels, and the contracted axis is (tap, input channel): nothing is
unfolded in memory. The input gradient is the same gather with its positions turned around: an input position of a
*phase* (its remainder by the stride) meets only the taps of that phase, so no product is taken in vain.
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
    same_strides,
    sparing,
)
from fastdistill_kernels.gpu.launching import (
    ALL_REGISTERS,
    AMD,
    Capability,
    Launch,
    addressable,
    capability,
    expect_reachable,
    interpreted,
    power_of_two,
)
from fastdistill_kernels.reference.convolution import empty_images, output_size, own_groups


@triton.jit
def gather_kernel(
    x, dx, w, dw, b, db, y, dy, images, folded_images, position_tiles, pairs,
    x_s, x_g, dx_s, dx_g, x_n, x_c, x_h, x_w, w_s, dw_s, dw_g, w_f, w_c, w_h, w_w, b_s, b_f, db_s, db_g, db_f,
    y_s, y_g, y_n, y_f, y_h, y_w,
    CHANNELS: tl.constexpr, FEATURES: tl.constexpr, H_IN: tl.constexpr, W_IN: tl.constexpr,
    H_OUT: tl.constexpr, W_OUT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr, VALUE: tl.constexpr, DUAL: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of output positions and features of one (student, group), or of all groups of a student where folded.

    ``pairs`` counts the groups that have weights of their own; ``folded_images`` are the images that share weights.
    """
    HAS_DX: tl.constexpr = dx is not None
    SIDE: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE if TRANSPOSED else KERNEL
    ROWS: tl.constexpr = (H_OUT + STRIDE - 1) // STRIDE if TRANSPOSED else H_OUT
    COLUMNS: tl.constexpr = (W_OUT + STRIDE - 1) // STRIDE if TRANSPOSED else W_OUT
    TOWARDS: tl.constexpr = -1 if TRANSPOSED else 1
    APART: tl.constexpr = STRIDE if TRANSPOSED else 1
    FEATURE_TILES: tl.constexpr = (FEATURES + BN - 1) // BN
    SCALAR_TAP: tl.constexpr = CHANNELS % BK == 0
    STEPS: tl.constexpr = (SIDE * SIDE * CHANNELS + BK - 1) // BK
    BLOCKS: tl.constexpr = CHANNELS // BK if SCALAR_TAP else 1

    index = tl.program_id(0).to(tl.int64)
    feature = (index % FEATURE_TILES).to(tl.int32) * BN + tl.arange(0, BN)
    index = index // FEATURE_TILES
    position = (index % position_tiles).to(tl.int32) * BM + tl.arange(0, BM)
    index = index // position_tiles
    phase_y = 0
    phase_x = 0
    if TRANSPOSED:
        phase_x = (index % STRIDE).to(tl.int32)
        index = index // STRIDE
        phase_y = (index % STRIDE).to(tl.int32)
        index = index // STRIDE
    pair = index % pairs
    student = index // pairs

    image = position // (ROWS * COLUMNS)
    row = position % (ROWS * COLUMNS) // COLUMNS
    column = position % COLUMNS
    inside = image < folded_images
    group = pair + (image // images).to(tl.int64)
    image = (image % images).to(tl.int64)
    # where the first tap looks, which tap that is, and where the next one of the phase looks
    if TRANSPOSED:
        top = row + (phase_y + PADDING) // STRIDE
        left = column + (phase_x + PADDING) // STRIDE
        tap_y = (phase_y + PADDING) % STRIDE
        tap_x = (phase_x + PADDING) % STRIDE
    else:
        top = row * STRIDE - PADDING
        left = column * STRIDE - PADDING
        tap_y = 0
        tap_x = 0
    o_image = image * x_n + (top * x_h + left * x_w)
    p_x = x + student * x_s + (group * x_g + o_image)[:, None]
    if HAS_DX:
        p_dx = dx + student * dx_s + (group * dx_g + o_image)[:, None]
    p_w = w + student * w_s + (feature * w_f)[None, :]
    if DUAL:
        p_dw = dw + student * dw_s + pair * dw_g + (feature * w_f)[None, :]
    m_feature = feature < FEATURES

    value = tl.zeros((BM, BN), tl.float32)
    tangent = tl.zeros((BM, BN), tl.float32)
    for step in range(STEPS):
        if SCALAR_TAP:
            tap = step // BLOCKS
            channel = step % BLOCKS * BK + tl.arange(0, BK)
            j_y = tap // SIDE
            j_x = tap % SIDE
            at_y = (top + TOWARDS * j_y)[:, None]
            at_x = (left + TOWARDS * j_x)[:, None]
            m_w = m_feature[None, :]
            if TRANSPOSED:  # a phase may have fewer taps than the fullest
                exists = (tap_y + APART * j_y < KERNEL) & (tap_x + APART * j_x < KERNEL)
                m_w = m_w & exists
        else:
            contracted = step * BK + tl.arange(0, BK)
            tap = contracted // CHANNELS
            channel = contracted % CHANNELS
            j_y = tap // SIDE
            j_x = tap % SIDE
            at_y = top[:, None] + TOWARDS * j_y[None, :]
            at_x = left[:, None] + TOWARDS * j_x[None, :]
            exists = contracted < SIDE * SIDE * CHANNELS
            if TRANSPOSED:
                exists = exists & (tap_y + APART * j_y < KERNEL) & (tap_x + APART * j_x < KERNEL)
            m_w = m_feature[None, :] & exists[:, None]
        m_x = inside[:, None] & (at_y >= 0) & (at_y < H_IN) & (at_x >= 0) & (at_x < W_IN)
        if not SCALAR_TAP:
            m_x = m_x & exists[None, :]
        o_x = channel * x_c + TOWARDS * (j_y * x_h + j_x * x_w)
        o_w = channel * w_c + ((tap_y + APART * j_y) * w_h + (tap_x + APART * j_x) * w_w)
        b_x = tl.load(p_x + o_x[None, :], mask=m_x, other=0.0)
        b_w = tl.load(p_w + o_w[:, None], mask=m_w, other=0.0)
        if UPCAST:
            b_x = b_x.to(tl.float32)
            b_w = b_w.to(tl.float32)
        if VALUE:
            value = tl.dot(b_x, b_w, value, input_precision=PRECISION)
        if HAS_DX:
            b_dx = tl.load(p_dx + o_x[None, :], mask=m_x, other=0.0)
            if UPCAST:
                b_dx = b_dx.to(tl.float32)
            tangent = tl.dot(b_dx, b_w, tangent, input_precision=PRECISION)
        if DUAL:
            b_dw = tl.load(p_dw + o_w[:, None], mask=m_w, other=0.0)
            if UPCAST:
                b_dw = b_dw.to(tl.float32)
            tangent = tl.dot(b_x, b_dw, tangent, input_precision=PRECISION)

    if TRANSPOSED:
        row = row * STRIDE + phase_y
        column = column * STRIDE + phase_x
        inside = inside & (row < H_OUT) & (column < W_OUT)
    m_y = inside[:, None] & m_feature[None, :]
    o_y = student * y_s + (group * y_g + image * y_n + (row * y_h + column * y_w))[:, None] + (feature * y_f)[None, :]
    if VALUE:
        if b is not None:
            b_b = tl.load(b + student * b_s + feature * b_f, mask=m_feature, other=0.0)
            value += b_b.to(tl.float32)[None, :]
        tl.store(y + o_y, value.to(y.dtype.element_ty), mask=m_y)
    if DUAL:
        if db is not None:
            b_db = tl.load(db + student * db_s + pair * db_g + feature * db_f, mask=m_feature, other=0.0)
            tangent += b_db.to(tl.float32)[None, :]
        tl.store(dy + o_y, tangent.to(dy.dtype.element_ty), mask=m_y)


def choose_tile(
    rows: int,
    columns: int,
    channels: int,
    taps: int,
    itemsize: int,
    *,
    exact: bool,
    dual: bool,
    operands: int,
    of: Capability,
) -> Tile:
    """The tile of a product, by its shape and the device.

    Args:
        rows: positions that share weights.
        columns: output channels.
        channels: contracted of every tap.
        taps: contracted.
        itemsize: bytes of an operand's element.
        exact: float32 products, which tensor cores do not take: their operands live in registers.
        dual: two accumulators.
        operands: tiles of rows and of columns loaded at every step.
        of: the device.
    """
    widest = 64 if exact else 128
    wide = min(widest, max(LEAST, power_of_two(columns)))
    tangent, single = operands > 2, taps == 1  # of one tap, addresses become pointers that are stepped along
    tallest = widest if wide > 32 else 64  # few columns: addresses of rows are most of the registers
    tall = min(tallest, max(LEAST, power_of_two(rows)))
    deepest = most_depth(itemsize, exact=exact, crowded=tangent or single, of=of)
    depth = next((d for d in (64, 32, 16) if d <= deepest and channels % d == 0), 0)
    gathered = not depth
    if gathered:
        # by such pointers, by masks of pairs of bytes on AMD, or where two of these meet: a tangent's addresses, large
        # operands, operands in registers
        crowded = single or tangent + (itemsize == 4) + (of < (9, 0)) > 1 or (of == AMD and itemsize == 2)
        tall, deepest = sparing(tall, deepest, exact=exact, crowded=crowded)
        depth = min(deepest, max(LEAST, power_of_two(taps * channels)))
    if narrow(exact, dual, of) or single:
        wide = min(wide, 64)
    stage = (operands // 2 * tall + (operands - operands // 2) * wide) * itemsize
    # where the assembler, left to itself, would spill to have room for one program more; but for one case, in which it
    # is this limit that makes it spill. All found by compiling, none was timed
    wanting = tangent or gathered or single or (not exact and of < (9, 0))
    spilling = exact and dual and gathered and not single and of >= (10, 0)
    limit = ALL_REGISTERS if itemsize == 4 and wanting and not spilling else None
    tile = Tile(tall, wide, depth, 8, 4, limit)
    addressed, ragged = tall if gathered else 0, columns % 16 != 0
    return fit(tile, stage, gathered=addressed, exact=exact, tangent=tangent, of=of, ragged=ragged)


def _pack(weight: Tensor) -> Tensor:
    """The same weights ``[..., F, C, k, k]`` with neighbouring channels, so that a tile's rows are read whole."""
    return weight.movedim(-3, -1).contiguous().movedim(-1, -3)


def prepare_gather(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor | None,
    bias: Tensor | None,
    dbias: Tensor | None,
    size: tuple[int, int],
    stride: int,
    padding: int,
    precision: str,
    *,
    transposed: bool,
    value: bool,
    of: Capability | None = None,
) -> tuple[Tensor, Tensor, list[Launch]]:
    """Value and tangent (empty where not wanted) of a convolution or of its transpose, and the launch that fills them.

    Args:
        x: ``[S, G, n, C, H, W]``.
        dx: like x, or None for zero.
        weight: ``[S, F, C, k, k]``.
        dweight: ``[S, G, F, C, k, k]``, or None without a tangent.
        bias: ``[S, F]`` or None.
        dbias: ``[S, G, F]`` or None.
        size: height and width of the result.
        stride: of the kernel.
        padding: of the convolution.
        precision: ``ieee`` or ``tf32``.
        transposed: whether it is the convolution's transpose.
        value: whether the value is wanted.
        of: the device to prepare for; x's by default.

    Raises:
        ValueError: for a student with more positions, or an image with more elements, than 32 bits count.
    """
    expect_reachable("a convolution's results for one image", weight.shape[1], *size)
    x, weight = addressable(x, 3, "one image"), addressable(weight, 4, "one student's weights")
    dx = None if dx is None else addressable(dx, 3, "one image")
    dweight = None if dweight is None else addressable(dweight, 4, "one student's weights")
    dual = dweight is not None
    of = of or capability(x.device)
    students, groups, count, channels, height, width = x.shape
    features, kernel = weight.shape[1], weight.shape[-1]
    pairs = own_groups(dweight, dbias)
    rows = -(-size[0] // stride) * -(-size[1] // stride) if transposed else size[0] * size[1]
    folded = groups // max(pairs, 1) * count
    positions = folded * rows
    expect_indexable(positions)
    tile = choose_tile(
        positions,
        features,
        channels,
        kernel * kernel,
        x.element_size(),
        exact=x.dtype == torch.float32 and precision == "ieee",
        dual=dual and value,
        operands=2 + dual + (dx is not None),
        of=of,
    )
    if dweight is not None and pairs == 1:
        dweight = dweight[:, :1]
    apart = kernel > 1 and channels % tile.depth == 0 and 1 not in weight.stride()[1:3]
    if apart or (dweight is not None and not same_strides(weight, dweight, 4)):
        weight, dweight = _pack(weight), None if dweight is None else _pack(dweight)
    x, dx = alike(x, dx)
    y = empty_images(x, features, *size) if value else x.new_empty(0)
    dy = empty_images(x, features, *size) if dual else x.new_empty(0)
    made = y if value else dy
    tiles = -(-positions // tile.rows)
    launch = Launch(
        kernel=gather_kernel,
        grid=students * pairs * (stride * stride if transposed else 1) * tiles * -(-features // tile.columns),
        arguments={
            "x": x,
            "dx": dx,
            "w": weight,
            "dw": dweight,
            "b": bias if value else None,
            "db": dbias,
            "y": y if value else None,
            "dy": dy if dual else None,
            "images": count,
            "folded_images": folded,
            "position_tiles": tiles,
            "pairs": pairs,
            **dict(zip(("x_s", "x_g"), x.stride(), strict=False)),
            **dict(zip(("dx_s", "dx_g"), (0, 0) if dx is None else dx.stride(), strict=False)),
            **dict(zip(("x_n", "x_c", "x_h", "x_w"), x.stride()[2:], strict=True)),
            "w_s": weight.stride(0),
            **dict(zip(("dw_s", "dw_g"), (0, 0) if dweight is None else dweight.stride(), strict=False)),
            **dict(zip(("w_f", "w_c", "w_h", "w_w"), weight.stride()[1:], strict=True)),
            **dict(zip(("b_s", "b_f"), (0, 0) if bias is None else bias.stride(), strict=True)),
            **dict(zip(("db_s", "db_g", "db_f"), (0, 0, 0) if dbias is None else dbias.stride(), strict=True)),
            **dict(zip(("y_s", "y_g", "y_n", "y_f", "y_h", "y_w"), made.stride(), strict=True)),
        },
        constants={
            "CHANNELS": channels,
            "FEATURES": features,
            "H_IN": height,
            "W_IN": width,
            "H_OUT": size[0],
            "W_OUT": size[1],
            "KERNEL": kernel,
            "STRIDE": stride,
            "PADDING": padding,
            "TRANSPOSED": transposed,
            "VALUE": value,
            "DUAL": dual,
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
    return y, dy, [launch]


def _run(prepared: tuple[Tensor, Tensor, list[Launch]]) -> tuple[Tensor, Tensor]:
    y, dy, launches = prepared
    for launch in launches:
        launch.run()
    return y, dy


def _size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    kernel = weight.shape[-1]
    return output_size(x.shape[4], kernel, stride, padding), output_size(x.shape[5], kernel, stride, padding)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, precision: str) -> Tensor:
    """Launches what the reference of this name computes."""
    size = _size(x, weight, stride, padding)
    return _run(
        prepare_gather(
            x, None, weight, None, bias, None, size, stride, padding, precision, transposed=False, value=True
        )
    )[0]


def dual_convolution(
    x: Tensor,
    dx: Tensor | None,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    stride: int,
    padding: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    size = _size(x, weight, stride, padding)
    return _run(
        prepare_gather(
            x, dx, weight, dweight, bias, dbias, size, stride, padding, precision, transposed=False, value=True
        )
    )


def convolution_input_gradient(
    gy: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int, precision: str
) -> Tensor:
    """Launches what the reference of this name computes."""
    w, size = weight.transpose(1, 2), (height, width)
    return _run(
        prepare_gather(gy, None, w, None, None, None, size, stride, padding, precision, transposed=True, value=True)
    )[0]


def dual_convolution_input_gradient(
    gy: Tensor,
    dgy: Tensor,
    weight: Tensor,
    dweight: Tensor,
    height: int,
    width: int,
    stride: int,
    padding: int,
    precision: str,
    value: bool,
) -> tuple[Tensor, Tensor]:
    """Launches what the reference of this name computes."""
    w, dw, size = weight.transpose(1, 2), dweight.transpose(2, 3), (height, width)
    return _run(
        prepare_gather(gy, dgy, w, dw, None, None, size, stride, padding, precision, transposed=True, value=value)
    )


_VARIANTS = (  # layer, product, precisions
    ("real", "forward", ("float32", "tf32", "bf16")),
    ("real", "input_gradient", ("float32", "tf32", "bf16")),
    ("few", "dual_forward", ("float32", "tf32", "bf16")),
    ("few", "dual_input_gradient", ("float32", "tf32", "bf16")),
    ("planes", "forward", ("float32",)),
    ("planes", "dual_forward", ("bf16",)),
    ("grey", "forward", ("float32", "bf16")),
    ("colour", "dual_forward", ("float32", "tf32", "bf16")),
    ("colour", "tangent_of_images", ("tf32", "bf16")),
    ("five-taps", "forward", ("tf32",)),
    ("five-taps", "dual_forward", ("float32", "tf32", "bf16")),
    ("five-taps", "dual_input_gradient", ("float32", "tf32", "bf16")),
    ("lenet", "dual_input_gradient", ("float32", "tf32")),
    ("stride-2", "forward", ("tf32",)),
    ("stride-2", "dual_forward", ("bf16",)),
    ("stride-2", "dual_input_gradient", ("tf32", "bf16")),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches of layers that students have, sixteen students, ten classes of 256 real or 10 synthetic images."""
    found = {}
    with FakeTensorMode():
        for layer, product, precisions in _VARIANTS:
            for precision in precisions:
                launches = _example(layer, product, precision, capability)
                found[f"convolution/{layer}/{product}/{precision}"] = launches
    return found


def _example(layer: str, product: str, precision: str, of: Capability) -> list[Launch]:
    t, settings, size = example(layer, precision)
    dual, transposed = product not in ("forward", "input_gradient"), not product.endswith("forward")
    if transposed:
        images, weight, dweight, bias, dbias = t["gy"], t["w"].transpose(1, 2), t["dw"].transpose(2, 3), None, None
        size = (t["x"].shape[4], t["x"].shape[5])
    else:
        images, weight, dweight, bias, dbias = t["x"], t["w"], t["dw"], t["b"], t["db"]
    tangents = (images, dweight, dbias) if dual else (None, None, None)
    return prepare_gather(
        images, tangents[0], weight, tangents[1], bias, tangents[2], size, settings["stride"], settings["padding"],
        PRECISIONS[precision][1], transposed=transposed, value=product != "tangent_of_images", of=of,
    )[2]  # fmt: skip
