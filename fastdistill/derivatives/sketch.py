"""A `Functional` that counts instead of computing.

A program that loops over (student, group) pairs and pieces of images is as long as it is repetitive: 100 classes of 256
images take 3,000 rounds. One round is counted in full, and what the others leave behind is added up, which gives the
same peak as counting every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fastdistill.derivatives.functional import _STATE, WANTED, Functional, Gradients, Parameters, Products, _Parts
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.derivatives.plan import Batching, Path

_Shapes = dict[str, tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class _Part:
    """Some students and groups of a call."""

    weights: Tensor
    buffers: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    vector: Tensor | None

    def first(self, students: int, groups: int) -> _Part:
        """The first of them."""
        own = self.images.ndim == 6
        own_labels = self.labels.ndim == (4 if self.labels.is_floating_point() else 3)
        return _Part(
            self.weights[:students],
            {name: tensor[:students] for name, tensor in self.buffers.items()},
            self.images[:students, :groups] if own else self.images[:groups],
            self.labels[:students, :groups] if own_labels else self.labels[:groups],
            None if self.vector is None else self.vector[:students, :groups],
        )


class Sketch(Functional):
    """A `Functional` that takes meta tensors and enters into a ledger what its calls would hold.

    It runs one (student, group) pair of a loop, or one program of a vmapped batch, and one piece of images of a pair;
    then it enters what the last of them finds piled up, and what joining them all takes.

    Args:
        module: as for `Functional`.
        batching: as for `Functional`.
        ledger: to be entered by whoever calls.
    """

    def __init__(self, module: nn.Module, batching: Batching, ledger: Ledger) -> None:
        super().__init__(module, batching)
        self._ledger = ledger
        self._found: dict[Any, tuple[Footprint, _Shapes]] = {}

    def value_and_gradient(
        self,
        weights: Tensor,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        training: bool = False,
        of_buffers: bool = False,
    ) -> Gradients:
        """Loss, gradient and buffers without values; see `Functional.value_and_gradient`."""
        self._check(weights, images, labels)

        def run(part: _Part) -> dict[str, Tensor]:
            of = super(Sketch, self).value_and_gradient
            found = of(part.weights, part.buffers, part.images, part.labels, training=training, of_buffers=of_buffers)
            slopes = {f"{_STATE}{name}": slope for name, slope in found.of_buffers.items()}
            own = found.buffers if training else {}
            return {"loss": found.loss, "gradient": found.gradient, **slopes, **own}

        whole = _Part(weights, dict(buffers), images, labels, None)
        made = self._units(("gradient", training, of_buffers), run, whole)
        return Gradients(
            loss=made["loss"],
            gradient=made["gradient"],
            buffers={name: made.get(name, tensor) for name, tensor in buffers.items()},
            of_buffers={name: made[f"{_STATE}{name}"] for name in buffers} if of_buffers else {},
        )

    def products(
        self,
        weights: Tensor,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        vector: Tensor,
        *,
        wanted: tuple[str, ...] = WANTED,
        training: bool = False,
    ) -> Products:
        """Second-order products without values; see `Functional.products`."""
        self._check(weights, images, labels)

        def run(part: _Part) -> dict[str, Tensor]:
            assert part.vector is not None
            of = super(Sketch, self).products
            found = of(
                part.weights, part.buffers, part.images, part.labels, part.vector, wanted=wanted, training=training
            )
            entries = {name: getattr(found, name) for name in ("loss_tangent", *WANTED)}
            return {name: tensor for name, tensor in entries.items() if tensor is not None}

        whole = _Part(weights, dict(buffers), images, labels, vector)
        made = self._units(("products", wanted, training), run, whole)
        return Products(loss_tangent=made["loss_tangent"], **{name: made.get(name) for name in WANTED})

    def pull_buffers(
        self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor, cotangent: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of weights and images without values; see `Functional.pull_buffers`."""
        labels = torch.zeros((), dtype=torch.int64, device=images.device).expand(images.shape[:-3])
        self._check(weights, images, labels)

        def run(part: _Part) -> dict[str, Tensor]:
            along = {name: tensor[: len(part.weights)] for name, tensor in cotangent.items()}
            found = super(Sketch, self).pull_buffers(part.weights, part.buffers, part.images, along)
            return {name: tensor.unsqueeze(1) for name, tensor in zip(("weights", "images"), found, strict=True)}

        made = self._units("buffers", run, _Part(weights, dict(buffers), images, labels, None))
        return made["weights"][:, 0], made["images"][:, 0]

    def logits(self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits without values; see `Functional.logits`."""
        students, count, loop = weights.shape[0], images.shape[-4], self.batching.path is Path.LOOP
        few = 1 if loop else min(self.batching.students, students)
        piece = (images if images.ndim == 4 else images[:few]).narrow(-4, 0, min(self.batching.piece, count))
        state = {name: tensor[:few] for name, tensor in buffers.items()}
        footprint, shapes = self._once(
            ("logits", few, piece.shape), lambda: {"logits": super(Sketch, self).logits(weights[:few], state, piece)}
        )
        row, dtype = shapes["logits"]
        pieces = Fraction(students * count, few * piece.shape[-4])
        footprint = replace(footprint, flops=int(footprint.flops * pieces))
        rows = Footprint.of_blocks([students * count * row[-1] * dtype.itemsize])
        self._ledger.pass_through(footprint.above(rows))
        logits = weights.new_empty(students, count, row[-1], dtype=dtype)
        self._ledger.pass_through(rows)
        return logits

    def _units(self, kind: object, run: Callable[[_Part], dict[str, Tensor]], whole: _Part) -> dict[str, Tensor]:
        """The joined results of all pairs or programs, of which one (and a smaller last one) is run."""
        students, groups = whole.weights.shape[0], whole.images.shape[-5]
        loop = self.batching.path is Path.LOOP
        width = 1 if loop else min(self.batching.students, students)
        units = [width] * (students * groups if loop else students // width)
        units += [students % width] * (students % width > 0)
        piled = Footprint()
        made: dict[str, Tensor] = {}
        for size in dict.fromkeys(units):  # in order, each size once
            part = whole.first(size, 1 if loop else groups)
            footprint, shapes = self._once((kind, size, part.images.shape, part.labels.shape), lambda: run(part))  # noqa: B023
            footprint = replace(footprint, flops=footprint.flops * units.count(size))
            result = Footprint.of_blocks(prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
            self._ledger.pass_through(footprint.above(piled.above(result.times(units.count(size) - 1))))
            piled = piled.above(result.times(units.count(size)))
        for name, (shape, dtype) in shapes.items():
            lead = (students,) if name in whole.buffers else (students, groups)
            made[name] = whole.weights.new_empty(*lead, *shape[len(lead) :], dtype=dtype)
        if whole.vector is not None:  # products own copies of their unit's weights and vector
            each = whole.weights.itemsize * units[-1]
            sizes = [each * prod(shape) for shape in self.layout.shapes.values()]
            piled = piled.above(Footprint.of_blocks(sizes)).above(
                Footprint.of_blocks(size * (1 if loop else groups) for size in sizes)
            )
        self._ledger.pass_through(piled)
        return made

    def _pairs(self, one: Callable[..., _Parts], *inputs: Any, **options: Any) -> _Parts:
        if self.batching.path is Path.VMAP:
            return super()._pairs(one, *inputs, **options)
        found: dict[Any, tuple[Footprint, _Shapes]] = {}

        def piece(parameters: Parameters, state: Mapping[str, Tensor], images: Tensor, *rest: Any) -> _Parts:
            def run() -> dict[str, Tensor]:
                parts = one(parameters, state, images, *rest)
                return {f"{field}/{name}": t for field in parts._fields for name, t in getattr(parts, field).items()}

            if images.shape not in found:
                found[images.shape] = self._count(run)
            footprint, shapes = found[images.shape]
            self._ledger.pass_through(footprint)
            entries: dict[str, dict[str, Tensor]] = {field: {} for field in _Parts._fields}
            for path, (shape, dtype) in shapes.items():
                field, _, name = path.partition("/")
                entries[field][name] = images.new_empty(shape, dtype=dtype)
            return _Parts(**entries)

        return super()._pairs(piece, *inputs, **options)

    def _once(self, key: object, run: Callable[[], dict[str, Tensor]]) -> tuple[Footprint, _Shapes]:
        if key not in self._found:
            self._found[key] = self._count(run)
        return self._found[key]

    def _count(self, run: Callable[[], dict[str, Tensor]]) -> tuple[Footprint, _Shapes]:
        """Footprint and result shapes of a program, in a ledger of its own."""
        outer, self._ledger = self._ledger, Ledger()
        before = outer.flops  # it sees the program's operators too
        try:
            with self._ledger:
                result = run()
                return self._ledger.footprint, {name: (tensor.shape, tensor.dtype) for name, tensor in result.items()}
        finally:
            self._ledger, outer.flops = outer, before
