"""Truth of `fastdistill_kernels.first_block`: convolution, instance norm, activation and pooling one after another.

Derivatives are written out, so that nothing is recorded at run time. Students, groups and pieces of images are taken
one after another, because what stays in cache is read faster than what a larger call would save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from fastdistill_kernels.reference import activation as pointwise
from fastdistill_kernels.reference.pooling import pool, spread

# of one piece's convolution output: 16 images of a 128-channel ConvNet at 32x32, the size whose gradients were fastest
PIECE_BYTES = 8 << 20
SIDE = 3  # of the convolution's kernel


class Weights(NamedTuple):
    """Of one student (or tangents of one student and group): ``[O, D, 3, 3]`` and vectors ``[O]`` or None."""

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def first_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
) -> Tensor:
    """``y [S, G, n, O, H', W']``; see `fastdistill_kernels.first_block.first_block`."""
    students, groups = weight.shape[0], x.shape[1]
    y = empty_output(x, weight, groups, padding, pooling)
    for student, group, some, images in _pieces(x, weight, students, groups, padding):
        own = _weights(student, None, weight, bias, norm_weight, norm_bias)
        z = functional.conv2d(images, own.weight, own.bias, padding=padding)
        if own.norm_weight is not None:
            z = torch.group_norm(z, z.shape[1], own.norm_weight, own.norm_bias, eps)
        y[student, group, some] = pool(pointwise.value(activation, z), None, pooling)[0]
    return y


def first_block_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the weights and images; see `fastdistill_kernels.first_block.first_block_backward`."""
    students, groups = gy.shape[:2]
    gw, gb, gnw, gnb = found = _zeros(gy, x, weight, norm_weight is not None)
    gx = empty_images(gy, x, inputs)
    for student, group, some, images in _pieces(x, weight, students, groups, padding):
        own = _weights(student, None, weight, bias, norm_weight, norm_bias)
        z = functional.conv2d(images, own.weight, own.bias, padding=padding)
        u, zhat, r = _normalise(z, own, eps)
        ga, _ = spread(_wide(gy[student, group, some]), None, u, activation, pooling)
        gz = gu = pointwise.sloped(activation, u, ga)
        if own.norm_weight is not None:
            along, total = _dot(gu, zhat), gu.sum((2, 3))
            gnw[student, group] += along.sum(0)
            gnb[student, group] += total.sum(0)
            gz = _less(gu, total, zhat, along).mul_(r * _column(own.norm_weight))
        gw[student, group] += conv2d_weight(images, own.weight.shape, gz, padding=padding)
        gb[student, group] += gz.sum((0, 2, 3))
        if inputs:
            gx[student, group, some] = conv2d_input(images.shape, own.weight, gz, padding=padding)
    return *found, gx


