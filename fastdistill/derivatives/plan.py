"""How students are run: chosen once by a measured rule, kept with the run, reused on resume.

Results are bit-identical for the same plan; between plans they differ by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Path(StrEnum):
    """How the students of one program are batched."""

    VMAP = "vmap"
    LOOP = "loop"


@dataclass(frozen=True, kw_only=True)
class Batching:
    """One way to run a primitive.

    Attributes:
        path: one vmapped program, or a loop over (student, group) pairs.
        piece: most images of a pair that are processed at once; losses and gradients accumulate exactly.
        students: most students in one vmapped program; the others follow in further calls.
    """

    path: Path
    piece: int
    students: int

    def __post_init__(self) -> None:
        if self.piece < 1 or self.students < 1:
            raise ValueError(
                f"expected a piece and a student count of at least 1, got {self.piece} and {self.students}: raise them"
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs one student.

    Attributes:
        flops: floating-point operations of the forward pass.
        activations: elements of all module outputs together.
        largest: elements of the largest of them.
    """

    flops: int
    activations: int
    largest: int


def forward_cost(module: nn.Module, shape: tuple[int, int, int]) -> Cost:
    """Counts one image's forward pass on the meta device, without allocating anything.

    Args:
        module: a student; only its shapes matter.
        shape: ``(D, H, W)``.
    """
    meta = module.to("meta") if any(True for _ in module.parameters()) else module
    sizes: list[int] = []

    def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    leaves = [layer for layer in meta.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(record) for layer in leaves]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            meta(torch.empty(1, *shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(flops=counter.get_total_flops(), activations=sum(sizes), largest=max(sizes))
