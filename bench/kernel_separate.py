"""The library calls that one would write without the operators: grouped convolutions, norms, in-place updates.

Students, or (student, group) pairs, are folded into channels, so that one call of cuDNN or of torch takes all of them.
Folding is not part of the time: a program made of such calls would keep its tensors that way. Where a layout in memory
decides how fast a call is, both are tried and the faster one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Operands = tuple[Any, ...]
Calls = Callable[..., Any]
Fold = Callable[[Operands, torch.memory_format], Operands]
Unfold = Callable[[Any, Operands], Any]
PLAIN = (torch.contiguous_format,)
BOTH = (torch.contiguous_format, torch.channels_last)
_EPS = 1e-5  # of norms
_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Separate:
    """The calls in one operator's place.

    Attributes:
        calls: of what ``fold`` makes.
        fold: of the operator's operands and a layout: what the calls take, and what a forward pass would have kept.
        unfold: of the calls' results and the operator's operands: the results in the operator's shapes.
        layouts: of maps, that ``fold`` may be asked for.
    """

    calls: Calls
    fold: Fold = lambda operands, _: operands
    unfold: Unfold = lambda found, _: found
    layouts: tuple[torch.memory_format, ...] = PLAIN


# maps, weights and vectors of students or pairs, as channels


def by_student(maps: Tensor, layout: torch.memory_format) -> Tensor:
    """``[S, G, n, C, H, W]`` as ``[G·n, S·C, H, W]``."""
    return _laid(maps.permute(1, 2, 0, 3, 4, 5).flatten(2, 3).flatten(0, 1), layout)


def by_pair(maps: Tensor, layout: torch.memory_format) -> Tensor:
    """``[S, G, n, C, H, W]`` as ``[n, S·G·C, H, W]``."""
    return _laid(maps.permute(2, 0, 1, 3, 4, 5).flatten(1, 3), layout)


def _laid(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout)


def _students_maps(found: Tensor, like: Tensor) -> Any:
    """`by_student` undone, for operands with the students and groups of ``like``."""
    students, groups = like.shape[:2]
    return found.unflatten(1, (students, -1)).unflatten(0, (groups, -1)).permute(2, 0, 1, 3, 4, 5)


def _pairs_maps(found: Tensor, like: Tensor) -> Any:
    """`by_pair` undone."""
    return found.unflatten(1, (*like.shape[:2], -1)).permute(1, 2, 0, 3, 4, 5)


def _pairs(found: Tensor, like: Tensor) -> Any:
    """``[S·G·O, …]`` as ``[S, G, O, …]``."""
    return found.unflatten(0, (*like.shape[:2], -1))


def _repeated(weight: Tensor, like: Tensor) -> Tensor:
    """A student's weight ``[S, O, …]`` for each of its groups, ``[S·G·O, …]``."""
    return weight[:, None].expand(-1, like.shape[1], *weight.shape[1:]).flatten(0, 2)


def _by_pairs(paired: Sequence[Tensor], like: Tensor) -> Operands:
    """Weights of students and their tangents, in turns, all ``[S·G·O, …]``."""
    return _interleaved([_repeated(each, like) for each in paired[::2]], [each.flatten(0, 2) for each in paired[1::2]])


def _interleaved(values: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tensor for pair in zip(values, tangents, strict=True) for tensor in pair)


# convolutions


def _fold_layer(operands: Operands, layout: torch.memory_format) -> Operands:
    x, weight, bias = operands
    return by_student(x, layout), _laid(weight.flatten(0, 1), layout), bias.flatten(), len(weight)


def _fold_dual_layer(operands: Operands, layout: torch.memory_format) -> Operands:
    # all by pairs, though the value's weights are the students': tangents that have other folds could not be added
    x, dx, *paired = operands
    weight, dweight, *biases = _by_pairs(paired, x)
    weights = (_laid(each, layout) for each in (weight, dweight))
    return (by_pair(x, layout), by_pair(dx, layout), *weights, *biases, x.shape[0] * x.shape[1])


def _fold_maps(operands: Operands, layout: torch.memory_format) -> Operands:
    x = operands[0]
    return (*(by_pair(maps, layout) for maps in operands), x.shape[0] * x.shape[1])


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1, groups=groups)


