"""Student-batched convolution and its input gradient as one implicit matrix product, value and tangent together.

Rows are output positions, columns are output channels, and the contracted axis is (tap, input channel): nothing is
unfolded in memory. The input gradient is the same gather with its positions turned around: an input position of a
*phase* (its remainder by the stride) meets only the taps of that phase, so no product is taken in vain.
Values: `fastdistill_kernels.reference.convolution`; derivation: ``derivations/convolution.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import (
    Capability,
    Launch,
    capability,
    interpreted,
    power_of_two,
    programs,
    shared_bytes,
)
from fastdistill_kernels.reference.convolution import empty_images, output_size

_LEAST = 16  # rows, columns and depth that a product of tensor cores has at least
_INDEXABLE = 2**31 - 1  # positions of one student: they are counted in 32 bits, offsets in 64


@triton.jit
def gather_kernel(
    x,
    dx,
    w,
    dw,
    b,
    db,
    y,
    dy,
    images,
    folded_images,
    position_tiles,
    pairs,
    x_s,
    x_g,
    dx_s,
    dx_g,
    x_n,
    x_c,
    x_h,
    x_w,
    w_s,
    dw_s,
    dw_g,
    w_f,
    w_c,
    w_h,
    w_w,
    b_s,
    b_f,
    db_s,
    db_g,
    db_f,
    y_s,
    y_g,
    y_n,
    y_f,
    y_h,
    y_w,
    CHANNELS: tl.constexpr,
    FEATURES: tl.constexpr,
    H_IN: tl.constexpr,
    W_IN: tl.constexpr,
    H_OUT: tl.constexpr,
    W_OUT: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    VALUE: tl.constexpr,
    DUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile of output positions and features of one (student, group), or of all groups of a student where folded.

    ``pairs`` counts the groups that have weights of their own; ``folded_images`` are the images that share weights.
    """
    HAS_DX: tl.constexpr = dx is not None
    SIDE: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE if TRANSPOSED else KERNEL
    ROWS: tl.constexpr = (H_OUT + STRIDE - 1) // STRIDE if TRANSPOSED else H_OUT
    COLUMNS: tl.constexpr = (W_OUT + STRIDE - 1) // STRIDE if TRANSPOSED else W_OUT
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
        TOWARDS: tl.constexpr = -1
        APART: tl.constexpr = STRIDE
    else:
        top = row * STRIDE - PADDING
        left = column * STRIDE - PADDING
        tap_y = 0
        tap_x = 0
        TOWARDS: tl.constexpr = 1
        APART: tl.constexpr = 1
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
