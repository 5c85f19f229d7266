"""Norm, activation and pooling as one layer, and with a network's first convolution as one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastdistill_kernels as kernels
from fastdistill.derivatives.dual.layer import Cotangents, Kept, Own, Wanted, given, operators, pair
from fastdistill.derivatives.dual.products import Convolution


@dataclass(frozen=True)
class NormActPool:
    """Norm, activation and 2x2 pooling, each of which may be missing.

    Attributes:
        weights: names of the norm's weight and bias, or none.
        groups: norm groups of an image, as many as channels for ``None`` (instance norm); 0 for no norm.
        eps: of the norm.
        activation: or ``none``.
        pooling: or ``none``.
        inlined: for a program that is compiled for a CPU.
    """

    weights: tuple[str, ...] = ()
    groups: int | None = 0
    eps: float = 1e-5
    activation: str = "none"
    pooling: str = "none"
    inlined: bool = False
    buffers: tuple[str, ...] = ()

    @property
    def _operators(self) -> Any:
        return operators(self.inlined)

    def then(self, after: NormActPool) -> NormActPool | None:
        """Both as one layer, where that computes the same."""
        if after.groups != 0 or self.pooling != "none" or "none" not in (self.activation, after.activation):
            return None
        activation = after.activation if self.activation == "none" else self.activation
        return replace(self, activation=activation, pooling=after.pooling)

    def _settings(self, x: Tensor) -> dict[str, Any]:
        groups = x.shape[3] if self.groups is None else self.groups
        return {"groups": groups, "activation": self.activation, "pooling": self.pooling}

    def _affine(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return (own[0], own[1]) if own else (None, None)

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        x = _as_images(xs[0])
        y, mean, rstd = self._operators.norm_act_pool(x, *self._affine(own), eps=self.eps, **self._settings(x))
        return _shaped_like(y, xs[0]), (xs[0], mean, rstd)

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""
        x = _as_images(kept[0])
        gx, gw, gb = self._operators.norm_act_pool_backward(
            _as_images(gy), x, *self._affine(own), *kept[1:], **self._settings(x)
        )
        return (_shaped_like(gx, kept[0]),), given(gw, gb) if wanted.weights else ()

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        x, dx = _as_images(xs[0]), torch.zeros_like(xs[0]) if dxs[0] is None else dxs[0]
        (weight, bias), (dweight, dbias) = self._affine(own), self._affine(along)
        y, dy, *statistics = self._operators.dual_norm_act_pool(
            x, _as_images(dx), weight, dweight, bias, dbias, eps=self.eps, **self._settings(x)
        )
        return _shaped_like(y, xs[0]), _shaped_like(dy, xs[0]), (xs[0], dx, *statistics)

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""
        (like, dx, *statistics) = kept
        x = _as_images(like)
        (weight, bias), (dweight, dbias) = self._affine(own), self._affine(along)
        gx, dgx, _, dgw, _, dgb = self._operators.dual_norm_act_pool_backward(
            _as_images(gy),
            _as_images(dgy),
            x,
            _as_images(dx),
            weight,
            dweight,
            bias,
            dbias,
            *statistics,
            value=False,
            **self._settings(x),
        )
        return (_shaped_like(gx, like),), (_shaped_like(dgx, like),), given(dgw, dgb) if wanted.weights else ()


def _as_images(x: Tensor) -> Tensor:
    """Vectors as images of one pixel."""
    return x[..., None, None] if x.ndim == 4 else x


def _shaped_like(x: Tensor, like: Tensor) -> Tensor:
    return x[..., 0, 0] if like.ndim == 4 else x


@dataclass(frozen=True)
class FirstBlock:
    """A network's first convolution, of 1 to 3 channels, with the norm, activation and pooling behind it.

    Attributes:
        convolution: 3x3, of stride 1.
        behind: instance norm or none, activation, pooling.
    """

    convolution: Convolution
    behind: NormActPool
    buffers: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the convolution's and the norm's."""
        return (*self.convolution.weights, *self.behind.weights)

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "padding": self.convolution.padding,
            "activation": self.behind.activation,
            "pooling": self.behind.pooling,
            "eps": self.behind.eps,
            "precision": self.convolution.precision,
        }

    def _four(self, own: Own, like: Tensor) -> tuple[Tensor | None, ...]:
        """Weight, bias, and the norm's."""
        count = len(self.convolution.weights)
        return (*pair(own[:count], like), *(own[count:] or (None, None)))

    def _present(self, four: tuple[Tensor, ...]) -> Own:
        """Gradients of the weights that there are."""
        convolution = four[: len(self.convolution.weights)]
        return (*convolution, *(four[2:4] if self.behind.weights else ()))

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        return kernels.first_block(xs[0], *self._four(own, xs[0]), **self._settings), xs  # type: ignore[arg-type]

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""
        *four, gx = kernels.first_block_backward(
            gy,
            kept[0],
            *self._four(own, gy),  # type: ignore[arg-type]
            inputs=wanted.inputs,
            **self._settings,
        )
        return (gx if wanted.inputs else None,), self._present(tuple(four)) if wanted.weights else ()

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        y, dy = kernels.dual_first_block(xs[0], *self._paired(own, along, xs[0]), **self._settings)  # type: ignore[arg-type]
        return y, dy, xs

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""
        found = kernels.dual_first_block_backward(
            gy,
            dgy,
            kept[0],
            *self._paired(own, along, gy),  # type: ignore[arg-type]
            inputs=wanted.inputs,
            value=False,
            **self._settings,
        )
        dgx = found[9] if wanted.inputs else None
        return (None,), (dgx,), self._present(found[1:8:2]) if wanted.weights else ()

    def _paired(self, own: Own, along: Own, like: Tensor) -> tuple[Tensor | None, ...]:
        """Each weight followed by its tangent."""
        return tuple(one for pair in zip(self._four(own, like), self._four(along, like), strict=True) for one in pair)
