"""What programs ask of a device: floating-point operations, operator calls, bytes.

Floating-point operations are those of convolutions and matrix products; what else a student does is not counted. A
multiplication and an addition are two. The formulas are torch's, but for the backward pass of convolutions: torch's
takes no notice of groups, and students batched by ``vmap`` are groups, so it counts their weight gradients ``S`` times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastdistill_kernels.operators import has_products


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


OWN: dict[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: convolution_backward}


def flops(operator: Any, arguments: Sequence[Any], named: Mapping[str, Any], result: Any) -> int:
    """Those of one call of an operator, in convolutions and matrix products.

    Args:
        operator: as ``__torch_dispatch__`` is given it.
        arguments: of the call.
        named: of the call, by name.
        result: of the call.
    """
    packet = getattr(operator, "overloadpacket", None)
    if packet is not None and operator.namespace == "fastdistill" and not has_products(packet.__name__):
        return 0  # its formula counts what torch's own formulas leave out
    formula = OWN.get(packet) or flop_registry.get(packet)  # where custom operators have entered theirs
    return 0 if formula is None else int(formula(*arguments, **named, out_val=result))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a program asks of a device.

    Attributes:
        flops: floating-point operations.
        dispatches: operators called, views among them; each takes the host some time.
        launches: those of them that compute or copy something.
        traffic: bytes that these read and write, each by itself: what no fusion and no cache saves anything of.
    """

    flops: int = 0
    dispatches: int = 0
    launches: int = 0
    traffic: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            flops=self.flops + other.flops,
            dispatches=self.dispatches + other.dispatches,
            launches=self.launches + other.launches,
            traffic=self.traffic + other.traffic,
        )


class Counted(TorchDispatchMode):
    """Counts the work of all operators that run while it is entered; the operators themselves are not touched.

    Compiled functions refuse to run meanwhile; count them as they are before they are compiled.

    Attributes:
        kinds: how many launches there were of so many operations and bytes each.
        phases: by the innermost label that was open (`torch.profiler.record_function`), in the order of their first
            operators; what no label was around is under the empty name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phases: dict[str, Work] = {}
        self.kinds: Counter[tuple[int, int]] = Counter()
        self._open: list[str] = []

    @property
    def work(self) -> Work:
        """That of all phases."""
        return sum(self.phases.values(), Work())

    def floor_seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Least seconds on a device of these rates: of every launch the longer of its arithmetic and its transfer."""
        return sum(
            count * max(operations / flops_per_s, moved / bytes_per_s)
            for (operations, moved), count in self.kinds.items()
        )

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "profiler":
            if "enter" in func.__name__:
                self._open.append(args[0])
            else:
                self._open.pop()
            return result
        computes = not func.is_view
        found = Work(
            flops=flops(func, args, kwargs or {}, result),
            dispatches=1,
            launches=int(computes),
            traffic=_traffic(func, args, kwargs or {}, result) if computes else 0,
        )
        if computes:
            self.kinds[found.flops, found.traffic] += 1
        name = self._open[-1] if self._open else ""
        self.phases[name] = self.phases.get(name, Work()) + found
        return result


_ALLOCATING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}  # not written yet
_PICKING = {"index", "index_select", "gather", "embedding"}  # of their first tensor they read what they give


def _traffic(operator: Any, arguments: Sequence[Any], named: Mapping[str, Any], result: Any) -> int:
    """Bytes that one call reads and writes."""
    name = operator.overloadpacket.__name__
    if name in _ALLOCATING:
        return 0
    read = (result, *arguments[1:]) if name in _PICKING else arguments
    return _bytes((read, named, result))


def _bytes(nest: Any) -> int:
    """Of all tensors in a nest; of one that repeats what it holds, only what it holds."""
    tensors = (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
