"""Tiles of an image for `norm_act_pool`: where their elements lie, windows of them, sums and statistics over them.

A tile covers ``BC`` channels and ``BP`` windows of 2×2 pixels; it has four axes: the window's row, then channel,
window, the window's column, or (``LAST``: channels of a pixel lie together) window's row, column, window, channel. So
the fastest axis runs through memory, a window's four pixels lie in one thread, and pooling moves no data. Without
pooling "windows" are just four pixels of which two lie side by side each.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Form(NamedTuple):
    """What a kernel is compiled for, made in the kernel from its constants."""

    C: int
    H: int
    W: int
    GROUPS: int  # norm groups, 0 for none
    ACTIVATION: str
    POOLING: str
    AFFINE: str  # none, channel, or element
    DUAL: bool
    LAST: bool  # channels of a pixel lie together
    BC: int  # channels of a tile
    BP: int  # windows of a tile
    SINGLE: bool  # every channel is a norm group, or there is none
    POOLED: bool


class Place(NamedTuple):
    """Where a tile lies in its image."""

    channel: tl.tensor  # [BC]
    last_channel: tl.tensor  # the first that is another program's
    window: tl.tensor  # its first
    offset: tl.tensor  # of its elements
    exists: tl.tensor  # which of them do


@triton.jit
def by_channel(vector, FORM: tl.constexpr):
    """A vector ``[BC]`` spread over a tile."""
    if FORM.LAST:
        return vector[None, None, None, :]
    else:
        return vector[None, :, None, None]


@triton.jit
def by_window(pooled, FORM: tl.constexpr):
    """A pooled tile spread over a tile."""
    if FORM.LAST:
        return pooled[None, None, :, :]
    else:
        return pooled[None, :, :, None]


@triton.jit
def window_row():
    """A pixel's row in its window, along its axis of a tile."""
    return tl.arange(0, 2)[:, None, None, None]


@triton.jit
def window_column(FORM: tl.constexpr):
    """A pixel's column in its window, along its axis of a tile."""
    if FORM.LAST:
        return tl.arange(0, 2)[None, :, None, None]
    else:
        return tl.arange(0, 2)[None, None, None, :]


@triton.jit
def tile_channels(first, FORM: tl.constexpr):
    """A tile's channels ``[BC]`` from its first on."""
    channel = first + tl.arange(0, FORM.BC)
    if FORM.LAST:
        # at most four to a thread, as in a pooled tile, a quarter as large: what was pooled then meets the rest
        # without a trip through shared memory (bfloat16 would otherwise take eight, and spill)
        channel = tl.max_contiguous(channel, 4 if FORM.BC > 4 else FORM.BC)
    return channel