def _dual_convolution(
    x: Tensor, dx: Tensor, weight: Tensor, dweight: Tensor, bias: Tensor, dbias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    of_input = F.conv2d(dx, weight, padding=1, groups=groups)
    return _convolution(x, weight, bias, groups), of_input.add_(_convolution(x, dweight, dbias, groups))


def _input_gradient(gy: Tensor, weight: Tensor, _bias: Tensor | None, groups: int) -> Tensor:
    return F.conv_transpose2d(gy, weight, padding=1, groups=groups)


def _dual_input_gradient(
    gy: Tensor, dgy: Tensor, weight: Tensor, dweight: Tensor, _bias: Tensor, _dbias: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    tangent = _input_gradient(dgy, weight, None, groups).add_(_input_gradient(gy, dweight, None, groups))
    return _input_gradient(gy, weight, None, groups), tangent


def _weight_gradient(x: Tensor, gy: Tensor, groups: int) -> Tensor:
    shape = (gy.shape[1], x.shape[1] // groups, 3, 3)
    found: Tensor = conv2d_weight(x, shape, gy, padding=1, groups=groups)
    return found


def _dual_weight_gradient(x: Tensor, dx: Tensor, gy: Tensor, dgy: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    tangent = _weight_gradient(dx, gy, groups).add_(_weight_gradient(x, dgy, groups))
    return _weight_gradient(x, gy, groups), tangent


def _each(unfold: Callable[[Tensor, Tensor], Any]) -> Unfold:
    """The same unfolding for one result, or for all of several."""

    def undo(found: Any, operands: Operands) -> Any:
        like = operands[0]
        return unfold(found, like) if isinstance(found, Tensor) else tuple(unfold(one, like) for one in found)

    return undo


CONVOLUTION = Separate(calls=_convolution, fold=_fold_layer, unfold=_each(_students_maps), layouts=BOTH)
INPUT_GRADIENT = Separate(calls=_input_gradient, fold=_fold_layer, unfold=_each(_students_maps), layouts=BOTH)
WEIGHT_GRADIENT = Separate(calls=_weight_gradient, fold=_fold_maps, unfold=_each(_pairs), layouts=BOTH)
# three grouped calls each
DUAL_CONVOLUTION = Separate(calls=_dual_convolution, fold=_fold_dual_layer, unfold=_each(_pairs_maps), layouts=BOTH)
DUAL_INPUT_GRADIENT = Separate(
    calls=_dual_input_gradient, fold=_fold_dual_layer, unfold=_each(_pairs_maps), layouts=BOTH
)
DUAL_WEIGHT_GRADIENT = Separate(calls=_dual_weight_gradient, fold=_fold_maps, unfold=_each(_pairs), layouts=BOTH)


def _by_group(calls: Calls, fold: Fold, unfold: Unfold) -> Separate:
    """The calls of one group after another, where all at once would not fit: in memory, or in indices of 32 bits."""

    def cut(operands: Operands, group: int) -> Operands:
        # maps and tangents have groups; weights, of five axes or two, do not
        return tuple(each[:, group : group + 1] if each.ndim in (3, 6) else each for each in operands)

    def folded(operands: Operands, layout: torch.memory_format) -> Operands:
        return tuple(fold(cut(operands, group), layout) for group in range(operands[0].shape[1]))

    def unfolded(found: Any, operands: Operands) -> Any:
        groups = [unfold(one, cut(operands, group)) for group, one in enumerate(found)]
        if isinstance(groups[0], Tensor):
            return torch.cat(groups, 1)
        return tuple(torch.cat(parts, 1) for parts in zip(*groups, strict=True))

    return Separate(calls=lambda *groups: [calls(*group) for group in groups], fold=folded, unfold=unfolded)


# norm, activation, pooling: channels first only, since torch's norm would copy another layout on a device. Backward
# passes are given what autograd would have kept; second derivatives are forward mode over the reverse pass, which is
# computed inside, since torch keeps nothing of it for another call.


def _block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias, _EPS)), 2)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.avg_pool2d(F.group_norm(x, x.shape[1], weight, bias, _EPS).relu_(), 2)


def _fold_normed(operands: Operands, layout: torch.memory_format) -> Operands:
    x, weight, bias = operands
    return by_student(x, layout), weight.flatten(), bias.flatten()


def _kept(x: Tensor, weight: Tensor, bias: Tensor) -> Operands:
    """What a forward pass keeps of maps: them, their statistics, the activation, and the weight."""
    extents = (len(x), x.shape[1], x[0, 0].numel(), x.shape[1])
    normed, mean, rstd = _aten.native_group_norm(x, weight, bias, *extents, _EPS)
    return x, mean, rstd, normed.relu_(), weight


def _norm_backward(gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, a: Tensor, weight: Tensor) -> Any:
    """Gradients of maps, weight and bias."""
    extents = (len(x), x.shape[1], x[0, 0].numel(), x.shape[1])
    pooling = ([2, 2], [2, 2], [0, 0], False, True, None)
    gz = _aten.threshold_backward(_aten.avg_pool2d_backward(gy, a, *pooling), a, 0)
    return _aten.native_group_norm_backward(gz, x, mean, rstd, weight, *extents, [True] * 3)


def _fold_normed_backward(operands: Operands, layout: torch.memory_format) -> Operands:
    gy, x, weight, bias = operands
    return by_pair(gy, layout), *_kept(by_pair(x, layout), _repeated(weight, x), _repeated(bias, x))


def _dual_norm(x: Tensor, dx: Tensor, weight: Tensor, dweight: Tensor, bias: Tensor, dbias: Tensor) -> Any:
    return jvp(_block, (x, weight, bias), (dx, dweight, dbias))


def _fold_dual_normed(operands: Operands, layout: torch.memory_format) -> Operands:
    x, dx, *paired = operands
    return by_pair(x, layout), by_pair(dx, layout), *_by_pairs(paired, x)


def _dual_norm_backward(
    gy: Tensor, dgy: Tensor, x: Tensor, dx: Tensor, weight: Tensor, dweight: Tensor, bias: Tensor, dbias: Tensor
) -> tuple[Any, ...]:
    def gradients(gy: Tensor, *inputs: Tensor) -> Any:
        return vjp(_block, *inputs)[1](gy)

    return _interleaved(*jvp(gradients, (gy, x, weight, bias), (dgy, dx, dweight, dbias)))


def _fold_dual_normed_backward(operands: Operands, layout: torch.memory_format) -> Operands:
    gy, dgy, *rest = operands
    return by_pair(gy, layout), by_pair(dgy, layout), *_fold_dual_normed(tuple(rest), layout)


def _unfold_gradients(found: Any, operands: Operands) -> Any:
    """Maps where there are such, else weights."""
    return tuple(_pairs_maps(one, operands[0]) if one.ndim == 4 else _pairs(one, operands[0]) for one in found)


NORM = Separate(calls=_norm, fold=_fold_normed, unfold=_each(_students_maps))
NORM_BACKWARD = Separate(calls=_norm_backward, fold=_fold_normed_backward, unfold=_unfold_gradients)
DUAL_NORM = Separate(calls=_dual_norm, fold=_fold_dual_normed, unfold=_each(_pairs_maps))
DUAL_NORM_BACKWARD = _by_group(_dual_norm_backward, _fold_dual_normed_backward, _unfold_gradients)


# the first block: the same behind a convolution of images


def _first(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, groups: int) -> Tensor:
    return _norm(_convolution(x, weight, bias, groups), norm_weight, norm_bias)


def _fold_first(operands: Operands, layout: torch.memory_format) -> Operands:
    x, weight, *vectors = operands
    return by_student(x, layout), weight.flatten(0, 1), *(vector.flatten() for vector in vectors), len(weight)


def _first_backward(gy: Tensor, images: Tensor, groups: int, *kept: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the weight and the norm's; the bias's is none behind a norm."""
    gz, in_norm_weight, in_norm_bias = _norm_backward(gy, *kept)
    return _weight_gradient(images, gz, groups), in_norm_weight, in_norm_bias


def _fold_first_backward(operands: Operands, layout: torch.memory_format) -> Operands:
    gy, x, weight, bias, norm_weight, norm_bias = operands
    images, groups = by_pair(x, layout), x.shape[0] * x.shape[1]
    z = _convolution(images, _repeated(weight, x), _repeated(bias, x), groups)
    return by_pair(gy, layout), images, groups, *_kept(z, _repeated(norm_weight, x), _repeated(norm_bias, x))


def _of_images(images: Tensor, groups: int) -> Callable[..., Tensor]:
    """The block as a function of weight, bias, and the norm's."""

    def block(weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
        return _block(_convolution(images, weight, bias, groups), norm_weight, norm_bias)

    return block


def _dual_first(images: Tensor, groups: int, *paired: Tensor) -> Any:
    return jvp(_of_images(images, groups), paired[::2], paired[1::2])


def _fold_dual_first(operands: Operands, layout: torch.memory_format) -> Operands:
    x, *paired = operands
    return by_pair(x, layout), x.shape[0] * x.shape[1], *_by_pairs(paired, x)


def _dual_first_backward(gy: Tensor, dgy: Tensor, images: Tensor, groups: int, *paired: Tensor) -> tuple[Any, ...]:
    def gradients(gy: Tensor, *weights: Tensor) -> Any:
        in_weight, _, in_norm_weight, in_norm_bias = vjp(_of_images(images, groups), *weights)[1](gy)
        return in_weight, in_norm_weight, in_norm_bias

    return _interleaved(*jvp(gradients, (gy, *paired[::2]), (dgy, *paired[1::2])))


def _fold_dual_first_backward(operands: Operands, layout: torch.memory_format) -> Operands:
    gy, dgy, *rest = operands
    return by_pair(gy, layout), by_pair(dgy, layout), *_fold_dual_first(tuple(rest), layout)


FIRST = _by_group(_first, _fold_first, _each(_students_maps))
FIRST_BACKWARD = _by_group(_first_backward, _fold_first_backward, _each(_pairs))
DUAL_FIRST = _by_group(_dual_first, _fold_dual_first, _each(_pairs_maps))
DUAL_FIRST_BACKWARD = _by_group(_dual_first_backward, _fold_dual_first_backward, _each(_pairs))


# matching, by torch's distances and autograd


def _distance(kind: str, ours: Tensor, theirs: Tensor) -> Tensor:
    if kind == "cos":
        return 1 - F.cosine_similarity(ours.flatten(-2), theirs.flatten(-2), dim=-1, eps=1e-12)
    if kind == "ours":
        return (1 - F.cosine_similarity(ours, theirs, dim=-1, eps=1e-12)).sum(-1)
    if kind == "mse":
        return F.mse_loss(ours, theirs, reduction="none").sum((-2, -1))
    found = F.l1_loss(ours, theirs, reduction="none")
    return found.sum((-2, -1)) if kind == "l1" else found.mean(-1).sum(-1)


def _match(kind: str, columns: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    leaf = a.detach().requires_grad_()
    rows = a.shape[-1] // columns
    value = _distance(kind, *(each[..., : rows * columns].unflatten(-1, (rows, columns)) for each in (leaf, b)))
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def match(kind: str, columns: Callable[[Tensor], int]) -> Separate:
    """Of a distance on rows of so many columns."""
    return Separate(calls=lambda a, b: _match(kind, columns(a), a, b))


# the loss


def _hard(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    each = F.cross_entropy(leaf.flatten(0, 2), labels.flatten(), reduction="none")
    value = each.unflatten(0, labels.shape).mean(-1)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def _soft(z: Tensor, dz: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Cross-entropy, its gradient and their tangents, by forward mode over torch's own functions."""

    def gradient(logits: Tensor) -> Tensor:
        mass = labels.sum(-1, keepdim=True)
        return (mass * F.softmax(logits, -1) - labels) / logits.shape[-2]

    def product(logits: Tensor) -> Tensor:
        return -F.log_softmax(logits, -1) / logits.shape[-2]

    (value, tangent), (logs, dlogs) = (jvp(each, (z,), (dz,))[:2] for each in (gradient, product))
    return (labels * logs).sum((-2, -1)), (labels * dlogs).sum((-2, -1)), value, tangent, dlogs


HARD, SOFT = Separate(calls=_hard), Separate(calls=_soft)


# vectors, updated in place on copies of the operands


def _copied(operands: Operands, _: torch.memory_format) -> Operands:
    return tuple(operand.clone() for operand in operands)


def _columns(*scalars: Tensor) -> list[Tensor]:
    return [scalar[:, None] for scalar in scalars]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vecdot(left, right)
    return found


def _neumann(term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    total.add_(term)
    curvature = _dot(term, product)
    term.addcmul_(alpha[:, None], product, value=-1)
    return total, term, curvature, _dot(term, term)


def _iteration(x: Tensor, r: Tensor, d: Tensor, q: Tensor, damping: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """The textbook's iteration; where the curvature is negative the vectors stay."""
    damped = torch.addcmul(q, damping[:, None], d)
    curvature, square = _dot(d, damped), _dot(r, r)
    sound = curvature > 0
    (length,) = _columns(torch.where(sound, square / curvature, 0))
    x.addcmul_(length, d)
    r.addcmul_(length, damped, value=-1)
    ratio, added = _columns(torch.where(sound, _dot(r, r) / square, 1), sound.to(r.dtype))
    d.mul_(ratio).addcmul_(added, r)
    return x, r, d


def _sgd(decay: float, weights: Tensor, gradient: Tensor, rate: Tensor, _: Tensor) -> Tensor:
    return weights.addcmul_(rate[:, None], torch.add(gradient, weights, alpha=decay), value=-1)


def _momentum(
    decay: float, weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor
) -> tuple[Tensor, Tensor]:
    velocity.mul_(momentum[:, None]).add_(torch.add(gradient, weights, alpha=decay))
    return weights.addcmul_(rate[:, None], velocity, value=-1), velocity


def _adam(
    settings: dict[str, float], beta1: float, number: int, weights: Tensor, moments: Tensor, gradient: Tensor, rate: Any
) -> tuple[Tensor, Tensor]:
    """As torch's own, whose corrections are numbers of the host too."""
    first, second = moments.unbind()
    beta2, steps = settings["beta2"], number + 1
    pull = torch.add(gradient, weights, alpha=settings["decay"])
    first.lerp_(pull, 1 - beta1)
    second.mul_(beta2).addcmul_(pull, pull, value=1 - beta2)
    root = (second.sqrt() / (1 - beta2**steps) ** 0.5).add_(settings["epsilon"])
    scale = rate[:, None] / (1 - beta1**steps)
    return weights.addcdiv_(first * scale, root, value=-1), moments


def _sgd_adjoint(decay: float, cotangent: Tensor, product: Tensor, rate: Tensor, _: Tensor) -> Tensor:
    return cotangent.addcmul_(rate[:, None], product.add_(cotangent, alpha=decay), value=-1)


def _momentum_adjoint(
    decay: float,
    cotangent: Tensor,
    along: Tensor,
    product: Tensor,
    velocity: Tensor,
    new_velocity: Tensor,
    rate: Tensor,
    momentum: Tensor,
) -> tuple[Tensor, ...]:
    cotangent.add_(product)
    in_rate = -_dot(new_velocity, cotangent)
    along.mul_(momentum[:, None]).addcmul_(rate[:, None], cotangent, value=-1)
    return cotangent.add_(along, alpha=decay), along, in_rate, _dot(velocity, along)


NEUMANN, ITERATION = (Separate(calls=calls, fold=_copied) for calls in (_neumann, _iteration))


def updates(decay: float) -> dict[str, Separate]:
    """SGD's and momentum's steps and adjoints with a weight decay, by the operators' names."""
    calls: dict[str, Calls] = {
        "sgd_step": _sgd,
        "momentum_step": _momentum,
        "sgd_adjoint": _sgd_adjoint,
        "momentum_adjoint": _momentum_adjoint,
    }
    return {name: Separate(calls=partial(call, decay), fold=_copied) for name, call in calls.items()}


def adam(settings: dict[str, float], beta1: float, number: int) -> Separate:
    """A step of Adam with one ``β₁`` and one number for all students."""
    return Separate(calls=partial(_adam, settings, beta1, number), fold=_copied)
