"""Every kernel as a case: its operands, the operator, its reference, and the separate calls that it replaces.

One table serves the benchmarks on a CPU (`bench.workloads.kernels`) and the checks and times on a GPU
(`bench.gpu.kernels`). Operands are made in float64 and rounded to the precision that is measured, so that the truth is
the float64 reference of the very same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastdistill_kernels as fk
from fastdistill_kernels import RowTable

Operands = tuple[Tensor, ...]
Computation = Callable[..., Any]
Numbers = Callable[..., Tensor]  # standard normal ones of a shape
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a case is computed at.

    Attributes:
        students: ``S``.
        groups: ``G``.
        images: ``n`` of each (student, group).
        channels: of the layers.
        side: height and width of the layers' maps; images are twice as large.
        parameters: ``P`` of the vector updates.
    """

    students: int
    groups: int
    images: int
    channels: int
    side: int
    parameters: int


SMALL = Sizes(students=3, groups=2, images=2, channels=16, side=6, parameters=1000)  # against float64
CONVNET = Sizes(students=16, groups=10, images=256, channels=128, side=16, parameters=320_000)  # a ConvNet-3-128's


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One operator.

    Attributes:
        name: the operator, and which form of it.
        precisions: it is measured in.
        operands: makes them of standard normal numbers.
        operator: the public function of all operands, with the products' ``precision`` (``ieee`` or ``tf32``).
        separate: the library calls that one would write without it; None where the reference is just that.
    """

    name: str
    precisions: tuple[str, ...]
    operands: Callable[[Sizes, Numbers], Operands]
    operator: Computation
    separate: Computation | None = None

    def policy(self, precision: str) -> dict[str, str]:
        """What the operator is told of a precision: nothing where it has no products."""
        return {"precision": "tf32" if precision == "tf32" else "ieee"} if "tf32" in self.precisions else {}


def rounded(case: KernelCase, sizes: Sizes, precision: str, device: torch.device) -> tuple[Operands, Operands]:
    """The operands in a precision on a device, and the same numbers in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    operands = case.operands(sizes, lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator))
    found = [operand.to(DTYPES[precision]) if operand.is_floating_point() else operand for operand in operands]
    exact = tuple(operand.double() if operand.is_floating_point() else operand for operand in found)
    return tuple(operand.to(device) for operand in found), exact


def large(case: KernelCase, sizes: Sizes, precision: str, device: torch.device) -> Operands:
    """Operands that are made where they are used: those of a whole step would not fit elsewhere."""
    generator = torch.Generator(device).manual_seed(0)
    options: Any = {"dtype": DTYPES[precision], "device": device, "generator": generator}
    return case.operands(sizes, lambda *shape: torch.randn(*shape, **options))


_NORM: Any = {"activation": "relu", "pooling": "avg"}
_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
_WEIGHT = 0.1  # size of random weights: it keeps the layers' results near 1, as a student's are


