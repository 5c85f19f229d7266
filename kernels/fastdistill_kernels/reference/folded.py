"""Convolutions and their gradients as a compiled program for a CPU takes them: whole, in one persistent layout.

Students' channels lie beside each other, images ``[S, G, n, C, H, W]`` as ``(G, n, H, W, S, C)`` in memory, which is
the channels-last layout of one grouped convolution of ``S·C`` channels. So a convolution's result is the next one's
argument as it is, and what lies between is vectorised over channels. Values are those of `reference.convolution`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fastdistill_kernels.reference.interleaved import apart, interleaved
from fastdistill_kernels.reference.stored import stored

_LANES = 16  # float32 numbers of a vector
_FEW = 8  # images of a pair below which pairs of all groups share a call: they cost a copy, calls cost their overhead


def _images(x: Tensor, by_group: bool) -> Tensor:
    """``[S, G, n, C, H, W]`` as ``[G·n, S·C, H, W]``, or with every pair's own channels ``[n, S·G·C, H, W]``."""
    students, groups, count, channels, height, width = x.shape
    if by_group:
        return _channels_last(x.permute(2, 4, 5, 0, 1, 3).reshape(count, height, width, students * groups * channels))
    return _channels_last(x.permute(1, 2, 4, 5, 0, 3).reshape(groups * count, height, width, students * channels))


def _channels_last(pixels: Tensor) -> Tensor:
    """``[N, H, W, C]``, dense in memory (which results of convolutions are), as images ``[N, C, H, W]``."""
    return pixels.contiguous().permute(0, 3, 1, 2)


def _back(y: Tensor, students: int, groups: int, by_group: bool) -> Tensor:
    """The inverse of `_images`."""
    pixels = y.permute(0, 2, 3, 1)
    apart: Tensor
    if by_group:
        apart = pixels.unflatten(-1, (students, groups, -1)).permute(3, 4, 0, 5, 1, 2)
    else:
        apart = pixels.unflatten(-1, (students, -1)).unflatten(0, (groups, -1)).permute(4, 0, 1, 5, 2, 3)
    return apart


def _weights(weight: Tensor) -> Tensor:
    """``[..., O, I, k, k]`` as those of a grouped convolution."""
    return weight.flatten(0, -5).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """``x ∗ w + b`` with weights ``[S, ...]``, or ``[S, G, ...]`` where groups have their own."""
    if x.shape[3] == 1:
        return _of_grey(x, weight, bias, stride, padding)
    students, groups, by_group = weight.shape[0], x.shape[1], weight.ndim == 6
    folded = None if bias is None else bias.flatten()
    pairs = weight.shape[:-4].numel()
    y = functional.conv2d(_images(x, by_group), _weights(weight), folded, stride, padding, groups=pairs)
    return _back(y, students, groups, by_group)


def _taps(pixels: Tensor, kernel: int, stride: int, padding: int, channels: int) -> Iterator[Tensor]:
    """What each weight of a kernel meets of one channel ``[G, n, H, W, S, 1]``, row by row.

    Where channels do not fill a vector they are written out, ``[G, n, h, w, S, C]``, so that all students' do.
    """
    # made here and now: whether a pixel is one of the padding has nothing to do with channels, which are innermost
    padded = stored(functional.pad(pixels, (0, 0, 0, 0, padding, padding, padding, padding)))
    if channels % _LANES:
        padded = stored(padded.expand(*padded.shape[:5], channels))
    height, width = (size - kernel + 1 for size in padded.shape[2:4])
    for row in range(kernel):
        for column in range(kernel):
            yield padded[:, :, row : row + height : stride, column : column + width : stride]


def _own(weight: Tensor) -> Tensor:
    """Weights ``[S, C, 1, k, k]``, or with G, of one channel as ``[k², G, 1, 1, 1, S, C]``."""
    lead = weight if weight.ndim == 6 else weight[:, None]
    return stored(lead[:, :, :, 0].permute(3, 4, 1, 0, 2)).flatten(0, 1)[:, :, None, None, None]


def _of_grey(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """A convolution from one channel, term by term: too few products for a matrix, and many to write out."""
    own = _own(weight)
    taps = _taps(interleaved(x), weight.shape[-1], stride, padding, weight.shape[-4])
    y = next(taps) * own[0]
    for number, tap in enumerate(taps, start=1):
        y = y + tap * own[number]
    if bias is not None:
        y = y + (bias if bias.ndim == 3 else bias[:, None]).transpose(0, 1)[:, None, None, None]
    return apart(y.contiguous())


def _input_gradient_of_grey(gy: Tensor, weight: Tensor, padding: int) -> Tensor:
    """``gx`` of one channel, by stride 1: the same with the kernel turned round, and a sum over channels."""
    own, kernel = _own(weight), weight.shape[-1]
    behind = kernel - 1 - padding
    padded = stored(functional.pad(interleaved(gy), (0, 0, 0, 0, behind, behind, behind, behind)))
    height, width = (size - kernel + 1 for size in padded.shape[2:4])
    total = padded[:, :, :height, :width] * own[kernel * kernel - 1]
    for number in range(1, kernel * kernel):
        row, column = divmod(number, kernel)
        total = total + padded[:, :, row : row + height, column : column + width] * own[kernel * kernel - 1 - number]
    return apart(stored(total).sum(-1, keepdim=True))


def _weight_gradient_of_grey(x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """``gw [S, G, O, 1, k, k]``, summed over an image's pixels first."""
    cotangent = interleaved(gy)
    taps = _taps(interleaved(x), kernel, stride, padding, gy.shape[3])
    sums = [stored((cotangent * tap).sum((2, 3))).sum(1) for tap in taps]
    gw: Tensor = torch.stack(sums, -1).unflatten(-1, (1, kernel, kernel)).transpose(0, 1)
    return gw


def _backward(
    gy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, pairs: int, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    sides = ([stride, stride], [padding, padding], [1, 1], False, [0, 0])
    gx, gw, _ = torch.ops.aten.convolution_backward(gy, x, weight, None, *sides, pairs, [*wanted, False])
    return gx, gw


def input_gradient(gy: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """``gx`` of ``x ∗ w``."""
    if weight.shape[-3] == 1 and stride == 1:
        return _input_gradient_of_grey(gy, weight, padding)
    students, groups, by_group, pairs = weight.shape[0], gy.shape[1], weight.ndim == 6, weight.shape[:-4].numel()
    folded = _images(gy, by_group)
    like = _channels_last(folded.new_empty(len(folded), *size, pairs * weight.shape[-3]))
    gx, _ = _backward(folded, like, _weights(weight), stride, padding, pairs, [True, False])
    return _back(gx, students, groups, by_group)


def weight_gradient(x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """``gw [S, G, O, I, k, k]``."""
    if x.shape[3] == 1:
        return _weight_gradient_of_grey(x, gy, kernel, stride, padding)
    students, groups, count, features = gy.shape[:4]
    x = x.expand(students, groups, *x.shape[2:])
    if groups > 1 and count >= _FEW:
        parts = [
            weight_gradient(x[:, group, None], gy[:, group, None], kernel, stride, padding)[:, 0]
            for group in range(groups)
        ]
        return torch.stack(parts, dim=1)
    pairs = students * groups
    like = gy.new_empty(pairs * features, kernel, kernel, x.shape[3]).permute(0, 3, 1, 2)
    _, gw = _backward(_images(gy, True), _images(x, True), like, stride, padding, pairs, [False, True])
    apart: Tensor = gw.unflatten(0, (students, groups, features))
    return apart
