"""Layout of one student's parameters in a flat vector, with named views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

_ALIGNMENT = 32  # elements: 128 bytes of float32, one cache line pair and one GPU transaction


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of the tensors in a flat parameter vector ``[..., P]``.

    Every tensor starts at a multiple of 128 bytes (float32); the gaps are padding and always zero.

    Attributes:
        shapes: parameter name to shape, in the module's order.
        offsets: parameter name to first element.
        size: ``P``, padding included.
        count: number of parameters, padding excluded.
    """

    shapes: Mapping[str, tuple[int, ...]]
    offsets: Mapping[str, int]
    size: int
    count: int

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module's parameters; the module may live on the meta device."""
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        offsets: dict[str, int] = {}
        size = 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return cls(shapes, offsets, size, sum(prod(shape) for shape in shapes.values()))

    @cached_property
    def _splits(self) -> tuple[list[int], list[tuple[str, tuple[int, ...], int]]]:
        ends = [*list(self.offsets.values())[1:], self.size]
        sizes = [end - start for start, end in zip(self.offsets.values(), ends, strict=True)]
        return sizes, [(name, shape, prod(shape)) for name, shape in self.shapes.items()]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views ``[..., *shape]`` of a flat tensor ``[..., P]``; nothing is copied.

        Raises:
            ValueError: when the last axis is not ``P`` long.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(
                f"expected a flat parameter tensor [..., {self.size}], got {tuple(flat.shape)}: use the layout of "
                "the student that the tensor belongs to"
            )
        sizes, tensors = self._splits
        parts = flat.split(sizes, dim=-1)
        return {
            name: part[..., :count].view(*flat.shape[:-1], *shape)
            for part, (name, shape, count) in zip(parts, tensors, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The flat tensor ``[..., P]`` of named tensors ``[..., *shape]``, with zeros in the padding."""
        sizes, entries = self._splits
        name, shape = next(iter(self.shapes.items()))
        first = tensors[name]
        lead = first.shape[: first.ndim - len(shape)]
        parts: list[Tensor] = []
        for size, (name, _, count) in zip(sizes, entries, strict=True):
            parts.append(tensors[name].reshape(*lead, count))
            if size > count:
                parts.append(first.new_zeros(*lead, size - count))
        return torch.cat(parts, dim=-1)

    def segments(self, names: Iterable[str]) -> list[slice]:
        """Where the named tensors lie in the flat vector, padding excluded."""
        return [slice(self.offsets[name], self.offsets[name] + prod(self.shapes[name])) for name in names]
