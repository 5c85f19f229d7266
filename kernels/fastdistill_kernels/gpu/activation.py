"""Pointwise activations and derivatives as device functions; truth is `fastdistill_kernels.reference.activation`."""

import triton
import triton.language as tl


@triton.jit
def activation_value(z, KIND: tl.constexpr):
    """``a(z)`` in float32."""
    if KIND == "relu":
        return tl.maximum(z, 0.0)
    elif KIND == "leaky_relu":
        return tl.where(z > 0, z, 0.01 * z)
    elif KIND == "softplus":
        # log1p by way of the larger exponent, which never overflows; past 20 it is z itself, as torch has it
        soft = tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))
        return tl.where(z > 20.0, z, soft)
    elif KIND == "sigmoid":
        return tl.sigmoid(z)
    elif KIND == "swish":
        return z * tl.sigmoid(z)
    else:
        return z


@triton.jit
def activation_slope(z, KIND: tl.constexpr):
    """``a′(z)``; zero or the leak at a kink."""
    if KIND == "relu":
        return tl.where(z > 0, 1.0, 0.0)
    elif KIND == "leaky_relu":
        return tl.where(z > 0, 1.0, 0.01)
    elif KIND == "softplus":
        return tl.sigmoid(z)
    elif KIND == "sigmoid":
        gate = tl.sigmoid(z)
        return gate * (1.0 - gate)
    elif KIND == "swish":
        gate = tl.sigmoid(z)
        return gate * (1.0 + z * (1.0 - gate))
    else:
        return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def activation_curvature(z, KIND: tl.constexpr):
    """``a″(z)``; zero at a kink."""
    if KIND == "softplus":
        gate = tl.sigmoid(z)
        return gate * (1.0 - gate)
    elif KIND == "sigmoid":
        gate = tl.sigmoid(z)
        return gate * (1.0 - gate) * (1.0 - 2.0 * gate)
    elif KIND == "swish":
        gate = tl.sigmoid(z)
        return gate * (1.0 - gate) * (2.0 + z * (1.0 - 2.0 * gate))
    else:
        return tl.zeros_like(z)
