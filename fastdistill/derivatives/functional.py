"""The primitive by ``torch.func``: the reference, and the path for any ``nn.Module``.

Let ``L(θ, x, y)`` be the mean cross-entropy of one (student, group) pair and ``g = ∇θ L``. One forward-over-reverse
pass, the tangent of the gradient along ``v``, gives ``H v = ∇²θθ L · v``, ``K v = ∇x ⟨∇θ L, v⟩``,
``k v = ∇y ⟨∇θ L, v⟩`` and, free, the loss tangent ``⟨g, v⟩``. No graph of a graph is ever built.

Shapes: ``θ [S, P]``, images ``[S, G, n, D, H, W]`` or, shared by all students, ``[G, n, D, H, W]``; labels are class
indices ``[S, G, n]`` / ``[G, n]`` (int64) or rows of any sum ``[S, G, n, C]`` / ``[G, n, C]`` (soft labels); vectors
and gradients ``[S, G, P]``. Weights belong to a student, gradients to a (student, group) pair.

Buffers are frozen, or, in train mode, set anew by the batch: then the loss is a function of weights and images through
batch statistics too, and so is every derivative of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vjp, vmap

from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Path

Parameters = dict[str, Tensor]
Buffers = dict[str, Tensor]
WANTED = ("weights", "images", "labels")
_STATE = "buffers."  # before a buffer's name among sums


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Value and gradient of every (student, group) pair.

    Attributes:
        loss: ``[S, G]``.
        gradient: ``[S, G, P]``, padding zero.
        buffers: new values ``[S, ...]`` (the old ones where the forward pass does not change them).
        of_buffers: derivatives of the loss in the buffers ``[S, G, ...]``, where asked for.
    """

    loss: Tensor
    gradient: Tensor
    buffers: Buffers
    of_buffers: Buffers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Products:
    """Second-order products along ``v``; what was not asked for is None.

    Attributes:
        loss_tangent: ``⟨g, v⟩``, ``[S, G]``.
        weights: ``H v`` ``[S, G, P]``.
        images: ``K v``, shaped as the images with student and group axes ``[S, G, n, D, H, W]``.
        labels: ``k v`` ``[S, G, n, C]``.
    """

    loss_tangent: Tensor
    weights: Tensor | None
    images: Tensor | None
    labels: Tensor | None


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of ``logits [n, C]`` for class indices ``[n]`` or soft labels ``[n, C]`` of any row sum."""
    log_probability = torch.log_softmax(logits, dim=-1)
    if labels.is_floating_point():
        return -(labels * log_probability).sum()
    return -log_probability.gather(-1, labels[:, None]).sum()


class Functional:
    """The primitive for one architecture under one batching.

    Args:
        module: any module mapping ``[n, D, H, W]`` to logits ``[n, C]``; it may live on the meta device, since its
            parameters and buffers are always passed in.
        batching: how students are run, see `Batching`.
    """

    def __init__(self, module: nn.Module, batching: Batching) -> None:
        self.layout = Layout.of(module)
        self.batching = batching
        # two copies, because train/eval mode is state of a module and the primitive must have none
        self._modules = {training: copy.deepcopy(module).train(training) for training in (False, True)}

    def logits(self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits ``[S, n, C]`` in eval mode of images ``[S, n, D, H, W]`` or, shared, ``[n, D, H, W]``."""
        parameters, state = self.layout.views(weights), dict(buffers)
        shared = images.ndim == 4

        def one(parameters: Parameters, state: Buffers, images: Tensor) -> Tensor:
            return self._call(parameters, state, images, training=False)[0]

        split = images.split(min(self.batching.piece, images.shape[-4]), dim=-4)
        rows = []
        if self.batching.path is Path.VMAP:
            batched = vmap(one, in_dims=(0, 0, None if shared else 0))
            for start in range(0, weights.shape[0], self.batching.students):
                some = slice(start, start + self.batching.students)
                picked = (_pick(parameters, some), _pick(state, some))
                rows.append(torch.cat([batched(*picked, x if shared else x[some]) for x in split], dim=1))
            return torch.cat(rows)
        for student in range(weights.shape[0]):
            own = (_pick(parameters, student), _pick(state, student))
            rows.append(torch.cat([one(*own, x if shared else x[student]) for x in split]))
        return torch.stack(rows)

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
        """Loss and gradient of every (student, group) pair.

        Args:
            weights: ``[S, P]``.
            buffers: name to ``[S, ...]``; never modified.
            images: ``[S, G, n, D, H, W]`` or ``[G, n, D, H, W]``.
            labels: see the module's docstring.
            training: run the module in train mode (batch norm uses and updates batch statistics); needs ``G = 1``.
            of_buffers: differentiate in the buffers too, all of them floats; in eval mode.

        Raises:
            ValueError: for shapes that do not fit together, or ``training`` with several groups.
        """
        self._check(weights, images, labels)
        updating, count = self._updating(buffers, images, training), images.shape[-4]

        def one(parameters: Parameters, state: Buffers, images: Tensor, labels: Tensor) -> _Parts:
            def loss(parameters: Parameters, state: Buffers) -> tuple[Tensor, Buffers]:
                logits, new = self._call(parameters, state, images, training=training)
                return cross_entropy_sum(logits, labels) / count, new

            positions = (0, 1) if of_buffers else (0,)
            (gradient, *further), (value, new) = grad_and_value(loss, positions, has_aux=True)(parameters, state)
            sums = {"loss": value, "weights": self.layout.flatten(gradient)}
            for slopes in further:
                sums |= {f"{_STATE}{name}": slope for name, slope in slopes.items()}
            return _Parts(sums, {}, new if training else {})

        result = self._pairs(one, weights, buffers, images, labels, None, updating=updating)
        sums = result.sums
        return Gradients(
            loss=sums["loss"],
            gradient=sums["weights"],
            buffers={name: tensor[:, 0] for name, tensor in result.last.items()} if training else dict(buffers),
            of_buffers={name: sums[f"{_STATE}{name}"] for name in buffers} if of_buffers else {},
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
        """Second-order products of every (student, group) pair along ``vector``.

        Args:
            weights: ``[S, P]``.
            buffers: name to ``[S, ...]``; never modified.
            images: ``[S, G, n, D, H, W]`` or ``[G, n, D, H, W]``.
            labels: see the module's docstring; ``k v`` exists for soft labels only.
            vector: ``v`` ``[S, G, P]``.
            wanted: which of ``weights`` (``H v``), ``images`` (``K v``) and ``labels`` (``k v``) to compute.
            training: differentiate the loss of train mode, batch statistics included; needs ``G = 1``.

        Raises:
            ValueError: for shapes that do not fit together, ``labels`` wanted of class indices, or ``training`` with
                several groups.
        """
        names = self._wanted(weights, images, labels, vector, wanted)
        updating, count = self._updating(buffers, images, training), images.shape[-4]
        positions = tuple(WANTED.index(name) for name in names)

        def one(parameters: Parameters, state: Buffers, images: Tensor, labels: Tensor, vector: Parameters) -> _Parts:
            def loss(parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
                logits, _ = self._call(parameters, state, images, training=training)
                return cross_entropy_sum(logits, labels) / count

            def first(parameters: Parameters) -> tuple[tuple[Any, ...], Tensor]:
                return grad_and_value(loss, argnums=positions)(parameters, images, labels)

            tangents, value = jvp(first, (parameters,), (vector,))[1]
            found = dict(zip(names, tangents, strict=True))
            sums = {"loss": value}
            if "weights" in found:
                sums["weights"] = self.layout.flatten(found.pop("weights"))
            return _Parts(sums, found, {})

        along = self.layout.views(vector)
        result = self._pairs(one, weights, buffers, images, labels, along, updating=updating, dual=True)
        return Products(
            loss_tangent=result.sums["loss"],
            weights=result.sums.get("weights"),
            images=result.cats.get("images"),
            labels=result.cats.get("labels"),
        )

    def pull_buffers(
        self, weights: Tensor, buffers: Mapping[str, Tensor], images: Tensor, cotangent: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Takes cotangents of the values that train mode gives the buffers back to what these are made from.

        One reverse pass. A buffer whose new value is written without a graph, as `torch.nn.BatchNorm2d` does, has no
        derivative here.

        Args:
            weights: ``[S, P]``.
            buffers: name to ``[S, ...]``, all of them floats; never modified.
            images: one group ``[S, 1, n, D, H, W]`` or ``[1, n, D, H, W]``.
            cotangent: of every buffer, ``[S, ...]``.

        Returns:
            Cotangents of the weights ``[S, P]`` and of each student's images ``[S, n, D, H, W]``.

        Raises:
            ValueError: for shapes that do not fit together, or several groups.
        """
        # the pass has no labels, but the pairs are made for such: one number stands for all of them
        labels = torch.zeros((), dtype=torch.int64, device=images.device).expand(images.shape[:-3])
        self._check(weights, images, labels)
        updating = self._updating(buffers, images, True)

        def one(parameters: Parameters, state: Buffers, images: Tensor, labels: Tensor, along: Buffers) -> _Parts:
            def new(parameters: Parameters, images: Tensor) -> Buffers:
                return self._call(parameters, state, images, training=True)[1]

            of_weights, of_images = vjp(new, parameters, images)[1](along)
            return _Parts({"weights": self.layout.flatten(of_weights)}, {"images": of_images}, {})

        along = {name: tensor.unsqueeze(1) for name, tensor in cotangent.items()}
        result = self._pairs(one, weights, buffers, images, labels, along, updating=updating)
        return result.sums["weights"][:, 0], result.cats["images"][:, 0]

    def _wanted(
        self, weights: Tensor, images: Tensor, labels: Tensor, vector: Tensor, wanted: tuple[str, ...]
    ) -> tuple[str, ...]:
        """The products to compute, in the order of ``WANTED``, once everything fits."""
        self._check(weights, images, labels)
        unknown = [name for name in wanted if name not in WANTED]
        if unknown or not wanted:
            raise ValueError(f"expected some of {', '.join(WANTED)}, got {wanted}: name the products you need")
        if vector.shape != (weights.shape[0], images.shape[-5], self.layout.size):
            raise ValueError(
                f"expected a vector [{weights.shape[0]}, {images.shape[-5]}, {self.layout.size}], got "
                f"{tuple(vector.shape)}: one direction per (student, group) pair"
            )
        if "labels" in wanted and not labels.is_floating_point():
            if wanted != WANTED:
                raise ValueError("expected soft labels [..., n, C] for k v, got class indices: pass one-hot rows")
            wanted = ("weights", "images")  # the default asks for all that exists
        return tuple(name for name in WANTED if name in wanted)

    def _updating(self, buffers: Mapping[str, Tensor], images: Tensor, training: bool) -> bool:
        """Whether a pass gives buffers new values, of which a student has one."""
        groups = images.shape[-5]
        if training and buffers and groups != 1:
            raise ValueError(
                f"expected one group in train mode, where buffers have one new value per student, got {groups}: "
                "call once per group or freeze the buffers"
            )
        return training and bool(buffers)

    def _call(
        self, parameters: Parameters, buffers: Buffers, images: Tensor, *, training: bool
    ) -> tuple[Tensor, Buffers]:
        # a module in train mode writes its buffers in place, so it gets copies and the copies are the new values
        state = {name: tensor.clone() for name, tensor in buffers.items()} if training else buffers
        return functional_call(self._modules[training], {**parameters, **state}, (images,)), state

    def _check(self, weights: Tensor, images: Tensor, labels: Tensor) -> None:
        expected = images.shape[:-3]
        found = labels.shape[:-1] if labels.is_floating_point() else labels.shape
        shapes = f"weights {tuple(weights.shape)}, images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        if weights.ndim != 2 or weights.shape[1] != self.layout.size:
            raise ValueError(f"expected weights [S, {self.layout.size}], got {shapes}: flatten with the same layout")
        if images.ndim not in (5, 6) or (images.ndim == 6 and images.shape[0] != weights.shape[0]):
            raise ValueError(
                f"expected images [S, G, n, D, H, W] or [G, n, D, H, W], got {shapes}: add the missing axes"
            )
        if found not in (expected, expected[1:] if images.ndim == 6 else expected):
            raise ValueError(f"expected labels of the images' leading axes {tuple(expected)}, got {shapes}: align them")

    def _pairs(
        self,
        one: Callable[..., _Parts],
        weights: Tensor,
        buffers: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        vector: Parameters | None,
        *,
        updating: bool = False,
        dual: bool = False,
    ) -> _Parts:
        """Runs ``one`` for every (student, group) pair, in pieces of images, and joins the pieces."""
        students, groups, count = weights.shape[0], images.shape[-5], images.shape[-4]
        # buffers are shared by a student's groups, unless the pass updates them: then there is one group, and the batch
        # that its statistics belong to stays in one piece
        parameters, state = self.layout.views(weights), dict(buffers)
        soft = labels.is_floating_point()
        image_axis = 0 if images.ndim == 6 else None
        label_axis = 0 if labels.ndim == (4 if soft else 3) else None
        vectors = () if vector is None else (vector,)
        # forward mode makes zero tangents as large as the *storage* behind a view, so dual tensors must own theirs:
        # views of θ [S, P] cost 6 s instead of 0.5 s for K v of eight ConvNet-3-128 and ten groups on two cores
        pick = _copy if dual else _pick
        piece = min(self.batching.piece, count) if not updating else count
        split = list(zip(images.split(piece, dim=-4), labels.split(piece, dim=-2 if soft else -1), strict=True))

        if self.batching.path is Path.VMAP:
            state = {name: tensor.unsqueeze(1) for name, tensor in state.items()} if updating else state
            over_groups = vmap(one, in_dims=(None, 0 if updating else None, 0, 0) + (0,) * len(vectors))
            over_students = vmap(over_groups, in_dims=(0, 0, image_axis, label_axis) + (0,) * len(vectors))
            chunks = []
            for start in range(0, students, self.batching.students):
                some = slice(start, start + self.batching.students)
                own = (pick(parameters, some), _pick(state, some))
                along = [pick(part, some) for part in vectors]
                chunks.append(
                    _join(
                        [
                            over_students(
                                *own, x[some] if image_axis == 0 else x, y[some] if label_axis == 0 else y, *along
                            )
                            for x, y in split
                        ],
                        axis=2,
                    )
                )
            return _gather(chunks, torch.cat)

        pairs = []
        for student in range(students):
            own = (pick(parameters, student), _pick(state, student))
            for group in range(groups):
                along = [pick(part, (student, group)) for part in vectors]
                of_images = (student, group) if image_axis == 0 else (group,)
                of_labels = (student, group) if label_axis == 0 else (group,)
                pairs.append(_join([one(*own, x[of_images], y[of_labels], *along) for x, y in split], axis=0))
        return _gather(pairs, lambda tensors: torch.stack(tensors).unflatten(0, (students, groups)))


class _Parts(NamedTuple):
    """What one piece of images gives: entries that add up over pieces, that concatenate, and that the last one owns."""

    sums: dict[str, Tensor]
    cats: dict[str, Tensor]
    last: dict[str, Tensor]


def _gather(parts: Sequence[_Parts], combine: Callable[[list[Tensor]], Tensor]) -> _Parts:
    """Combines the corresponding tensors of students or pairs."""
    return _Parts(
        *(
            {name: combine([getattr(part, field)[name] for part in parts]) for name in getattr(parts[0], field)}
            for field in _Parts._fields
        )
    )


def _pick(tensors: Mapping[str, Tensor], index: int | slice | tuple[int, ...]) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in tensors.items()}


def _copy(tensors: Mapping[str, Tensor], index: int | slice | tuple[int, ...]) -> dict[str, Tensor]:
    return {name: tensor[index].clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _join(parts: Sequence[_Parts], axis: int) -> _Parts:
    """Joins pieces in order, so that the result depends on the batching alone; ``axis`` is the image axis."""
    sums = dict(parts[0].sums)
    for part in parts[1:]:
        sums = {name: value + part.sums[name] for name, value in sums.items()}
    cats = {name: torch.cat([part.cats[name] for part in parts], dim=axis) for name in parts[0].cats}
    return _Parts(sums, cats, parts[-1].last)