def dual_first_block(
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """``y`` and its tangent; see `fastdistill_kernels.first_block.dual_first_block`."""
    students, groups = weight.shape[0], group_count(x, dweight)
    y, dy = (empty_output(x, weight, groups, padding, pooling) for _ in range(2))
    for student, group, some, images in _pieces(x, weight, students, groups, padding):
        own = _weights(student, None, weight, bias, norm_weight, norm_bias)
        along = _weights(student, group, dweight, dbias, dnorm_weight, dnorm_bias)
        u, du, *_ = _dual_normalise(images, own, along, padding, eps)
        a, da = pointwise.value(activation, u), pointwise.sloped(activation, u, du)
        y[student, group, some], tangent = pool(a, da, pooling)
        assert tangent is not None
        dy[student, group, some] = tangent
    return y, dy


def dual_first_block_backward(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
    value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients and their tangents; see `fastdistill_kernels.first_block.dual_first_block_backward`."""
    students, groups = gy.shape[:2]
    normed = norm_weight is not None
    gw, gb, gnw, gnb = _zeros(gy, x, weight, normed, value)
    dgw, dgb, dgnw, dgnb = _zeros(gy, x, weight, normed)
    gx, dgx = empty_images(gy, x, inputs and value), empty_images(gy, x, inputs)
    for student, group, some, images in _pieces(x, weight, students, groups, padding):
        own = _weights(student, None, weight, bias, norm_weight, norm_bias)
        along = _weights(student, group, dweight, dbias, dnorm_weight, dnorm_bias)
        u, du, zhat, dzhat, r, pull = _dual_normalise(images, own, along, padding, eps)
        cotangent, tangent = (_wide(one[student, group, some]) for one in (gy, dgy))
        ga, dga = spread(cotangent, tangent, u, activation, pooling)
        assert dga is not None
        gu, dgu = (pointwise.sloped(activation, u, one) for one in (ga, dga))
        if activation in pointwise.CURVED:
            dgu += ga * pointwise.curvature(activation, u).mul_(du)
        gz, dgz = gu, dgu
        if own.norm_weight is not None and along.norm_weight is not None:
            total, dtotal = gu.sum((2, 3)), dgu.sum((2, 3))
            about, dabout = _dot(gu, zhat), _dot(dgu, zhat) + _dot(gu, dzhat)
            if value:
                gnw[student, group] += about.sum(0)
                gnb[student, group] += total.sum(0)
            dgnw[student, group] += dabout.sum(0)
            dgnb[student, group] += dtotal.sum(0)
            scale, dscale = _column(own.norm_weight), _column(along.norm_weight)
            rest = _less(gu, total, zhat, about)
            dgz = _less(dgu, dtotal, zhat, dabout).addcmul_(dzhat, _mean(about, zhat), value=-1)
            dgz = dgz.mul_(r * scale).addcmul_(rest, r * (dscale - pull * scale))
            gz = rest.mul_(r * scale)
        if value:
            gw[student, group] += conv2d_weight(images, own.weight.shape, gz, padding=padding)
            gb[student, group] += gz.sum((0, 2, 3))
        dgw[student, group] += conv2d_weight(images, own.weight.shape, dgz, padding=padding)
        dgb[student, group] += dgz.sum((0, 2, 3))
        if inputs and value:
            gx[student, group, some] = conv2d_input(images.shape, own.weight, gz, padding=padding)
        if inputs:
            dgx[student, group, some] = conv2d_input(images.shape, own.weight, dgz, padding=padding) + conv2d_input(
                images.shape, along.weight, gz, padding=padding
            )
    return gw, dgw, gb, dgb, gnw, dgnw, gnb, dgnb, gx, dgx


def group_count(x: Tensor, dweight: Tensor) -> int:
    """``G``: that of the tangents, or of the images where tangents are shared or of one group."""
    return dweight.shape[1] if dweight.ndim == 6 and dweight.shape[1] != 1 else x.shape[1]


def pooled(extent: int, padding: int, pooling: str) -> int:
    """Extent of an output of images of some extent; an odd last row or column is cropped, as torch does."""
    convolved = extent + 2 * padding - (SIDE - 1)
    return convolved if pooling == "none" else convolved // 2


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in: float64 for float64, float32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def empty_output(x: Tensor, weight: Tensor, groups: int, padding: int, pooling: str) -> Tensor:
    """Unfilled ``[S, G, n, O, H', W']``: channels last where kernels run, or where the images lie so on a CPU.

    The kernels of the next layers are faster on that layout, and images are copied in any case.
    """
    lead = (weight.shape[0], groups, x.shape[2])
    height, width = (pooled(extent, padding, pooling) for extent in x.shape[-2:])
    if x.device.type != "cpu" or (x.shape[3] > 1 and x.stride(3) == 1):
        return torch.empty(*lead, height, width, weight.shape[1], dtype=x.dtype, device=x.device).permute(
            0, 1, 2, 5, 3, 4
        )
    return torch.empty(*lead, weight.shape[1], height, width, dtype=x.dtype, device=x.device)


def empty_gradients(
    gy: Tensor, x: Tensor, weight: Tensor, normed: bool, wanted: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unfilled gradients of weight, bias and norm; empty those that do not exist or are not wanted."""
    vector, none = (*gy.shape[:2], weight.shape[1]), (0,)
    shapes = ((*vector, *weight.shape[2:]), vector, vector if normed else none, vector if normed else none)
    gw, gb, gnw, gnb = (x.new_empty(shape if wanted else none, dtype=wide(x.dtype)) for shape in shapes)
    return gw, gb, gnw, gnb


def empty_images(gy: Tensor, x: Tensor, wanted: bool) -> Tensor:
    """Unfilled gradient of the images, empty if not wanted."""
    return x.new_empty((*gy.shape[:3], *x.shape[3:]) if wanted else (0,))


def _zeros(
    gy: Tensor, x: Tensor, weight: Tensor, normed: bool, wanted: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gw, gb, gnw, gnb = (tensor.zero_() for tensor in empty_gradients(gy, x, weight, normed, wanted))
    return gw, gb, gnw, gnb


def _pieces(
    x: Tensor, weight: Tensor, students: int, groups: int, padding: int
) -> Iterator[tuple[int, int, slice, Tensor]]:
    """Pieces of every student's and group's images, widened."""
    height, width = (extent + 2 * padding - (SIDE - 1) for extent in x.shape[-2:])
    bytes_per_image = weight.shape[1] * height * width * wide(x.dtype).itemsize
    piece = max(1, PIECE_BYTES // max(bytes_per_image, 1))
    for student in range(students):
        for group in range(groups):
            images = x[student if x.shape[0] > 1 else 0, group if x.shape[1] > 1 else 0]
            for start in range(0, images.shape[0], piece):
                some = slice(start, start + piece)
                yield student, group, some, _wide(images[some])


def _weights(student: int, group: int | None, *tensors: Tensor | None) -> Weights:
    """Those of one student; for tangents of one group too, where they have a group axis (their weight has 6 then)."""
    weight = tensors[0]
    grouped = group is not None and weight is not None and weight.ndim == 6

    def of(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        own = tensor[student]
        return _wide(own[group if own.shape[0] > 1 else 0] if grouped else own)

    first = of(weight)
    assert first is not None
    return Weights(first, *(of(tensor) for tensor in tensors[1:]))


def _normalise(z: Tensor, own: Weights, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``u``, the normalised ``ẑ`` and ``r = 1/√(variance + eps)``; without norm ``u = ẑ = z``."""
    if own.norm_weight is None or own.norm_bias is None:
        return z, z, z
    zhat = z - z.mean((2, 3), keepdim=True)
    r = ((zhat * zhat).mean((2, 3), keepdim=True) + eps).rsqrt()
    zhat *= r
    return zhat * _column(own.norm_weight) + _column(own.norm_bias), zhat, r


def _dual_normalise(
    images: Tensor, own: Weights, along: Weights, padding: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``u, u̇, ẑ, ẑ˙, r`` and ``t = mean(ẑ·(ż − mean ż))·r``, with which ``ṙ = −r·t``."""
    z = functional.conv2d(images, own.weight, own.bias, padding=padding)
    dz = functional.conv2d(images, along.weight, along.bias, padding=padding)
    u, zhat, r = _normalise(z, own, eps)
    if own.norm_weight is None or along.norm_weight is None or along.norm_bias is None:
        return u, dz, zhat, dz, r, r
    centred = dz - dz.mean((2, 3), keepdim=True)
    pull = (zhat * centred).mean((2, 3), keepdim=True) * r
    dzhat = centred * r - zhat * pull
    du = zhat * _column(along.norm_weight) + dzhat * _column(own.norm_weight) + _column(along.norm_bias)
    return u, du, zhat, dzhat, r, pull


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums over pixels ``[n, O]`` of a product."""
    found: Tensor = torch.linalg.vecdot(a.flatten(2), b.flatten(2))
    return found


def _mean(sums: Tensor, like: Tensor) -> Tensor:
    """Means over pixels ``[n, O, 1, 1]`` from sums ``[n, O]``."""
    return sums[..., None, None] / like.shape[2:].numel()


def _less(g: Tensor, total: Tensor, zhat: Tensor, along: Tensor) -> Tensor:
    """``g − mean g − ẑ·mean(g·ẑ)`` from sums over pixels: what normalising leaves of a gradient."""
    return (g - _mean(total, g)).addcmul_(zhat, _mean(along, g), value=-1)
