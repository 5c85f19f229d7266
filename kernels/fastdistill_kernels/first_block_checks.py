"""What `fastdistill_kernels.first_block` and its backward pass ask of their arguments."""

from __future__ import annotations

from torch import Tensor

from fastdistill_kernels.checks import expect_alike, expect_one_of, expect_shape
from fastdistill_kernels.reference.activation import ACTIVATIONS
from fastdistill_kernels.reference.first_block import SIDE, group_count, pooled

POOLINGS = ("none", "avg", "max")
PRECISIONS = ("ieee", "tf32")
DEPTHS = (1, 2, 3)
Parameters = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
NAMES = ("weight", "bias", "norm_weight", "norm_bias")


def check(
    operator: str,
    x: Tensor,
    own: Parameters,
    padding: int,
    activation: str,
    pooling: str,
    precision: str,
    along: Parameters | None = None,
    outputs: dict[str, Tensor] | None = None,
) -> None:
    """Refuses what does not fit together, in the order in which a reader would look."""
    expect_one_of(operator, "activation", activation, ACTIVATIONS)
    expect_one_of(operator, "pooling", pooling, POOLINGS)
    expect_one_of(operator, "precision", precision, PRECISIONS)
    weight, _, norm_weight, norm_bias = own
    if x.ndim != 6 or weight.ndim != 5 or x.shape[3] not in DEPTHS:
        raise ValueError(
            f"{operator} expected images [S, G, n, D, H, W] of D = 1 to 3 channels and weights [S, O, D, 3, 3], got "
            f"{list(x.shape)} and {list(weight.shape)}: use the convolution operators for other layers"
        )
    students, channels = weight.shape[:2]
    if x.shape[0] != 1 and x.shape[0] != students:
        raise ValueError(
            f"{operator} expected images of {students} students as the weights, or of 1, got {x.shape[0]}: give "
            "x that leading axis"
        )
    expect_shape(operator, "weight", weight, "[S, O, D, 3, 3]", (students, channels, x.shape[3], SIDE, SIDE))
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(
            f"{operator} expected norm_weight and norm_bias, or neither for a block without norm, got one of them: "
            "give both"
        )
    for name, vector in zip(NAMES[1:], own[1:], strict=True):
        if vector is not None:
            expect_shape(operator, name, vector, "[S, O]", (students, channels))
    groups = x.shape[1]
    if along is not None:
        groups = _check_tangents(operator, x, own, along)
    extents = tuple(pooled(extent, padding, pooling) for extent in x.shape[-2:])
    if padding < 0 or min(extents) < 1:
        raise ValueError(
            f"{operator} expected a padding of at least 0 and images that leave an output, got {padding} and "
            f"{list(x.shape[-2:])} with pooling {pooling!r}: use larger images or padding"
        )
    tangents = {} if along is None else {f"d{name}": tensor for name, tensor in zip(NAMES, along, strict=True)}
    for name, output in (outputs or {}).items():
        groups = output.shape[1] if groups == 1 and output.ndim == 6 else groups
        expect_shape(operator, name, output, "[S, G, n, O, H', W']", (students, groups, x.shape[2], channels, *extents))
    expect_alike(operator, x=x, **dict(zip(NAMES, own, strict=True)), **tangents, **(outputs or {}))


def _check_tangents(operator: str, x: Tensor, own: Parameters, along: Parameters) -> int:
    """The number of groups, once tangents fit weights and images."""
    groups, grouped = group_count(x, along[0]), along[0].ndim == 6
    if x.shape[1] != 1 and x.shape[1] != groups:
        raise ValueError(
            f"{operator} expected images of {groups} groups as the tangents, or of 1, got {x.shape[1]}: give x that "
            "second axis"
        )
    held = (along[0].shape[1],) if grouped else ()
    for name, tensor, tangent in zip(NAMES, own, along, strict=True):
        if (tensor is None) != (tangent is None):
            raise ValueError(
                f"{operator} expected a d{name} exactly where there is a {name}, got one of them: give both or neither"
            )
        if tensor is not None and tangent is not None:
            letters = "[S, G, ...]" if grouped else "[S, ...]"
            expect_shape(operator, f"d{name}", tangent, letters, (tensor.shape[0], *held, *tensor.shape[1:]))
    return groups


def paired(own: Parameters, along: Parameters) -> list[Tensor | None]:
    """Weights, each followed by its tangent."""
    return [tensor for pair in zip(own, along, strict=True) for tensor in pair]
