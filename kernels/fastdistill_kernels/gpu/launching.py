"""One launch of a Triton kernel as plain data, so that it can be run, interpreted, or compiled without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

Capability = tuple[int, int]
_SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (9, 4): 64, (10, 0): 227}  # KiB that one program may use
_SHARED_LEAST = 64
AMD: Capability = (9, 4)  # CDNA 3 by torch's count; no device of CUDA's has it
ALL_REGISTERS = 255  # that a thread of CUDA's can name
_LARGEST_OFFSET = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Launch:
    """A kernel and everything it is launched with.

    Attributes:
        kernel: decorated by ``triton.jit``.
        grid: programs; one axis, because the others hold only 65535.
        arguments: by name, in the kernel's order: tensors, integers, floats, or None.
        constants: by name: the kernel's ``tl.constexpr``.
        warps: of each program.
        stages: of software pipelining.
        registers: the most of a thread on CUDA. None leaves it to the assembler, which would rather spill a few of them
            than have room for one program fewer.
    """

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told beside constants; AMD's knows no limit of registers."""
        limit = {} if self.registers is None or torch.version.hip else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}

    def run(self) -> None:
        """Launches it on the current device; nothing for an empty grid."""
        if self.grid:
            self.kernel[(self.grid,)](**self.arguments, **self.constants, **self.options)


def capability(device: torch.device) -> Capability:
    """Compute capability of a device; that of an H200 for a CPU, where kernels are interpreted."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def shared_bytes(of: Capability) -> int:
    """Shared memory of one program."""
    return _SHARED.get(of, _SHARED_LEAST) * 1024


def expect_reachable(what: str, *extents: int) -> None:
    """Refuses a part of a tensor, one image say, within which 32 bits do not reach every element.

    Kernels multiply the axes before it by their strides in 64 bits; so any number of images will do.

    Raises:
        ValueError: naming the part, its extents and the limit.
    """
    if prod(extents) - 1 > _LARGEST_OFFSET:
        raise ValueError(
            f"expected at most {_LARGEST_OFFSET + 1} elements of {what}, as many as offsets of 32 bits reach, got "
            f"{' × '.join(map(str, extents))}: use fewer channels or smaller images"
        )


def addressable(tensor: Tensor, axes: int, what: str = "images") -> Tensor:
    """A tensor whose last axes span less than 2³¹ elements, so that offsets in them need 32 bits; a copy if need be.

    Raises:
        ValueError: where even a copy's would need more, naming it by ``what``.
    """
    spans = zip(tensor.shape[-axes:], tensor.stride()[-axes:], strict=True)
    if sum((size - 1) * stride for size, stride in spans) <= _LARGEST_OFFSET:
        return tensor
    expect_reachable(what, *tensor.shape[-axes:])
    return tensor.contiguous()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, whose bfloat16 products are wrong: they must be widened there."""
    return bool(triton.knobs.runtime.interpret)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(least - 1, 0).bit_length()


def programs(*extents: int) -> int:
    """Programs of a flattened grid."""
    return prod(extents)
