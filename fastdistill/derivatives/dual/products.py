"""Layers of matrix products: convolution and linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdistill.derivatives.dual.layer import Cotangents, Kept, Own, Wanted, given, operators, pair


@dataclass(frozen=True)
class Convolution:
    """A square convolution.

    Attributes:
        weights: names of weight and, if there is one, bias.
        channels: of the images.
        kernel: its side.
        stride: of the kernel.
        padding: zeros on each side.
        precision: of float32 products on a device.
        inlined: for a program that is compiled for a CPU.
    """

    weights: tuple[str, ...]
    channels: int
    kernel: int
    stride: int
    padding: int
    precision: str = "ieee"
    inlined: bool = False
    buffers: tuple[str, ...] = ()

    @property
    def _operators(self) -> Any:
        return operators(self.inlined)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "precision": self.precision}

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        return self._operators.convolution(xs[0], *pair(own, xs[0]), **self._settings), xs

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""
        (x,), settings, (weight, bias) = kept, self._settings, pair(own, gy)
        gx = (
            self._operators.convolution_input_gradient(gy, weight, tuple(x.shape[4:]), **settings)
            if wanted.inputs
            else None
        )
        if not wanted.weights:
            return (gx,), ()
        found = self._operators.convolution_weight_gradient(x, gy, self.kernel, bias=bias is not None, **settings)
        return (gx,), given(*found)

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        (weight, bias), (dweight, dbias) = pair(own, xs[0]), pair(along, xs[0])
        y, dy = self._operators.dual_convolution(xs[0], dxs[0], weight, dweight, bias, dbias, **self._settings)
        return y, dy, (xs[0], dxs[0])

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""
        (x, dx), settings = kept, self._settings
        (weight, bias), (dweight, _) = pair(own, gy), pair(along, gy)
        gx = dgx = None
        if wanted.inputs:
            gx, dgx = self._operators.dual_convolution_input_gradient(
                gy, dgy, weight, dweight, tuple(x.shape[4:]), value=wanted.values, **settings
            )
        if not wanted.weights:
            return (gx,), (dgx,), ()
        _, dgw, _, dgb = self._operators.dual_convolution_weight_gradient(
            x, dx, gy, dgy, self.kernel, bias=bias is not None, value=False, **settings
        )
        return (gx,), (dgx,), given(dgw, dgb)


@dataclass(frozen=True)
class Linear:
    """A matrix and, if there is one, a bias, on vectors.

    Attributes:
        weights: their names.
        precision: of float32 products on a device.
        inlined: for a program that is compiled for a CPU.
    """

    weights: tuple[str, ...]
    precision: str = "ieee"
    inlined: bool = False
    buffers: tuple[str, ...] = ()

    @property
    def _operators(self) -> Any:
        return operators(self.inlined)

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        return self._operators.linear(xs[0], *pair(own, xs[0]), precision=self.precision), xs

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""
        weight, bias = pair(own, gy)
        gx = self._operators.linear_input_gradient(gy, weight, precision=self.precision) if wanted.inputs else None
        if not wanted.weights:
            return (gx,), ()
        found = self._operators.linear_weight_gradient(kept[0], gy, bias=bias is not None, precision=self.precision)
        return (gx,), given(*found)

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        (weight, bias), (dweight, dbias) = pair(own, xs[0]), pair(along, xs[0])
        y, dy = self._operators.dual_linear(xs[0], dxs[0], weight, dweight, bias, dbias, precision=self.precision)
        return y, dy, (xs[0], dxs[0])

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""
        (weight, bias), (dweight, _) = pair(own, gy), pair(along, gy)
        gx = dgx = None
        if wanted.inputs:
            gx, dgx = self._operators.dual_linear_input_gradient(
                gy, dgy, weight, dweight, precision=self.precision, value=wanted.values
            )
        if not wanted.weights:
            return (gx,), (dgx,), ()
        x, dx = kept
        _, dgw, _, dgb = self._operators.dual_linear_weight_gradient(
            x, dx, gy, dgy, bias=bias is not None, precision=self.precision, value=False
        )
        return (gx,), (dgx,), given(dgw, dgb)
