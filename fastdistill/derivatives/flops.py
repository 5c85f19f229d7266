"""Floating-point operations of convolutions and matrix products; what else a student does is not counted.

A multiplication and an addition are two. The formulas are torch's, but for the backward pass of convolutions: torch's
takes no notice of groups, and students batched by ``vmap`` are groups, so it counts their weight gradients ``S`` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def convolution_backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    *,
    out_val: Any = None,
) -> int:
    """Those of ``aten.convolution_backward``, from its arguments: as the forward pass for each of both gradients.

    ``2 · n · (places of the kernel) · (elements of the weight)``, whose second axis is a group's channels only.
    """
    places = (images if transposed else gradient).shape[2:]
    return 2 * images.shape[0] * prod(places) * weight.numel() * (output_mask[0] + output_mask[1])


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: convolution_backward,
}


def flops(operator: Any, arguments: Sequence[Any], named: Mapping[str, Any], result: Any) -> int:
    """Those of one call of an ATen operator.

    Args:
        operator: as ``__torch_dispatch__`` is given it.
        arguments: of the call.
        named: of the call, by name.
        result: of the call.
    """
    formula = FORMULAS.get(getattr(operator, "overloadpacket", None))
    return 0 if formula is None else int(formula(*arguments, **named, out_val=result))


class Counted(TorchDispatchMode):
    """Counts those of all operators that run while it is entered; the operators themselves are not touched.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.flops += flops(func, args, kwargs or {}, result)
        return result
