"""Truth of `fastdistill_kernels.convolution`: oneDNN's convolutions over pieces of students and groups.

Arguments and results are those of the operators of the same names. A *pair* is what has a weight of its own: a
student, or a (student, group) where a tangent or a gradient belongs to one. ``precision`` is for devices with a choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

# Measured on one AVX-512 core, torch 2.13, 1 to 128 channels on 8x8 to 28x28 images: small pairs are up to five times
# faster as one grouped call than one after another, large ones up to twice slower.
_GROUPED_PRODUCTS = 20_000_000  # multiply-adds of one pair up to which pairs share a call
_GROUPED_BYTES = 2_000_000  # activations of one grouped call

Where = tuple[slice, slice]  # students and groups of a piece


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Positions of a kernel along one side, as `torch.nn.functional.conv2d` counts them."""
    return (size + 2 * padding - kernel) // stride + 1


def channels_last(images: Tensor) -> bool:
    """Whether results that follow ``images [S, G, n, C, H, W]`` lie channels-last in memory.

    One channel, or one pixel, fits both layouts: then they do wherever kernels run, which are faster on that layout.
    """
    channels, height, width = images.shape[3:]
    if channels == 1 or height * width == 1:
        return images.device.type != "cpu"
    return images.stride(3) == 1


def empty_images(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Unfilled ``[S, G, n, channels, height, width]`` in the layout, dtype and device of ``like [S, G, n, ...]``."""
    lead = like.shape[:3]
    if channels_last(like):
        made = torch.empty((*lead, height, width, channels), dtype=like.dtype, device=like.device)
        return made.permute(0, 1, 2, 5, 3, 4)
    return torch.empty((*lead, channels, height, width), dtype=like.dtype, device=like.device)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of weight gradients, which many images are summed in: float32 at least."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def own_groups(*tensors: Tensor | None) -> int:
    """How many groups ``[S, G, ...]`` weights tell apart: 1 where all groups share theirs, 0 where there are none."""
    apart = [t.shape[1] for t in tensors if t is not None and t.shape[1] != 1 and (t.stride(1) or not t.shape[1])]
    return max(apart, default=1)


def _pieces(students: int, groups: int, products: int, size: int) -> Iterator[Where]:
    """Slices of students and groups whose pairs share a call; ``products`` and ``size`` in bytes are one pair's."""
    together = max(1, _GROUPED_BYTES // max(size, 1)) if products <= _GROUPED_PRODUCTS else 1
    step = max(1, together // max(groups, 1))
    for student in range(0, students, step):
        for group in range(0, groups, together):
            yield slice(student, min(student + step, students)), slice(group, min(group + together, groups))


def _images(images: Tensor, where: Where, groups: int) -> Tensor:
    """A piece ``[pairs, m, C, H, W]`` of ``[S, G, n, C, H, W]``, in the dtype that is computed in."""
    piece = images[where[0]].flatten(1, 2) if groups == 1 else images[where].flatten(0, 1)
    return piece.to(gradient_dtype(images.dtype))


def _weights(weight: Tensor, where: Where) -> Tensor:
    """A piece ``[pairs, ...]`` of ``[S, G, ...]``."""
    return weight[where].flatten(0, 1).to(gradient_dtype(weight.dtype))


def _students_weights(weight: Tensor, where: Where) -> Tensor:
    """A piece ``[pairs, ...]`` of ``[S, ...]``, the same for all groups."""
    piece = weight[where[0], None]
    groups = where[1].stop - where[1].start
    return piece.expand(-1, groups, *piece.shape[2:]).flatten(0, 1).to(gradient_dtype(weight.dtype))


def _put(into: Tensor, where: Where, groups: int, piece: Tensor) -> None:
    """Writes ``[pairs, m, C, H, W]`` to its place in ``[S, G, n, C, H, W]``."""
    target = into[where[0]] if groups == 1 else into[where]
    shape = target.shape[1:3] if groups == 1 else target.shape[:2]
    target.copy_(piece.unflatten(1 if groups == 1 else 0, shape))


def _fold(images: Tensor) -> Tensor:
    """``[pairs, m, C, H, W]`` to the ``[m, pairs·C, H, W]`` of a grouped convolution."""
    return images.transpose(0, 1).flatten(1, 2)


def _unfold(images: Tensor, pairs: int) -> Tensor:
    shape = (images.shape[0], pairs, images.shape[1] // pairs, *images.shape[2:])
    return images.view(shape).transpose(0, 1)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolves ``[pairs, m, I, H, W]`` with ``[pairs, O, I, k, k]``."""
    pairs = weight.shape[0]
    folded = None if bias is None else bias.flatten()
    return _unfold(functional.conv2d(_fold(x), weight.flatten(0, 1), folded, stride, padding, groups=pairs), pairs)


def _backward(
    gy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `_forward` in ``x`` and ``weight``, still folded; the one not wanted gives its shape only."""
    sides = ([stride, stride], [padding, padding], [1, 1], False, [0, 0])
    gx, gw, _ = torch.ops.aten.convolution_backward(_fold(gy), x, weight, None, *sides, gy.shape[0], [*wanted, False])
    return gx, gw


def _input_gradient(gy: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    pairs, channels = weight.shape[0], weight.shape[2]
    shape = gy.new_empty(1).expand(gy.shape[1], pairs * channels, *size)
    return _unfold(_backward(gy, shape, weight.flatten(0, 1), stride, padding, [True, False])[0], pairs)


def _weight_gradient(x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    pairs, features = gy.shape[0], gy.shape[2]
    shape = gy.new_empty(1).expand(pairs * features, x.shape[2], kernel, kernel)
    gradient = _backward(gy, _fold(x), shape, stride, padding, [False, True])[1]
    return gradient.view(pairs, features, *gradient.shape[1:])


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, precision: str) -> Tensor:
    """``y = x∗w + b``."""
    students, groups, count, channels = x.shape[:4]
    features, kernel = weight.shape[1], weight.shape[-1]
    y = empty_images(x, features, *(output_size(size, kernel, stride, padding) for size in x.shape[4:]))
    size = groups * count * prod(y.shape[3:])
    for where in _pieces(students, 1, size * channels * kernel**2, size * x.element_size()):
        piece_b = None if bias is None else _students_weights(bias, where)
        _put(y, where, 1, _forward(_images(x, where, 1), _students_weights(weight, where), piece_b, stride, padding))
    return y


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
    """``y = x∗w + b`` and ``ẏ = ẋ∗w + x∗ẇ + ḃ``."""
    own = own_groups(dweight, dbias)
    students, groups, count, channels = x.shape[:4]
    features, kernel = weight.shape[1], weight.shape[-1]
    y = empty_images(x, features, *(output_size(size, kernel, stride, padding) for size in x.shape[4:]))
    dy = empty_images(x, *y.shape[3:])
    size = groups // max(own, 1) * count * prod(y.shape[3:])
    for where in _pieces(students, own, size * channels * kernel**2, size * x.element_size()):
        piece_x, piece_w = _images(x, where, own), _students_weights(weight, where)
        piece_b = None if bias is None else _students_weights(bias, where)
        piece_db = None if dbias is None else _weights(dbias, where)
        _put(y, where, own, _forward(piece_x, piece_w, piece_b, stride, padding))
        tangent = _forward(piece_x, _weights(dweight, where), piece_db, stride, padding)
        if dx is not None:
            tangent += _forward(_images(dx, where, own), piece_w, None, stride, padding)
        _put(dy, where, own, tangent)
    return y, dy


def convolution_input_gradient(
    gy: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int, precision: str
) -> Tensor:
    """``gx``, the transpose of ``x ↦ x∗w`` applied to ``gy``."""
    students, groups, count = gy.shape[:3]
    gx = empty_images(gy, weight.shape[2], height, width)
    size = groups * count * prod(gy.shape[3:])
    for where in _pieces(students, 1, size * prod(weight.shape[2:]), size * gy.element_size()):
        piece = _input_gradient(
            _images(gy, where, 1), _students_weights(weight, where), (height, width), stride, padding
        )
        _put(gx, where, 1, piece)
    return gx


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
    """``gx`` (empty without ``value``) and its tangent, from ``ġy`` with ``w`` and from ``gy`` with ``ẇ``."""
    own = own_groups(dweight)
    students, groups, count = gy.shape[:3]
    dgx = empty_images(gy, weight.shape[2], height, width)
    gx = empty_images(gy, *dgx.shape[3:]) if value else gy.new_empty(0)
    size = groups // max(own, 1) * count * prod(gy.shape[3:])
    for where in _pieces(students, own, size * prod(weight.shape[2:]), size * gy.element_size()):
        piece_gy, piece_w = _images(gy, where, own), _students_weights(weight, where)
        if value:
            _put(gx, where, own, _input_gradient(piece_gy, piece_w, (height, width), stride, padding))
        tangent = _input_gradient(_images(dgy, where, own), piece_w, (height, width), stride, padding)
        tangent += _input_gradient(piece_gy, _weights(dweight, where), (height, width), stride, padding)
        _put(dgx, where, own, tangent)
    return gx, dgx


def convolution_weight_gradient(
    x: Tensor, gy: Tensor, kernel: int, stride: int, padding: int, bias: bool, precision: str
) -> tuple[Tensor, Tensor]:
    """``gw``, the sum of ``gy ⊗ x`` over images and positions, and ``gb``, that of ``gy`` (empty without ``bias``)."""
    gw, _, gb, _ = _weight_gradients(x, None, gy, None, kernel, stride, padding, bias, True)
    return gw, gb


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
    """``gw, ġw, gb, ġb``; those without ``value`` or ``bias`` are empty."""
    return _weight_gradients(x, dx, gy, dgy, kernel, stride, padding, bias, value)


def _weight_gradients(
    x: Tensor,
    dx: Tensor | None,
    gy: Tensor,
    dgy: Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    students, groups, count, features = gy.shape[:4]
    channels = x.shape[3]
    dtype = gradient_dtype(gy.dtype)

    def made(wanted: bool, *shape: int) -> Tensor:
        return gy.new_empty((students, groups, features, *shape) if wanted else 0, dtype=dtype)

    gw, dgw = made(value, channels, kernel, kernel), made(dgy is not None, channels, kernel, kernel)
    gb, dgb = made(value and bias), made(dgy is not None and bias)
    size = count * prod(gy.shape[3:])
    for where in _pieces(students, groups, size * channels * kernel**2, size * gy.element_size()):
        # a group axis of one is a pair a student either way
        piece_x, piece_gy = _images(x, where, groups), _images(gy, where, groups)
        lead = gy[where].shape[:2]
        if value:
            gw[where] = _weight_gradient(piece_x, piece_gy, kernel, stride, padding).unflatten(0, lead)
            if bias:
                gb[where] = piece_gy.sum((1, 3, 4)).unflatten(0, lead)
        if dgy is not None:
            piece_dgy = _images(dgy, where, groups)
            tangent = _weight_gradient(piece_x, piece_dgy, kernel, stride, padding)
            if dx is not None:
                tangent += _weight_gradient(_images(dx, where, groups), piece_gy, kernel, stride, padding)
            dgw[where] = tangent.unflatten(0, lead)
            if bias:
                dgb[where] = piece_dgy.sum((1, 3, 4)).unflatten(0, lead)
    return gw, dgw, gb, dgb