def _lead(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.students, sizes.groups, sizes.images


def _maps(sizes: Sizes, numbers: Numbers) -> Tensor:
    """Activations ``[S, G, n, C, H, W]``, channels last, as the kernels like them."""
    made = numbers(*_lead(sizes), sizes.side, sizes.side, sizes.channels)
    return made.permute(0, 1, 2, 5, 3, 4)


def _convolution(sizes: Sizes, numbers: Numbers, *, tangent: bool = False) -> list[Tensor]:
    lead = (sizes.students, sizes.groups) if tangent else (sizes.students,)
    channels = sizes.channels
    scale = _WEIGHT / channels**0.5
    return [scale * numbers(*lead, channels, channels, 3, 3), numbers(*lead, channels)]


def _interleaved(values: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for pair in zip(values, tangents, strict=True) for tensor in pair]


def _layer(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_maps(sizes, numbers), *_convolution(sizes, numbers))


def _dual_layer(sizes: Sizes, numbers: Numbers) -> Operands:
    maps = [_maps(sizes, numbers) for _ in range(2)]
    weights = (_convolution(sizes, numbers, tangent=tangent) for tangent in (False, True))
    return (*maps, *_interleaved(*weights))


def _two_maps(sizes: Sizes, numbers: Numbers) -> Operands:
    return _maps(sizes, numbers), _maps(sizes, numbers)


def _four_maps(sizes: Sizes, numbers: Numbers) -> Operands:
    return (*_two_maps(sizes, numbers), *_two_maps(sizes, numbers))


def _grouped(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Students' convolutions as one grouped call: ``x [S, m, I, H, W]``, ``weight [S, O, I, 3, 3]``."""
    students = len(weight)
    images = x.transpose(0, 1).flatten(1, 2)
    found = F.conv2d(images, weight.flatten(0, 1), None if bias is None else bias.flatten(), padding=1, groups=students)
    return found.unflatten(1, (students, -1)).transpose(0, 1)


def separate_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """One grouped convolution for all students."""
    return _grouped(x.flatten(1, 2), weight, bias).unflatten(1, x.shape[1:3])


def separate_dual_convolution(
    x: Tensor, dx: Tensor, weight: Tensor, dweight: Tensor, bias: Tensor, dbias: Tensor
) -> tuple[Tensor, Tensor]:
    """Three grouped convolutions: the value, the input's tangent, and the weight's, which has a weight per group."""
    value = separate_convolution(x, weight, bias)
    of_input = _grouped(dx.flatten(1, 2), weight).unflatten(1, x.shape[1:3])
    of_weight = _grouped(x.flatten(0, 1), dweight.flatten(0, 1), dbias.flatten(0, 1)).unflatten(0, x.shape[:2])
    return value, of_input + of_weight


def separate_input_gradient(gy: Tensor, weight: Tensor, _bias: Tensor) -> Any:
    """One grouped transposed convolution."""
    images = gy.flatten(1, 2).transpose(0, 1).flatten(1, 2)
    found = F.conv_transpose2d(images, weight.flatten(0, 1), padding=1, groups=len(weight))
    return found.unflatten(1, (len(weight), -1)).transpose(0, 1).unflatten(1, gy.shape[1:3])


def _weight_product(x: Tensor, gy: Tensor) -> Any:
    students, groups, channels = x.shape[0], x.shape[1], gy.shape[3]
    images, cotangents = (tensor.flatten(0, 1).transpose(0, 1).flatten(1, 2) for tensor in (x, gy))
    shape = (students * groups * channels, x.shape[3], 3, 3)
    found = torch.nn.grad.conv2d_weight(images, shape, cotangents, padding=1, groups=students * groups)
    return found.unflatten(0, (students, groups, channels))


def separate_weight_gradient(x: Tensor, gy: Tensor) -> Any:
    """One grouped weight gradient, a group a (student, group)."""
    return _weight_product(x, gy)


def separate_dual_weight_gradient(x: Tensor, dx: Tensor, gy: Tensor, dgy: Tensor) -> tuple[Tensor, Tensor]:
    """Three grouped weight gradients."""
    return _weight_product(x, gy), _weight_product(dx, gy) + _weight_product(x, dgy)


def _affine(sizes: Sizes, numbers: Numbers, *, tangent: bool = False) -> list[Tensor]:
    lead = (sizes.students, sizes.groups) if tangent else (sizes.students,)
    return [numbers(*lead, sizes.channels) for _ in range(2)]


def _normed(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_maps(sizes, numbers), *_affine(sizes, numbers))


def _dual_normed(sizes: Sizes, numbers: Numbers) -> Operands:
    affine = _interleaved(_affine(sizes, numbers), _affine(sizes, numbers, tangent=True))
    return (*_two_maps(sizes, numbers), *affine)


def _pooled(sizes: Sizes, numbers: Numbers) -> Tensor:
    return _maps(sizes, numbers)[..., : sizes.side // 2, : sizes.side // 2].contiguous()


def separate_norm_act_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """Group norm, affine, activation and pooling, one call after the other."""
    flat = F.group_norm(x.flatten(0, 2), x.shape[3]).unflatten(0, x.shape[:3])
    normed = flat * weight[:, None, None, :, None, None] + bias[:, None, None, :, None, None]
    return F.avg_pool2d(F.relu(normed).flatten(0, 2), 2).unflatten(0, x.shape[:3])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return fk.norm_act_pool(x, weight, bias, groups=x.shape[3], **_NORM)


def _norm_backward(gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    mean, rstd = _statistics(x)
    return fk.norm_act_pool_backward(gy, x, weight, bias, mean, rstd, groups=x.shape[3], **_NORM)


def _dual_norm(x: Tensor, dx: Tensor, *affine: Tensor) -> Any:
    return fk.dual_norm_act_pool(x, dx, *affine, groups=x.shape[3], **_NORM)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.mean((-2, -1)), (wide.var((-2, -1), correction=0) + 1e-5).rsqrt()


def _first(sizes: Sizes, numbers: Numbers) -> Operands:
    """Grey images twice the maps' size with a block's weight, bias, and affine, padded by 1."""
    images = numbers(*_lead(sizes), 1, 2 * sizes.side, 2 * sizes.side)
    weight = numbers(sizes.students, sizes.channels, 1, 3, 3) / 3
    return (images, weight, *(numbers(sizes.students, sizes.channels) for _ in range(3)))


def _first_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_maps(sizes, numbers).contiguous(), *_first(sizes, numbers))


def separate_first_block(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Any:
    """Grouped convolution, group norm, affine, activation and pooling, one call after the other."""
    return separate_norm_act_pool(separate_convolution(x, weight, bias), norm_weight, norm_bias)


def _matched(sizes: Sizes, numbers: Numbers) -> Operands:
    return tuple(numbers(sizes.students, sizes.groups, sizes.parameters) for _ in range(2))


def _match(distance: str, a: Tensor, b: Tensor) -> Any:
    columns = min(1152, a.shape[-1] // 3)
    return fk.match(a, b, RowTable(((0, a.shape[-1] // columns, columns),), a.shape[-1]), distance)


def separate_match(a: Tensor, b: Tensor) -> Any:
    """Distance by torch's cosine similarity, and its cotangent by autograd."""
    columns = min(1152, a.shape[-1] // 3)
    leaf = a.detach().requires_grad_()
    ours, theirs = (
        tensor[..., : a.shape[-1] // columns * columns].unflatten(-1, (-1, columns)) for tensor in (leaf, b)
    )
    value = (1 - F.cosine_similarity(ours, theirs, dim=-1, eps=1e-12)).sum(-1)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def _vectors(count: int, sizes: Sizes, numbers: Numbers) -> Operands:
    vectors = [numbers(sizes.students, sizes.parameters) for _ in range(count)]
    return (*vectors, *(numbers(sizes.students).abs() for _ in range(2)))


def _everyone(vectors: Tensor) -> Tensor:
    return torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)


def _neumann(term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, _: Tensor) -> Any:
    return fk.neumann_update(term, total, product, alpha, _everyone(term))


def separate_neumann(term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, _: Tensor) -> Any:
    """A term of the series, a call an operation."""
    moved = term - alpha[:, None] * product
    return total + term, moved, (term * product).sum(-1), (moved * moved).sum(-1)


def _gradients_iteration(x: Tensor, r: Tensor, d: Tensor, q: Tensor, damping: Tensor, _: Tensor) -> Any:
    sums = fk.cg_dots(d, q, r, damping)
    return fk.cg_update(x, r, d, q, sums, damping, torch.zeros_like(damping), _everyone(x))[:3]


def separate_iteration(x: Tensor, r: Tensor, d: Tensor, q: Tensor, damping: Tensor, _: Tensor) -> Any:
    """The textbook's iteration, a call an operation; where the curvature is negative the vectors stay."""
    damped = q + damping[:, None] * d
    curvature, square = (d * damped).sum(-1, keepdim=True), (r * r).sum(-1, keepdim=True)
    length = square / curvature
    rest = r - length * damped
    direction = rest + (rest * rest).sum(-1, keepdim=True) / square * d
    sound = curvature > 0
    moved = ((x + length * d, x), (rest, r), (direction, d))
    return tuple(torch.where(sound, new, old) for new, old in moved)


def _momentum(weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor) -> Any:
    return fk.momentum_step(weights, velocity, gradient, rate, momentum, decay=5e-4)


def separate_momentum(weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor) -> Any:
    """A step with momentum and weight decay, a call an operation."""
    moved = momentum[:, None] * velocity + gradient + 5e-4 * weights
    return weights - rate[:, None] * moved, moved


def _drawn(sizes: Sizes, numbers: Numbers) -> Operands:
    images = numbers(*_lead(sizes), 3, 2 * sizes.side, 2 * sizes.side)
    operation = (1000 * numbers(sizes.students, sizes.groups).abs()).long() % len(_OPERATIONS)
    return images, operation, numbers(sizes.students, sizes.groups, 1, 3).sigmoid()


def _augmented(images: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    # numbers of one draw: their roundings would be other shifts
    numbers = numbers if images.dtype == torch.float64 else numbers.float()
    return fk.dsa(images, operation, numbers, _OPERATIONS, align_corners=True)


def separate_augmented(images: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    """Every operation for every pair, of which one is taken."""
    found = images
    for index in range(len(_OPERATIONS)):
        chosen = (operation == index)[..., None, None, None, None]
        found = torch.where(chosen, _augmented(images, torch.full_like(operation, index), numbers), found)
    return found


def _labelled(sizes: Sizes, numbers: Numbers) -> Operands:
    logits = [numbers(*_lead(sizes), 10) for _ in range(2)]
    return (*logits, torch.softmax(numbers(*_lead(sizes), 10), -1))


def separate_softmax_xent(z: Tensor, dz: Tensor, labels: Tensor) -> Any:
    """Cross-entropy, its gradient and their tangents, by forward mode over torch's own functions."""

    def gradient(logits: Tensor) -> Tensor:
        mass = labels.sum(-1, keepdim=True)
        return (mass * F.softmax(logits, -1) - labels) / logits.shape[-2]

    def product(logits: Tensor) -> Tensor:
        return -F.log_softmax(logits, -1) / logits.shape[-2]

    value, tangent = torch.func.jvp(gradient, (z,), (dz,))[:2]
    logs, dlogs = torch.func.jvp(product, (z,), (dz,))[:2]
    return (labels * logs).sum((-2, -1)), (labels * dlogs).sum((-2, -1)), value, tangent, dlogs


def all_cases() -> list[KernelCase]:
    """Every kernel that is measured."""
    products, layers, vectors = ("float32", "tf32", "bf16"), ("float32", "bf16"), ("float32",)

    def case(name: str, precisions: tuple[str, ...], operands: Any, operator: Computation, **more: Any) -> KernelCase:
        return KernelCase(name=name, precisions=precisions, operands=operands, operator=operator, **more)

    def convolving(name: str, operands: Any, operator: Computation, separate: Computation) -> KernelCase:
        return case(name, products, operands, partial(operator, padding=1), separate=separate)

    first: dict[str, Any] = {"padding": 1, **_NORM}
    return [
        case("match-ours", layers, _matched, partial(_match, "ours"), separate=separate_match),
        case("match-mse", layers, _matched, partial(_match, "mse")),
        case("match-l1_mean", layers, _matched, partial(_match, "l1_mean")),
        case("match-cos", layers, _matched, partial(_match, "cos")),
        convolving("convolution", _layer, fk.convolution, separate_convolution),
        convolving("dual_convolution", _dual_layer, fk.dual_convolution, separate_dual_convolution),
        convolving("convolution_input_gradient", _layer, _input_gradient, separate_input_gradient),
        case("dual_convolution_input_gradient", products, _dual_layer, partial(_dual_input, padding=1)),
        convolving("convolution_weight_gradient", _two_maps, _weight_gradient, separate_weight_gradient),
        convolving("dual_convolution_weight_gradient", _four_maps, _dual_weight, separate_dual_weight_gradient),
        case("norm_act_pool", layers, _normed, _norm, separate=separate_norm_act_pool),
        case("norm_act_pool_backward", layers, _normed_backward, _norm_backward),
        case("dual_norm_act_pool", layers, _dual_normed, _dual_norm),
        case("dual_norm_act_pool_backward", layers, _dual_normed_backward, _dual_norm_backward),
        case("first_block", products, _first, partial(fk.first_block, **first), separate=separate_first_block),
        case("first_block_backward", products, _first_backward, partial(_first_gradients, **first)),
        case("dual_first_block", products, _dual_first, partial(fk.dual_first_block, **first)),
        case("dual_first_block_backward", products, _dual_first_backward, partial(_dual_first_gradients, **first)),
        case("linear", products, _head, fk.linear),
        case("dual_linear", products, _dual_head, fk.dual_linear),
        case("linear_weight_gradient", products, _head_gradients, fk.linear_weight_gradient),
        case("softmax_xent", layers, _hard, fk.softmax_xent),
        case("dual_softmax_xent", layers, _labelled, fk.dual_softmax_xent, separate=separate_softmax_xent),
        case("neumann_update", vectors, partial(_vectors, 3), _neumann, separate=separate_neumann),
        case("cg_iteration", vectors, partial(_vectors, 4), _gradients_iteration, separate=separate_iteration),
        case("sgd_step", vectors, partial(_vectors, 2), _sgd),
        case("momentum_step", vectors, partial(_vectors, 3), _momentum, separate=separate_momentum),
        case("adam_step", vectors, _adam_vectors, _adam),
        case("sgd_adjoint", vectors, partial(_vectors, 2), _sgd_adjoint),
        case("momentum_adjoint", vectors, partial(_vectors, 3), _momentum_adjoint),
        case("adam_adjoint", vectors, _adam_adjoint_vectors, _adam_adjoint),
        case("dsa", layers, _drawn, _augmented, separate=separate_augmented),
        case("dsa_transpose", layers, _drawn, _augmented_back),
        case("normal", vectors, partial(_vectors, 0), _normal),
    ]


def _first_gradients(*operands: Tensor, **options: Any) -> Any:
    weight, _, norm_weight, norm_bias, _ = fk.first_block_backward(*operands, inputs=False, **options)
    return weight, norm_weight, norm_bias  # without the bias's, which a norm behind it makes zero but for rounding


def _input_gradient(gy: Tensor, weight: Tensor, _bias: Tensor, *, padding: int, precision: str) -> Any:
    size = (gy.shape[-2], gy.shape[-1])
    return fk.convolution_input_gradient(gy, weight, size, padding=padding, precision=precision)


def _weight_gradient(x: Tensor, gy: Tensor, *, padding: int, precision: str) -> Any:
    return fk.convolution_weight_gradient(x, gy, 3, padding=padding, precision=precision)[0]


def _dual_weight(x: Tensor, dx: Tensor, gy: Tensor, dgy: Tensor, *, padding: int, precision: str) -> Any:
    return fk.dual_convolution_weight_gradient(x, dx, gy, dgy, 3, padding=padding, precision=precision)[:2]


def _normed_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_pooled(sizes, numbers), *_normed(sizes, numbers))


def _dual_input(gy: Tensor, dgy: Tensor, w: Tensor, dw: Tensor, *_: Tensor, padding: int, precision: str) -> Any:
    size = (gy.shape[-2], gy.shape[-1])
    return fk.dual_convolution_input_gradient(gy, dgy, w, dw, size, padding=padding, precision=precision)


def _dual_normed_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_pooled(sizes, numbers), _pooled(sizes, numbers), *_dual_normed(sizes, numbers))


def _dual_norm_backward(gy: Tensor, dgy: Tensor, x: Tensor, dx: Tensor, *affine: Tensor) -> Any:
    mean, rstd = _statistics(x)
    wide, along = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in (x, dx))
    dmean = along.mean((-2, -1))
    dvar = 2 * ((wide - mean[..., None, None]) * along).mean((-2, -1))
    drstd = -0.5 * rstd**3 * dvar
    operands: Any = (gy, dgy, x, dx, *affine, mean, rstd, dmean, drstd)
    return fk.dual_norm_act_pool_backward(*operands, groups=x.shape[3], **_NORM)


def _dual_first(sizes: Sizes, numbers: Numbers) -> Operands:
    images, *own = _first(sizes, numbers)
    along = [
        numbers(sizes.students, sizes.groups, sizes.channels, 1, 3, 3) / 3,
        *(numbers(sizes.students, sizes.groups, sizes.channels) for _ in range(3)),
    ]
    return (images, *_interleaved(own, along))


def _dual_first_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (*(_maps(sizes, numbers).contiguous() for _ in range(2)), *_dual_first(sizes, numbers))


def _dual_first_gradients(*operands: Tensor, **options: Any) -> Any:
    found = fk.dual_first_block_backward(*operands, inputs=False, **options)
    return found[:2] + found[4:8]  # as `_first_gradients`


def _head(sizes: Sizes, numbers: Numbers) -> Operands:
    features = 16 * sizes.channels
    weight = _WEIGHT * numbers(sizes.students, 10, features)
    return numbers(*_lead(sizes), features), weight, numbers(sizes.students, 10)


def _dual_head(sizes: Sizes, numbers: Numbers) -> Operands:
    x, weight, bias = _head(sizes, numbers)
    lead = (sizes.students, sizes.groups, 10)
    dweight = _WEIGHT * numbers(*lead, x.shape[-1])
    return x, numbers(*x.shape), weight, dweight, bias, numbers(*lead)


def _head_gradients(sizes: Sizes, numbers: Numbers) -> Operands:
    return numbers(*_lead(sizes), 16 * sizes.channels), numbers(*_lead(sizes), 10)


def _hard(sizes: Sizes, numbers: Numbers) -> Operands:
    return numbers(*_lead(sizes), 10), (1000 * numbers(*_lead(sizes)).abs()).long() % 10


def _sgd(weights: Tensor, gradient: Tensor, rate: Tensor, _: Tensor) -> Any:
    return fk.sgd_step(weights, gradient, rate, decay=5e-4)


def _sgd_adjoint(cotangent: Tensor, product: Tensor, rate: Tensor, _: Tensor) -> Any:
    return fk.sgd_adjoint(cotangent, product, rate, decay=5e-4)


def _momentum_adjoint(cotangent: Tensor, along: Tensor, product: Tensor, rate: Tensor, momentum: Tensor) -> Any:
    return fk.momentum_adjoint(cotangent, along, rate, decay=5e-4, state_scale=momentum, product=product)


_ADAM: Any = {"beta2": 0.999, "epsilon": 1e-8, "decay": 5e-4}


def _moments(sizes: Sizes, numbers: Numbers) -> Tensor:
    """Adam's, of which the second is a mean of squares."""
    found = numbers(2, sizes.students, sizes.parameters)
    found[1].square_().add_(0.1)
    return found


def _adam_vectors(sizes: Sizes, numbers: Numbers) -> Operands:
    weights, gradient = (numbers(sizes.students, sizes.parameters) for _ in range(2))
    return weights, _moments(sizes, numbers), gradient, numbers(sizes.students).abs()


def _adam(weights: Tensor, moments: Tensor, gradient: Tensor, rate: Tensor) -> Any:
    return fk.adam_step(weights, moments, gradient, rate, torch.full_like(rate, 0.9), _number(rate), **_ADAM)


def _adam_adjoint_vectors(sizes: Sizes, numbers: Numbers) -> Operands:
    cotangent, state = numbers(sizes.students, sizes.parameters), numbers(2, sizes.students, sizes.parameters)
    return cotangent, state, _moments(sizes, numbers), _moments(sizes, numbers), numbers(sizes.students).abs()


def _adam_adjoint(cotangent: Tensor, state: Tensor, moments: Tensor, new_moments: Tensor, rate: Tensor) -> Any:
    beta1 = torch.full_like(rate, 0.9)
    return fk.adam_adjoint(cotangent, state, moments, new_moments, rate, beta1, _number(rate), **_ADAM)


def _number(rate: Tensor) -> Tensor:
    return torch.full((), 7, dtype=torch.int64, device=rate.device)


def _augmented_back(cotangent: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    numbers = numbers if cotangent.dtype == torch.float64 else numbers.float()
    return fk.dsa_transpose(cotangent, operation, numbers, _OPERATIONS, align_corners=True)


def _normal(rate: Tensor, _: Tensor) -> Any:
    return fk.normal(0, 0, 0, torch.arange(len(rate), device=rate.device), 100_000)
