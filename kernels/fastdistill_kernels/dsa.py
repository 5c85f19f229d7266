"""Differentiable Siamese augmentation and its transpose: to every (student, group) pair the operation that it drew.

``dsa(images, operation, parameters) -> A·images + constant`` and ``dsa_transpose(cotangent, …) -> Aᵀ·cotangent``, on
``[S, G, n, D, H, W]``. Every operation is linear in the images up to the constant that brightness adds, so the
transpose needs no images; both gather, and no sum is scattered. Derivations: ``kernels/README.md``.

=========  ====================================================================  ==========================
operation  value at ``(y, x)``, by uniform numbers ``u₀, u₁, u₂``                transpose
=========  ====================================================================  ==========================
color      ``c·s·v + c(1−s)·m + (1−c)·M + b``; ``b = u₀−½, s = 2u₁, c = u₂+½``,  the same without ``b``
           ``m`` the mean over channels, ``M`` over the image
crop       ``v`` at ``(y+i, x+j)``, ``|i| ≤ int(H/8+½)`` by u₀, ``j`` by u₁      at ``(y−i, x−j)``
cutout     0 in a square of side ``int(H/2+½)`` around a centre by u₀, u₁        the same
flip       ``v`` at ``(y, W−1−x)`` if ``u₀ < ½``                                 the same
scale      bilinear at ``diag(s_x, s_y)``, ``s`` in ``[1/1.2, 1.2]`` by u₀, u₁   at most 3×3 gathered values
rotate     bilinear at the rotation by ``(u₀−½)·30°``                            at most 3×3 gathered values
=========  ====================================================================  ==========================

Least traffic: images read once (a broadcast axis is not copied), results written once. FLOPs, on image values only
and the mean over the operations, which are equally likely, down to a whole number a pixel: 3 a value and 3 a pixel for
color, 7 a value for scale and rotate, 17 in their transpose, 0 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdistill_kernels import checks, operators
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.reference import dsa as reference

OPERATIONS = reference.OPERATIONS
PARAMETERS = reference.PARAMETERS  # uniform numbers of a draw; an operation uses one, two or three of them
LONGEST = 20  # operations a strategy may list: three bits each in one 64-bit argument of the kernel
_SAMPLED, _GATHERED = 7, 17  # products and sums of four and of nine weighted values


def cost_dsa(
    operations: Sequence[str],
    pairs: int,
    images: int,
    depth: int,
    height: int,
    width: int,
    itemsize: int,
    *,
    read: int | None = None,
    transpose: bool = False,
) -> Cost:
    """What one call asks for, in the mean over the operations.

    Args:
        operations: names that may be drawn.
        pairs: ``S·G``.
        images: ``n``.
        depth: ``D``.
        height: ``H``.
        width: ``W``.
        itemsize: bytes of a value.
        read: distinct pairs of images, fewer where the students share them; all by default.
        transpose: of the transpose.
    """
    pixels = pairs * images * height * width
    sampled = _GATHERED if transpose else _SAMPLED
    of_pixel = {"color": 3 * depth + 3, "scale": sampled * depth, "rotate": sampled * depth}
    # rounded by the pixel, so that parts of a batch add up to the whole
    flops = pixels * (sum(of_pixel.get(name, 0) for name in operations) // max(len(operations), 1))
    written = pixels * depth * itemsize
    return Cost(flops, written + (written if read is None else written // max(pairs, 1) * read))


def dsa(
    images: Tensor,
    operation: Tensor,
    parameters: Tensor,
    operations: Sequence[str],
    *,
    align_corners: bool,
) -> Tensor:
    """Applies every pair's drawn operation.

    Args:
        images: ``[S or 1, G or 1, n, D, H, W]`` in normalised space; float32, bfloat16 or float64, any strides.
        operation: which of ``operations`` each pair drew, int64 ``[S, G]``; an index outside the list leaves its
            images as they are.
        parameters: uniform numbers in ``[0, 1)``, float32 (or float64, for images in float64) ``[S, G, 1 or n, 3]``:
            one row for all images of a pair, or one an image.
        operations: names among ``OPERATIONS``, at most ``LONGEST``.
        align_corners: of the sampling grid of scale and rotate, as torch's ``grid_sample`` has it.

    Returns:
        ``[S, G, n, D, H, W]``, computed in float32 (float64 for float64 images) and rounded once.

    Raises:
        ValueError: for a wrong shape, dtype, device, name or number of operations.
        TypeError: for a tensor whose derivative would be lost.
    """
    codes = _codes("dsa", images, operation, parameters, operations)
    found: Tensor = _dsa(images, operation, parameters, codes, align_corners)
    return found


def dsa_transpose(
    cotangent: Tensor,
    operation: Tensor,
    parameters: Tensor,
    operations: Sequence[str],
    *,
    align_corners: bool,
) -> Tensor:
    """Takes the cotangent of augmented images to that of the images.

    Args:
        cotangent: ``[S or 1, G or 1, n, D, H, W]``.
        operation: as in `dsa`.
        parameters: as in `dsa`.
        operations: as in `dsa`.
        align_corners: as in `dsa`.

    Returns:
        ``[S, G, n, D, H, W]``; for shared images, its sum over the axis that shares them is their cotangent.

    Raises:
        ValueError: as in `dsa`.
        TypeError: as in `dsa`.
    """
    codes = _codes("dsa_transpose", cotangent, operation, parameters, operations)
    found: Tensor = _dsa_transpose(cotangent, operation, parameters, codes, align_corners)
    return found


def _codes(name: str, images: Tensor, operation: Tensor, parameters: Tensor, operations: Sequence[str]) -> list[int]:
    """Checks the arguments of both operators and returns the codes of the operations."""
    checks.refuse_derivatives(name, images, parameters)
    what = "cotangent" if name == "dsa_transpose" else "images"
    checks.expect_alike(name, **{what: images})
    for word in operations:
        checks.expect_one_of(name, "operations", word, OPERATIONS)
    if len(operations) > LONGEST:
        raise ValueError(f"{name} expected at most {LONGEST} operations, got {len(operations)}: list each of them once")
    if operation.ndim != 2 or operation.dtype != torch.int64:
        raise ValueError(
            f"{name} expected operation [S, G] in int64, got {list(operation.shape)} {operation.dtype}: draw one index "
            "for every student and group"
        )
    students, groups = operation.shape
    if images.ndim != 6 or images.shape[0] not in (1, students) or images.shape[1] not in (1, groups):
        raise ValueError(
            f"{name} expected {what} [{students} or 1, {groups} or 1, n, D, H, W], got {list(images.shape)}: give it "
            "the leading axes of operation"
        )
    rows = parameters.shape[2] if parameters.ndim == 4 and parameters.shape[2] == images.shape[2] else 1
    checks.expect_shape(name, "parameters", parameters, "[S, G, 1 or n, 3]", (students, groups, rows, PARAMETERS))
    if parameters.dtype not in (torch.float32, torch.promote_types(images.dtype, torch.float32)):
        raise ValueError(
            f"{name} expected parameters in float32, or float64 for images in float64, got {parameters.dtype} for "
            f"{images.dtype}: convert them"
        )
    for label, tensor in (("operation", operation), ("parameters", parameters)):
        if tensor.device != images.device:
            raise ValueError(
                f"{name} expected {label} on {images.device} like {what}, got {tensor.device}: move one of them"
            )
    return [OPERATIONS.index(word) for word in operations]


def _fake(images: Tensor, operation: Tensor, *_: Any) -> Tensor:
    return images.new_empty(*operation.shape, *images.shape[2:])


def _flops(transpose: bool) -> Any:
    def flops(images: Sequence[int], operation: Sequence[int], _: Any, operations: Sequence[int], *__: Any) -> int:
        names = [OPERATIONS[code] for code in operations]
        pairs = operation[0] * operation[1]
        n, depth, height, width = images[2:]
        return cost_dsa(names, pairs, n, depth, height, width, 1, transpose=transpose).flops

    return flops


_dsa = operators.register(
    "dsa(Tensor images, Tensor operation, Tensor parameters, int[] operations, bool align_corners) -> Tensor",
    reference=reference.dsa,
    kernels="dsa",
    fake=_fake,
    flops=_flops(transpose=False),
)
_dsa_transpose = operators.register(
    "dsa_transpose(Tensor cotangent, Tensor operation, Tensor parameters, int[] operations, bool align_corners) "
    "-> Tensor",
    reference=reference.dsa_transpose,
    kernels="dsa",
    fake=_fake,
    flops=_flops(transpose=True),
)
