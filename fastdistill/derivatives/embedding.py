"""Mean features of groups of images in networks that nobody trains, and the way back from them to the images.

With ``φ`` a student's features (the input of its last layer), ``μ = Σ_i φ(x_i) / n`` of every (student, group) pair.
All groups of a student are one batch, so that batch norm sees all classes, as distribution matching wants (Zhao and
Bilen, "Dataset condensation with distribution matching", WACV 2023). Nothing here is of second order: the derivative of
a loss ``L(μ)`` in the images is plain reverse mode along ``∂L/∂μ``.

Shapes: ``θ [S, P]``, images ``[S, G, n, D, H, W]`` or, shared by all students, ``[G, n, D, H, W]``; ``μ [S, G, F]``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path

State = dict[str, Tensor]


class Embedding:
    """The features of one architecture under one batching.

    Args:
        module: a network with ``features``, which maps ``[n, D, H, W]`` to ``[n, F]``; may be on the meta device.
        batching: how students are run; its piece counts the images of all groups together.

    Raises:
        ValueError: for a network without features.
    """

    def __init__(self, module: nn.Module, batching: Batching) -> None:
        if not hasattr(module, "features"):
            raise ValueError(
                f"expected a student with features(images) -> [n, F], got {type(module).__name__}: add that method"
            )
        self.layout, self.batching = Layout.of(module), batching
        self._module = _Features(copy.deepcopy(module).train())
        self._statistics = {name for name, _ in self._module.named_buffers()}

    def means(self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """``μ [S, G, F]`` in train mode; buffers ``[S, ...]`` are never modified.

        Raises:
            ValueError: for weights or images of other axes.
        """
        self._check(weights, images)
        rows = []
        for state, own in self._students(weights, buffers, images):
            parts = [mean @ self._features(state, piece) for piece, mean in self._pieces(own, images.shape[-5])]
            rows.append(torch.stack(parts).sum(0))
        return torch.cat(rows)

    def pull(self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor, cotangent: Tensor) -> Tensor:
        """``Σ_gf cotangent_gf · ∂μ_gf/∂x`` of every student, ``[S, G, n, D, H, W]``, along a cotangent ``[S, G, F]``.

        Raises:
            ValueError: for weights or images of other axes, or a cotangent of another shape.
        """
        self._check(weights, images)
        groups = images.shape[-5]
        if cotangent.ndim != 3 or cotangent.shape[:2] != (weights.shape[0], groups):
            raise ValueError(
                f"expected a cotangent [{weights.shape[0]}, {groups}, F], got {tuple(cotangent.shape)}: give every "
                "(student, group) pair a row"
            )
        rows, first = [], 0
        for state, own in self._students(weights, buffers, images):
            students = next(iter(state.values())).shape[0]
            along = cotangent[first : first + students]
            first += students
            pulled = []
            for piece, mean in self._pieces(own, groups):
                alone = piece if piece.ndim == 5 else piece.expand(students, *piece.shape)
                back: Callable[[Tensor], tuple[Tensor]] = vjp(partial(self._features, state), alone)[1]
                pulled.append(back(mean.mT @ along)[0])
            rows.append(torch.cat(pulled, dim=1).unflatten(1, (groups, -1)))
        return torch.cat(rows)

    def _students(
        self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor
    ) -> Iterator[tuple[State, Tensor]]:
        """Some students at a time, with their parameters, buffers and images, all groups one batch."""
        parameters = self.layout.views(weights.detach())
        flat = images.detach().flatten(-5, -4)
        width = 1 if self.batching.path is Path.LOOP else self.batching.students
        for start in range(0, weights.shape[0], width):
            some = slice(start, start + width)
            state = {f"student.{name}": tensor[some] for name, tensor in {**parameters, **buffers}.items()}
            yield state, flat[some] if flat.ndim == 5 else flat

    def _pieces(self, images: Tensor, groups: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of a batch, each with the matrix ``[G, piece]`` that takes its features to its part of the means."""
        total = images.shape[-4]
        means = images.new_zeros(groups, groups, total // groups)
        means.diagonal().fill_(groups / total)
        # statistics of a batch belong to the whole of it
        piece = total if self._statistics else min(self.batching.piece, total)
        yield from zip(images.split(piece, dim=-4), means.flatten(1).split(piece, dim=1), strict=True)

    def _features(self, state: State, images: Tensor) -> Tensor:
        """Features ``[S, n, F]`` of images ``[S, n, D, H, W]`` or ``[n, D, H, W]``."""

        def one(state: State, images: Tensor) -> Tensor:
            # a module in train mode writes its buffers in place, so it gets copies of them
            own = {name: value.clone() if name in self._statistics else value for name, value in state.items()}
            found: Tensor = functional_call(self._module, own, (images,))
            return found

        own = images.ndim == 5
        if next(iter(state.values())).shape[0] == 1:  # a program of one student needs no batching rules
            alone = {name: tensor[0] for name, tensor in state.items()}
            return one(alone, images[0] if own else images)[None]
        found: Tensor = vmap(one, in_dims=(0, 0 if own else None))(state, images)
        return found

    def _check(self, weights: Tensor, images: Tensor) -> None:
        fits = images.ndim == 5 or (images.ndim == 6 and images.shape[0] == weights.shape[0])
        if weights.ndim != 2 or weights.shape[1] != self.layout.size or not fits:
            raise ValueError(
                f"expected weights [S, {self.layout.size}] and images [S, G, n, D, H, W] or [G, n, D, H, W], got "
                f"{tuple(weights.shape)} and {tuple(images.shape)}: add the missing axes"
            )


class _Features(nn.Module):
    """A student up to its last layer."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.student.features(images)  # type: ignore[operator]
        return found
