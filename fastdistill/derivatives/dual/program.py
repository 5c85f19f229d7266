"""A student as a program of dual layers: loss, gradient and second-order products without any autograd.

A program is run on one piece of images of some students and groups. What is not asked for is not computed: weight
gradients in a pass that wants ``K v`` alone, values of cotangents below which no weight lies, the cotangent of images
nobody asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdistill.derivatives.dual.graph import Step, read
from fastdistill.derivatives.dual.layer import Cotangents, Kept, Own, Wanted, operators
from fastdistill.derivatives.layout import Layout

Named = Mapping[str, Tensor]


class Product(NamedTuple):
    """Of one piece: the loss's tangent, and what was wanted of ``H v``, ``K v`` and ``k v``."""

    loss_tangent: Tensor
    weights: Tensor | None
    images: Tensor | None
    labels: Tensor | None


class Program:
    """The steps of a student, and which of their values move with its weights.

    Args:
        module: the student, in whatever mode; frozen statistics are used.
        precision: of `plan.PRECISIONS`; ``float32`` leaves what it is given as it is.
        first_block: compute a first convolution of few channels together with what follows it.
        inlined: for compilation for a CPU.

    Raises:
        Unsupported: for a student with a part that there is no layer for.
    """

    def __init__(
        self, module: nn.Module, *, precision: str = "float32", first_block: bool = False, inlined: bool = False
    ) -> None:
        products = "tf32" if precision == "tf32" else "ieee"
        self.steps: list[Step] = read(module, precision=products, first_block=first_block, inlined=inlined)
        self._narrow = precision == "bfloat16"
        self.layout = Layout.of(module)
        self.layout.views(torch.empty(self.layout.size, device="meta"))  # what it computes once, outside of a compiler
        self._operators = operators(inlined)
        self._moving = [False] * (self.steps[-1].output + 1)
        for step in self.steps:
            self._moving[step.output] = bool(step.layer.weights) or any(self._moving[i] for i in step.inputs)
        last = {number: place for place, step in enumerate(self.steps) for number in step.inputs}
        # by step, the values that no later one reads
        self._dead = [[one for one, reader in last.items() if reader == place] for place in range(len(self.steps))]

    @property
    def classes(self) -> int:
        """``C``, by the last layer's weight."""
        return self.layout.shapes[self.steps[-1].layer.weights[0]][0]

    def logits(self, flat: Tensor, buffers: Named, images: Tensor) -> Tensor:
        """Logits ``[S, G, n, C]`` of students ``[S, P]`` and images ``[S, G, n, D, H, W]``, whose S or G may be 1."""
        weights = self.layout.views(flat)
        values: dict[int, Tensor] = {0: self._seen(images)}
        for place, step in enumerate(self.steps):
            inputs = (values[i] for i in step.inputs)
            values[step.output], _ = step.layer.forward(_own(step, weights, buffers), *inputs)
            for number in self._dead[place]:
                del values[number]
        return values[self.steps[-1].output].to(flat.dtype)

    def gradient(
        self, flat: Tensor, buffers: Named, images: Tensor, labels: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Loss ``[S, G]`` and its gradient ``[S, G, P]``.

        Args:
            flat: weights ``[S, P]``.
            buffers: name to ``[S, ...]``.
            images: ``[S, G, n, D, H, W]``; S or G may be 1.
            labels: classes ``[S, G, n]`` or rows ``[S, G, n, C]``; S or G may be 1.
            share: of this piece in the mean over images.
        """
        weights = self.layout.views(flat)
        logits, kept = self._forward(weights, buffers, images)
        loss, above = self._operators.softmax_xent(logits.to(flat.dtype), labels)
        cotangents: dict[int, Tensor] = {self.steps[-1].output: above.mul_(share).to(logits.dtype)}
        found: dict[str, Tensor] = {}
        for step in reversed(self.steps):
            if not self._moving[step.output]:
                continue
            wanted = Wanted(weights=True, inputs=any(self._moving[i] for i in step.inputs))
            below, slopes = step.layer.backward(
                _own(step, weights, buffers), kept.pop(), cotangents.pop(step.output), wanted
            )
            found.update(zip(step.layer.weights, slopes, strict=True))
            self._collect(cotangents, step, below)
        return loss.mul_(share), self.layout.flatten(found)

    def product(
        self,
        flat: Tensor,
        vector: Tensor,
        buffers: Named,
        images: Tensor,
        labels: Tensor,
        share: float,
        *,
        of_weights: bool,
        of_images: bool,
    ) -> Product:
        """Second-order products along a tangent of the weights.

        Args:
            flat: weights ``[S, P]``.
            vector: ``v [S, G, P]``.
            buffers: name to ``[S, ...]``.
            images: as `gradient` takes them.
            labels: the same; ``k v`` comes with rows.
            share: the same.
            of_weights: whether ``H v`` is wanted.
            of_images: whether ``K v`` is.
        """
        weights, along = self.layout.views(flat), self.layout.views(vector)
        values: dict[int, Tensor] = {0: self._seen(images)}
        tangents: dict[int, Tensor | None] = {0: None}
        kept: list[Kept] = []
        for step in self.steps:
            own, xs = _own(step, weights, buffers), tuple(values[i] for i in step.inputs)
            if self._moving[step.output]:
                dxs = tuple(tangents[i] for i in step.inputs)
                y, dy, some = step.layer.dual_forward(own, _along(step, along), xs, dxs)
            else:
                (y, some), dy = step.layer.forward(own, *xs), None
            values[step.output], tangents[step.output] = y, dy
            kept.append(some)
        last = self.steps[-1].output
        logits, dlogits = values[last], tangents[last]
        assert dlogits is not None
        wide = logits.to(flat.dtype), dlogits.to(flat.dtype)
        _, loss_tangent, above, dabove, of_labels = self._operators.dual_softmax_xent(*wide, labels)
        values.clear()
        tangents.clear()
        found: dict[str, Tensor] = {}
        cotangents, dcotangents = ({last: one.mul_(share).to(logits.dtype)} for one in (above, dabove))
        for step in reversed(self.steps) if of_weights or of_images else ():
            own, some, dgy = _own(step, weights, buffers), kept.pop(), dcotangents.pop(step.output, None)
            if dgy is None:
                continue
            inputs = [of_images or self._moving[i] for i in step.inputs]
            if not self._moving[step.output]:
                below, _ = step.layer.backward(own, some, dgy, Wanted(weights=False, inputs=any(inputs)))
                self._collect(dcotangents, step, below, inputs)
                continue
            wanted = Wanted(of_weights, any(inputs), values=any(self._moving[i] for i in step.inputs))
            gy = cotangents.pop(step.output)
            below, dbelow, slopes = step.layer.dual_backward(own, _along(step, along), some, gy, dgy, wanted)
            found.update(zip(step.layer.weights, slopes, strict=True) if of_weights else ())
            self._collect(cotangents, step, below)
            self._collect(dcotangents, step, dbelow, inputs)
        of_pixels = dcotangents.get(0)
        return Product(
            loss_tangent=loss_tangent.mul_(share),
            weights=self.layout.flatten(found) if of_weights else None,
            images=None if of_pixels is None else of_pixels.to(images.dtype),
            labels=None if of_labels is None else of_labels.mul_(share),
        )

    def _forward(self, weights: Named, buffers: Named, images: Tensor) -> tuple[Tensor, list[Kept]]:
        values: dict[int, Tensor] = {0: self._seen(images)}
        kept: list[Kept] = []
        for step in self.steps:
            inputs = (values[i] for i in step.inputs)
            values[step.output], some = step.layer.forward(_own(step, weights, buffers), *inputs)
            kept.append(some)
        return values[self.steps[-1].output], kept

    def _seen(self, images: Tensor) -> Tensor:
        """In the dtype of what is computed image by image; weights and sums over images keep theirs."""
        return images.to(torch.bfloat16) if self._narrow else images

    def _collect(
        self,
        cotangents: dict[int, Tensor],
        step: Step,
        below: Cotangents,
        wanted: list[bool] | None = None,
    ) -> None:
        """Adds a layer's cotangents to those of the values it read, where these go on."""
        wanted = [self._moving[i] for i in step.inputs] if wanted is None else wanted
        for number, cotangent, goes_on in zip(step.inputs, below, wanted, strict=True):
            if goes_on and cotangent is not None:
                cotangents[number] = cotangents[number] + cotangent if number in cotangents else cotangent


def _own(step: Step, weights: Named, buffers: Named) -> Own:
    layer = step.layer
    return (*(weights[name] for name in layer.weights), *(buffers[name] for name in layer.buffers))


def _along(step: Step, along: Named) -> Own:
    return tuple(along[name] for name in step.layer.weights)
