"""Pointwise activations and derivatives as device functions; truth is `fastdistill_kernels.reference.activation`."""

import triton
import triton.language as tl

from fastdistill_kernels.reference.activation import LEAK, STRAIGHT

_LEAK = tl.constexpr(LEAK)
_STRAIGHT = tl.constexpr(STRAIGHT)


@triton.jit
def _gates(z):
    """sigmoid(z) and sigmoid(−z), both exact however large z is, by way of an exponential that never overflows."""
    small = tl.exp(-tl.abs(z))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    return tl.where(z >= 0, larger, smaller), tl.where(z >= 0, smaller, larger)


@triton.jit
def activation_value(z, KIND: tl.constexpr):
    """``a(z)`` in float32."""
    if KIND == "relu":
        return tl.where(z <= 0, 0.0, z)  # what is not a number stays so, which a maximum would turn into zero
    elif KIND == "leaky_relu":
        return tl.where(z > 0, z, _LEAK * z)
    elif KIND == "softplus":
        # log1p by way of the larger exponent, which never overflows; the quotient mends what 1 + small loses
        small = tl.exp(-tl.abs(z))
        one_more = 1.0 + small
        rest = tl.where(one_more == 1.0, 1.0, one_more - 1.0)
        soft = tl.where(one_more == 1.0, small, tl.log(one_more) * (small / rest))
        return tl.where(z > _STRAIGHT, z, tl.where(z <= 0, 0.0, z) + soft)
    elif KIND == "sigmoid":
        gate, _ = _gates(z)
        return gate
    elif KIND == "swish":
        gate, _ = _gates(z)
        return z * gate
    else:
        return z


@triton.jit
def activation_slope(z, KIND: tl.constexpr):
    """``a′(z)``; zero or the leak at a kink."""
    if KIND == "relu":
        return tl.where(z <= 0, 0.0, 1.0)
    elif KIND == "leaky_relu":
        return tl.where(z > 0, 1.0, _LEAK)
    elif KIND == "softplus":
        gate, _ = _gates(z)
        return tl.where(z > _STRAIGHT, 1.0, gate)
    elif KIND == "sigmoid":
        gate, rest = _gates(z)
        return gate * rest
    elif KIND == "swish":
        gate, rest = _gates(z)
        return gate * (1.0 + z * rest)
    else:
        return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def activation_curvature(z, KIND: tl.constexpr):
    """``a″(z)``; zero at a kink."""
    if KIND == "softplus":
        gate, rest = _gates(z)
        return tl.where(z < _STRAIGHT, gate * rest, 0.0)
    elif KIND == "sigmoid":
        gate, rest = _gates(z)
        return gate * rest * (rest - gate)
    elif KIND == "swish":
        gate, rest = _gates(z)
        return gate * rest * (2.0 + z * (rest - gate))
    else:
        return tl.zeros_like(z)
