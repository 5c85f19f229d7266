"""Layers of a few plain operations: frozen batch norm, average pooling of any window, flattening, addition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdistill.derivatives.dual.layer import Cotangents, Kept, Own, Wanted

_PIXELS = (-2, -1)


class Straight(ABC):
    """A linear map without weights: tangents and cotangents go the same way as values."""

    weights: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    @abstractmethod
    def apply(self, *xs: Tensor) -> Tensor:
        """The map."""

    @abstractmethod
    def pull(self, shape: torch.Size, gy: Tensor) -> tuple[Tensor, ...]:
        """Its transpose, for inputs of a shape."""

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        return self.apply(*xs), (xs[0].shape,)

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs."""
        return self.pull(kept[0], gy), ()

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        tangents = [torch.zeros_like(x) if dx is None else dx for x, dx in zip(xs, dxs, strict=True)]
        moving = any(dx is not None for dx in dxs)
        return self.apply(*xs), self.apply(*tangents) if moving else None, (xs[0].shape,)

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs and their tangents."""
        return self.pull(kept[0], gy), self.pull(kept[0], dgy), ()


@dataclass(frozen=True)
class Flatten(Straight):
    """Images as vectors."""

    def apply(self, *xs: Tensor) -> Tensor:
        """The map, always by a copy: whether a view will do is a matter of layout, and predictions must not be."""
        vectors = xs[0].new_empty(*xs[0].shape[:3], xs[0].shape[3:].numel())
        vectors.view(xs[0].shape).copy_(xs[0])
        return vectors

    def pull(self, shape: torch.Size, gy: Tensor) -> tuple[Tensor, ...]:
        """Its transpose."""
        return (gy.reshape(*gy.shape[:3], *shape[3:]),)


@dataclass(frozen=True)
class Add(Straight):
    """The sum of two inputs of one shape."""

    def apply(self, *xs: Tensor) -> Tensor:
        """The map."""
        return xs[0] + xs[1]

    def pull(self, shape: torch.Size, gy: Tensor) -> tuple[Tensor, ...]:
        """Its transpose."""
        return gy, gy


@dataclass(frozen=True)
class AveragePool(Straight):
    """Means over windows without padding.

    Attributes:
        window: height and width, or None for the whole map.
        stride: of the windows.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def _sizes(self, shape: torch.Size) -> tuple[list[int], list[int]]:
        window = list(shape[-2:] if self.window is None else self.window)
        return window, window if self.stride is None else list(self.stride)

    def apply(self, *xs: Tensor) -> Tensor:
        """The map."""
        window, stride = self._sizes(xs[0].shape)
        pooled = torch.nn.functional.avg_pool2d(xs[0].flatten(0, 2), window, stride)
        maps: Tensor = pooled.unflatten(0, xs[0].shape[:3])
        return maps

    def pull(self, shape: torch.Size, gy: Tensor) -> tuple[Tensor, ...]:
        """Its transpose."""
        lead, (window, stride) = gy.shape[:3], self._sizes(shape)
        like = gy.new_empty(1).expand(lead.numel(), *shape[3:])
        back: Callable[..., Tensor] = torch.ops.aten.avg_pool2d_backward
        pulled = back(gy.flatten(0, 2), like, window, stride, [0, 0], False, True, None)
        return (pulled.unflatten(0, lead),)


@dataclass(frozen=True)
class FrozenNorm:
    """Batch norm by running statistics: an affine map of every channel.

    Attributes:
        weights: names of weight and bias, or none.
        buffers: names of running mean and variance.
        eps: added to the variance.
    """

    weights: tuple[str, ...]
    buffers: tuple[str, ...]
    eps: float

    def _parts(self, own: Own) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Running mean and 1/std, weight and bias, all ``[S, 1, 1, C, 1, 1]``."""
        mean, variance = own[-2:]
        weight, bias = own[:2] if self.weights else (None, None)
        scale = (variance + self.eps).rsqrt()
        return (_wide(mean), _wide(scale), *(None if one is None else _wide(one) for one in (weight, bias)))  # type: ignore[return-value]

    def forward(self, own: Own, *xs: Tensor) -> tuple[Tensor, Kept]:
        """Output and what is kept."""
        mean, scale, weight, bias = self._parts(own)
        xhat = (xs[0].to(mean.dtype) - mean) * scale
        y = xhat if weight is None or bias is None else torch.addcmul(bias, xhat, weight)
        return y.to(xs[0].dtype), (xhat,)

    def backward(self, own: Own, kept: Kept, gy: Tensor, wanted: Wanted) -> tuple[Cotangents, Own]:
        """Cotangents of the inputs and gradients of the weights."""
        _, scale, weight, _ = self._parts(own)
        wide = gy.to(scale.dtype)
        gx = wide * (scale if weight is None else scale * weight)
        return (gx.to(gy.dtype),), (_sums(wide * kept[0]), _sums(wide)) if wanted.weights and self.weights else ()

    def dual_forward(
        self, own: Own, along: Own, xs: tuple[Tensor, ...], dxs: Cotangents
    ) -> tuple[Tensor, Tensor | None, Kept]:
        """Output, its tangent and what is kept."""
        _, scale, weight, _ = self._parts(own)
        y, (xhat,) = self.forward(own, *xs)
        dxhat = torch.zeros_like(xhat) if dxs[0] is None else dxs[0].to(scale.dtype) * scale
        dy = dxhat
        if weight is not None:
            dy = torch.addcmul(_wide(along[1]), xhat, _wide(along[0])).addcmul_(dxhat, weight)
        return y, dy.to(y.dtype), (xhat, dxhat)

    def dual_backward(
        self, own: Own, along: Own, kept: Kept, gy: Tensor, dgy: Tensor, wanted: Wanted
    ) -> tuple[Cotangents, Cotangents, Own]:
        """Cotangents of the inputs, their tangents, and tangents of the weights' gradients."""
        (xhat, dxhat), (_, scale, weight, _) = kept, self._parts(own)
        dtype, gy, dgy = gy.dtype, gy.to(scale.dtype), dgy.to(scale.dtype)
        if weight is None:
            return ((gy * scale).to(dtype),), ((dgy * scale).to(dtype),), ()
        slope = scale * weight
        dgx = (dgy * slope).addcmul_(gy, scale * _wide(along[0]))
        found = (_sums((dgy * xhat).addcmul_(gy, dxhat)), _sums(dgy)) if wanted.weights else ()
        return ((gy * slope).to(dtype),), (dgx.to(dtype),), found


def _wide(vector: Tensor) -> Tensor:
    """``[S, C]`` or ``[S, G, C]`` against ``[S, G, n, C, H, W]``."""
    groups = vector[:, None] if vector.ndim == 2 else vector
    return groups[:, :, None, :, None, None]


def _sums(images: Tensor) -> Tensor:
    """Of every (student, group) and channel."""
    return images.sum((2, *_PIXELS))
