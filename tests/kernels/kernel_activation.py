"""A kernel around the device functions of activations, imported where a test needs triton."""

import torch
import triton
import triton.language as tl

from fastdistill_kernels.gpu.activation import activation_curvature, activation_slope, activation_value


@triton.jit
def kernel(z, value, slope, curvature, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    found = tl.load(z + index, mask=inside, other=0.0)
    tl.store(value + index, activation_value(found, KIND), mask=inside)
    tl.store(slope + index, activation_slope(found, KIND), mask=inside)
    tl.store(curvature + index, activation_curvature(found, KIND), mask=inside)


def launched(z, kind):
    """Value, slope and curvature at ``z`` in float32."""
    outputs = [torch.empty_like(z) for _ in range(3)]
    kernel[(triton.cdiv(len(z), 32),)](z, *outputs, len(z), kind, 32)
    return outputs
