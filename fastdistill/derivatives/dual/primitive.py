"""The primitive by dual layers: for students that `graph.read` can read, the same interface as `Functional`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdistill.derivatives.dual.program import Program
from fastdistill.derivatives.functional import WANTED, Functional, Gradients, Products
from fastdistill.derivatives.plan import Batching

# that a pass is compiled for: first and last pieces of whole and last batches, of whole and last chunks
_SIZES = 64


class Piece(NamedTuple):
    """Students, groups and images that are run together, and the images' share of their pair's."""

    students: slice
    groups: slice
    images: slice
    share: float

    @property
    def pairs(self) -> tuple[slice, slice]:
        """Where its (student, group) pairs are."""
        return self.students, self.groups

    @property
    def size(self) -> tuple[int, int, int, bool]:
        """Students, groups and images, and whether these are the first of their pairs."""
        spans = (self.students, self.groups, self.images)
        students, groups, images = (span.stop - span.start for span in spans)
        return students, groups, images, not self.images.start


class Dual(Functional):
    """The primitive for one architecture made of known layers, under one batching.

    Passes in train mode of students with buffers, whose statistics are the batch's, are `Functional`'s.

    Args:
        module: as for `Functional`.
        batching: students, groups and images of a pair that are run together.

    Raises:
        Unsupported: for a student with a part that there is no layer for.
    """

    def __init__(self, module: nn.Module, batching: Batching) -> None:
        super().__init__(module, batching)
        self._program = program = Program(module, precision=batching.precision, inlined=batching.compiled)
        self._gradient, self._product, self._logits = program.gradient, program.product, program.logits
        if batching.compiled:
            self._gradient, self._product, self._logits = (
                _compiled(whole) for whole in (program.gradient, program.product, program.logits)
            )

    def logits(self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits ``[S, n, C]`` in eval mode of images ``[S, n, D, H, W]`` or, shared, ``[n, D, H, W]``."""
        paired = images[None, None] if images.ndim == 4 else images[:, None]
        students, count = weights.shape[0], images.shape[-4]
        logits = weights.new_empty(students, 1, count, self._program.classes)
        for piece in self._pieces(students, 1, count):
            own, state = weights[piece.students], _some(buffers, piece.students)
            logits[(*piece.pairs, piece.images)] = self._logits(own, state, _of(paired, piece))
        return logits[:, 0]

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
        """Loss and gradient of every (student, group) pair; see `Functional.value_and_gradient`."""
        if of_buffers or (training and buffers):
            return super().value_and_gradient(
                weights, buffers, images, labels, training=training, of_buffers=of_buffers
            )
        self._check(weights, images, labels)
        images, labels = _paired(images, labels)
        students, groups, count = weights.shape[0], images.shape[1], images.shape[2]
        gradient, loss = weights.new_empty(students, groups, self.layout.size), weights.new_empty(students, groups)
        for piece in self._pieces(students, groups, count):
            own, state = weights[piece.students], _some(buffers, piece.students)
            value, slope = self._gradient(own, state, _of(images, piece), _of(labels, piece), piece.share)
            _put(loss, piece, value)
            _put(gradient, piece, slope)
        return Gradients(loss=loss, gradient=gradient, buffers=dict(buffers))

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
        """Second-order products of every (student, group) pair along ``vector``; see `Functional.products`."""
        if training and buffers:
            return super().products(weights, buffers, images, labels, vector, wanted=wanted, training=training)
        names = self._wanted(weights, images, labels, vector, wanted)
        images, labels = _paired(images, labels)
        students, groups, count = weights.shape[0], images.shape[1], images.shape[2]
        product = weights.new_empty(students, groups, self.layout.size) if "weights" in names else None
        of_images = weights.new_empty(students, groups, *images.shape[2:]) if "images" in names else None
        of_labels = weights.new_empty(students, groups, *labels.shape[2:]) if "labels" in names else None
        loss_tangent = weights.new_empty(students, groups)
        for piece in self._pieces(students, groups, count):
            found = self._product(
                weights[piece.students],
                vector[piece.pairs],
                _some(buffers, piece.students),
                _of(images, piece),
                _of(labels, piece),
                piece.share,
                of_weights=product is not None,
                of_images=of_images is not None,
            )
            _put(loss_tangent, piece, found.loss_tangent)
            if product is not None and found.weights is not None:
                _put(product, piece, found.weights)
            for whole, part in ((of_images, found.images), (of_labels, found.labels)):
                if whole is not None and part is not None:
                    whole[(*piece.pairs, piece.images)] = part
        return Products(loss_tangent=loss_tangent, weights=product, images=of_images, labels=of_labels)

    def _pieces(self, students: int, groups: int, count: int) -> Iterator[Piece]:
        """All pairs and images, those of a pair in order."""
        batching = self.batching
        for student in range(0, students, batching.students):
            for group in range(0, groups, batching.groups):
                for image in range(0, max(count, 1), batching.piece):
                    images = slice(image, min(image + batching.piece, count))
                    yield Piece(
                        slice(student, min(student + batching.students, students)),
                        slice(group, min(group + batching.groups, groups)),
                        images,
                        (images.stop - images.start) / max(count, 1),
                    )


def _compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """A program's pass, compiled whole for each size that it meets.

    The compiler keeps what it has made, up to a limit, with the code object of a function, which all programs share:
    each gets a copy of its own.
    """
    whole = method.__func__  # type: ignore[attr-defined]
    own = FunctionType(whole.__code__.replace(), whole.__globals__, whole.__name__, whole.__defaults__)
    own.__kwdefaults__ = whole.__kwdefaults__
    compiled: Callable[..., Any] = torch.compile(MethodType(own, method.__self__), fullgraph=True, dynamic=False)  # type: ignore[attr-defined]

    def run(*arguments: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=_SIZES):
            return compiled(*arguments, **options)

    return run


def _paired(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both with axes of students and groups, of 1 where students share them."""
    axes = 4 if labels.is_floating_point() else 3
    return images if images.ndim == 6 else images[None], labels if labels.ndim == axes else labels[None]


def _of(tensor: Tensor, piece: Piece) -> Tensor:
    """A piece of images or labels ``[S or 1, G, n, ...]``, shared ones expanded."""
    some = tensor[:, piece.groups, piece.images]
    students = piece.students.stop - piece.students.start
    return some.expand(students, *some.shape[1:]) if tensor.shape[0] == 1 else some[piece.students]


def _some(tensors: Mapping[str, Tensor], students: slice) -> dict[str, Tensor]:
    return {name: tensor[students] for name, tensor in tensors.items()}


def _put(whole: Tensor, piece: Piece, part: Tensor) -> None:
    """Adds a piece's share, or begins with it."""
    target = whole[piece.pairs]
    if piece.images.start:
        target.add_(part)
    else:
        target.copy_(part)
