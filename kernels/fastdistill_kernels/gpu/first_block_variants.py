"""What of `fastdistill_kernels.first_block` is compiled ahead of time beside a ConvNet-3-128's first block.

Maxima, curved activations, blocks without norm, and all precisions of the statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdistill_kernels.gpu.first_block_backward import prepare_backward
from fastdistill_kernels.gpu.first_block_forward import prepare_forward
from fastdistill_kernels.gpu.first_block_parts import Packed
from fastdistill_kernels.gpu.launching import Capability, Launch

_VARIANTS = (
    # pass, channels of images, output channels, activation, pooling, with a norm, precision
    ("forward", 1, 64, "softplus", "none", True, "float32"),
    ("dual", 3, 128, "swish", "max", True, "float32"),
    ("dual", 1, 6, "relu", "max", False, "bf16"),
    ("dual_backward", 1, 128, "softplus", "max", True, "tf32"),
    ("dual_backward", 1, 128, "swish", "avg", True, "float32"),
    ("dual_backward", 3, 128, "relu", "max", True, "bf16"),
    ("dual_backward", 3, 128, "relu", "max", True, "float32"),
    ("dual_backward", 3, 64, "relu", "none", False, "bf16"),
    ("moments", 3, 128, "relu", "avg", True, "tf32"),
    ("moments", 3, 128, "relu", "avg", True, "float32"),
)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for grey images of 28×28 or coloured ones of 32×32, sixteen students, ten classes of 10 images."""
    found = {}
    for kind, depth, channels, activation, pooling, normed, precision in _VARIANTS:
        launches = _example(kind, depth, channels, activation, pooling, normed, precision, capability)
        name = f"{channels}/{activation}-{pooling}{'' if normed else '-bare'}"
        # statistics are no products of matrix units in every precision, hence named otherwise
        order = (precision, kind) if kind == "moments" else (f"{kind}{depth}", precision)
        found["/".join(("first_block", name, *order))] = launches
    return found


def _example(
    kind: str,
    depth: int,
    channels: int,
    activation: str,
    pooling: str,
    normed: bool,
    precision: str,
    of: Capability,
) -> list[Launch]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, padding = (28, 3) if depth == 1 else (32, 1)
    side = size + 2 * padding - 2
    side = side if pooling == "none" else side // 2

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def packed(*lead: int) -> Packed:
        gamma, beta = (make(*lead, channels) if normed else None for _ in range(2))
        return make(*lead, channels, depth, 3, 3), make(*lead, channels), gamma, beta

    x, own, along = make(16, 10, 10, depth, size, size), packed(16), packed(16, 10)
    choices = (padding, activation, pooling, 1e-5, "tf32" if precision == "tf32" else "ieee")
    if kind == "dual_backward":
        gy = make(16, 10, 10, side, side, channels).permute(0, 1, 2, 5, 3, 4)
        return prepare_backward(gy, gy, x, own, along, *choices, True, True, of)[-1][-2:]
    launches = prepare_forward(x, own, None if kind == "forward" else along, *choices, of)[-1]
    return launches[:-1] if kind == "moments" else launches[-1:]