@triton.jit
def tile_at(channel, last_channel, first_window, FORM: tl.constexpr):
    """The tile of these channels and the windows from ``first_window`` on."""
    window = first_window + tl.arange(0, FORM.BP)[None, None, :, None]
    if FORM.POOLED:
        row = window // ((FORM.W + 1) // 2) * 2 + window_row()
        column = window % ((FORM.W + 1) // 2) * 2 + window_column(FORM)
        pixel = row * FORM.W + column
        exists = (row < FORM.H) & (column < FORM.W)
    else:
        inside = window - first_window
        pixel = first_window * 4 + window_row() * (2 * FORM.BP) + inside * 2 + window_column(FORM)
        exists = pixel < FORM.H * FORM.W
    pixel_stride: tl.constexpr = FORM.C if FORM.LAST else 1
    channel_stride: tl.constexpr = 1 if FORM.LAST else FORM.H * FORM.W
    offset = pixel * pixel_stride + by_channel(channel, FORM) * channel_stride
    exists = exists & by_channel(channel < last_channel, FORM)
    return Place(channel, last_channel, first_window, offset, exists)


@triton.jit
def outside_at(place, FORM: tl.constexpr):
    """Offsets of a tile's elements of y within an image, and which of them exist: those of whole windows."""
    if FORM.POOLED:
        window = place.window + tl.arange(0, FORM.BP)
        row = window // ((FORM.W + 1) // 2)
        column = window % ((FORM.W + 1) // 2)
        pixel = row * (FORM.W // 2) + column
        whole = (row < FORM.H // 2) & (column < FORM.W // 2)
        inside = place.channel < place.last_channel
        if FORM.LAST:
            return pixel[:, None] * FORM.C + place.channel[None, :], whole[:, None] & inside[None, :]
        else:
            pixels: tl.constexpr = (FORM.H // 2) * (FORM.W // 2)
            return place.channel[:, None] * pixels + pixel[None, :], inside[:, None] & whole[None, :]
    else:
        return place.offset, place.exists


@triton.jit
def load_pair(pair, offset, exists, FORM: tl.constexpr):
    """Value and tangent in float32, zero where none exists; the value twice without tangents."""
    value = tl.load(pair[0] + offset, mask=exists, other=0.0).to(tl.float32)
    if FORM.DUAL:
        return value, tl.load(pair[1] + offset, mask=exists, other=0.0).to(tl.float32)
    else:
        return value, value


@triton.jit
def load_affine(parameter, place, FORM: tl.constexpr):
    """A weight, a bias or a tangent of these, spread over a tile."""
    if FORM.AFFINE == "channel":
        vector = tl.load(parameter + place.channel, mask=place.channel < place.last_channel, other=0.0)
        return by_channel(vector.to(tl.float32), FORM)
    else:
        return tl.load(parameter + place.offset, mask=place.exists, other=0.0).to(tl.float32)


@triton.jit
def scaled(xhat, dxhat, affine, place, FORM: tl.constexpr):
    """``z = w·x̂ + b`` and its tangent from ``affine = (w, ẇ, b, ḃ)``."""
    if FORM.AFFINE == "none":
        return xhat, dxhat
    else:
        w = load_affine(affine[0], place, FORM)
        z = xhat * w + load_affine(affine[2], place, FORM)
        if FORM.DUAL:
            dz = xhat * load_affine(affine[1], place, FORM) + dxhat * w + load_affine(affine[3], place, FORM)
            return z, dz
        else:
            return z, z


@triton.jit
def window_sum(tile, FORM: tl.constexpr):
    """Sums over windows."""
    if FORM.LAST:
        return tl.sum(tl.sum(tile, 0), 0)
    else:
        return tl.sum(tl.sum(tile, 3), 0)


@triton.jit
def window_max(tile, FORM: tl.constexpr):
    """Maxima of windows."""
    if FORM.LAST:
        return tl.max(tl.max(tile, 0), 0)
    else:
        return tl.max(tl.max(tile, 3), 0)


@triton.jit
def window_winner(tile, FORM: tl.constexpr):
    """Which element each window's maximum is: the last that is not a number, else the first of the largest."""
    place = window_row() * 2 + window_column(FORM)
    broken = tile != tile
    last_broken = window_max(tl.where(broken, place, -1), FORM)
    numbers = tl.where(broken, float("-inf"), tile)
    largest = window_max(numbers, FORM)
    first = 3 - window_max(tl.where(numbers == by_window(largest, FORM), 3 - place, -1), FORM)
    return place == by_window(tl.where(last_broken >= 0, last_broken, first), FORM)


@triton.jit
def channel_sums(tile, FORM: tl.constexpr):
    """Sums over a tile's pixels, ``[BC]``."""
    if FORM.LAST:
        return tl.sum(tl.sum(tl.sum(tile, 0), 0), 0)
    else:
        return tl.sum(tl.sum(tl.sum(tile, 3), 0), 1)


@triton.jit
def group_sums(vector, FORM: tl.constexpr):
    """Sums over a norm group's channels, for each of them: of all of ``[BC]``, or of each alone (instance norm)."""
    if FORM.SINGLE:
        return vector
    else:
        return tl.zeros_like(vector) + tl.sum(vector, 0)


@triton.jit
def means(tile, count, FORM: tl.constexpr):
    """Means over norm groups of ``count`` elements that lie in one tile, zero where it has none, ``[BC]``."""
    return group_sums(channel_sums(tile, FORM), FORM) / count


@triton.jit
def moments(value, exists, count, FORM: tl.constexpr):
    """``value − mean``, mean and variance of norm groups that lie in one tile, in two passes over registers."""
    mean = means(value, count, FORM)  # what does not exist is zero
    centred = tl.where(exists, value - by_channel(mean, FORM), 0.0)
    return centred, mean, means(centred * centred, count, FORM)


@triton.jit
def moment_tangents(tangent, centred, count, FORM: tl.constexpr):
    """``tangent − mean``, this mean, and the covariance of value and tangent; ``centred`` is zero outside."""
    mean = means(tangent, count, FORM)
    # the covariance needs one factor centred only, but a large mean of the other would drown it
    dcentred = tangent - by_channel(mean, FORM)
    return dcentred, mean, means(centred * dcentred, count, FORM)


@triton.jit
def normalised(value, tangent, statistics, FORM: tl.constexpr):
    """x̂ and its tangent from mean, r = 1/std, and the tangents of mean and log r, ``[BC]`` each."""
    if FORM.GROUPS == 0:
        return value, tangent
    else:
        r = by_channel(statistics[1], FORM)
        xhat = (value - by_channel(statistics[0], FORM)) * r
        if FORM.DUAL:
            dxhat = (tangent - by_channel(statistics[2], FORM)) * r + xhat * by_channel(statistics[3], FORM)
            return xhat, dxhat
        else:
            return xhat, xhat
