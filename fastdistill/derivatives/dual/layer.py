"""Dual layers: each computes its value and its backward pass, alone or together with their tangents.

Images are ``[S, G, n, C, H, W]`` and vectors ``[S, G, n, F]``; an axis S or G of 1 is shared by all. Weights of a layer
are ``[S, ...]``, their tangents and gradients ``[S, G, ...]``. A tangent that is zero everywhere is None.

All layers have the same four methods. ``forward`` gives the output and what the backward pass needs of it;
``backward`` gives cotangents of the inputs and gradients of the weights. With tangents ``dual_forward`` gives both, and
``dual_backward`` cotangents, *their tangents*, and the tangents alone of the weights' gradients: second-order products
need nothing else. Where a cotangent is only passed on (no weight lies below), its value is not computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

import fastdistill_kernels as kernels

Own = tuple[Tensor, ...]  # a layer's weights and then its buffers, by its own names
Kept = tuple[Any, ...]  # what a forward pass leaves for the backward pass
Cotangents = tuple[Tensor | None, ...]  # of a layer's inputs


class Wanted(NamedTuple):
    """What a backward pass is asked for: gradients of the weights, cotangents of the inputs, and their values."""

    weights: bool
    inputs: bool
    values: bool = True


class Layer(Protocol):
    """What a program is made of; a new layer is one such class and one row in the test table."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters that it has gradients for."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that it reads."""

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""


def operators(inlined: bool) -> Any:
    """The operators, or what takes their place in a program that is compiled for a CPU."""
    return kernels.inlined if inlined else kernels


def pair(own: Own, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the dtype of what they meet."""
    return own[0].to(like.dtype), own[1].to(like.dtype) if len(own) > 1 else None


def given(*tensors: Tensor | None) -> Own:
    """Those that there are."""
    return tuple(tensor for tensor in tensors if tensor is not None)
