"""Every kernel as a case: its operands, the operator, its reference, and the separate calls that it replaces.

One table serves the benchmarks on a CPU (`bench.workloads.kernels`) and the checks and times on a GPU
(`bench.gpu.kernels`). Operands are made in float64 and rounded to the precision that is measured, so that the truth is
the float64 reference of the very same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdistill_kernels as fk
from bench import kernel_separate as separate
from bench.kernel_separate import Separate
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
        parameters: ``P`` of the gradients that are matched.
        vector: ``P`` of the vector updates, and random numbers of a student.
        rows: of logits of each (student, group).
    """

    students: int
    groups: int
    images: int
    channels: int
    side: int
    parameters: int
    vector: int
    rows: int


# against float64; a vector is more than one program's
SMALL = Sizes(students=3, groups=2, images=2, channels=16, side=6, parameters=1000, vector=3000, rows=5)
# Layers of a ConvNet-3-128, and gradients of it. Vectors and logits are larger than any student's: what a case moves
# has to be several times the 50 MB that an H200's L2 holds, or its share of a copy's bandwidth would be the cache's.
CONVNET = Sizes(
    students=16, groups=10, images=256, channels=128, side=16, parameters=320_000, vector=8_000_000, rows=16_384
)


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One operator.

    Attributes:
        name: the operator, and which form of it.
        precisions: it is measured in.
        operands: makes them of standard normal numbers. Each has students first, but moments ``[2, S, P]``.
        operator: the public function of all operands, with the products' ``precision`` (``ieee`` or ``tf32``).
        separate: the library calls that one would write without it; None where the reference is just that.
        smooth: the operator with an activation without a kink, where its own has one: on large operands rounding puts
            some of billions of elements on a kink's other side, where their derivatives are others.
    """

    name: str
    precisions: tuple[str, ...]
    operands: Callable[[Sizes, Numbers], Operands]
    operator: Computation
    separate: Separate | None = None
    smooth: Computation | None = None

    def policy(self, precision: str) -> dict[str, str]:
        """What the operator is told of a precision: nothing where it has no products."""
        return {"precision": "tf32" if precision == "tf32" else "ieee"} if "tf32" in self.precisions else {}

    def calls(self, operands: Operands) -> Iterator[tuple[str, Computation]]:
        """The separate calls on operands, folded beforehand, by the name of a layout; made one after another."""
        if self.separate is not None:
            for layout in self.separate.layouts:  # nothing here holds what was folded before
                name = str(layout).removeprefix("torch.")
                yield name, partial(self.separate.calls, *self.separate.fold(operands, layout))


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


_KINKED: dict[str, Any] = {"activation": "relu", "pooling": "avg"}
_SMOOTH: dict[str, Any] = {"activation": "swish", "pooling": "avg"}
_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
_WEIGHT = 0.1  # size of random weights: it keeps the layers' results near 1, as a student's are


def _lead(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.students, sizes.groups, sizes.images


def _maps(sizes: Sizes, numbers: Numbers) -> Tensor:
    """Activations ``[S, G, n, C, H, W]``, channels last, as the kernels like them."""
    made = numbers(*_lead(sizes), sizes.side, sizes.side, sizes.channels)
    return made.permute(0, 1, 2, 5, 3, 4)


def _interleaved(values: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for pair in zip(values, tangents, strict=True) for tensor in pair]


# convolutions


def _convolution(sizes: Sizes, numbers: Numbers, *, tangent: bool = False) -> list[Tensor]:
    lead = (sizes.students, sizes.groups) if tangent else (sizes.students,)
    channels = sizes.channels
    scale = _WEIGHT / channels**0.5
    return [scale * numbers(*lead, channels, channels, 3, 3), numbers(*lead, channels)]


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


def _input_gradient(gy: Tensor, weight: Tensor, _bias: Tensor, *, padding: int, precision: str) -> Any:
    size = (gy.shape[-2], gy.shape[-1])
    return fk.convolution_input_gradient(gy, weight, size, padding=padding, precision=precision)


def _dual_input(gy: Tensor, dgy: Tensor, w: Tensor, dw: Tensor, *_: Tensor, padding: int, precision: str) -> Any:
    size = (gy.shape[-2], gy.shape[-1])
    return fk.dual_convolution_input_gradient(gy, dgy, w, dw, size, padding=padding, precision=precision)


def _weight_gradient(x: Tensor, gy: Tensor, *, padding: int, precision: str) -> Any:
    return fk.convolution_weight_gradient(x, gy, 3, padding=padding, precision=precision)[0]


def _dual_weight(x: Tensor, dx: Tensor, gy: Tensor, dgy: Tensor, *, padding: int, precision: str) -> Any:
    return fk.dual_convolution_weight_gradient(x, dx, gy, dgy, 3, padding=padding, precision=precision)[:2]


# norm, activation, pooling


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


def _normed_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_pooled(sizes, numbers), *_normed(sizes, numbers))


def _dual_normed_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_pooled(sizes, numbers), _pooled(sizes, numbers), *_dual_normed(sizes, numbers))


def _norm(x: Tensor, weight: Tensor, bias: Tensor, **choices: Any) -> Any:
    return fk.norm_act_pool(x, weight, bias, groups=x.shape[3], **choices)


def _norm_backward(gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, **choices: Any) -> Any:
    mean, rstd = _statistics(x)
    return fk.norm_act_pool_backward(gy, x, weight, bias, mean, rstd, groups=x.shape[3], **choices)


def _dual_norm(x: Tensor, dx: Tensor, *affine: Tensor, **choices: Any) -> Any:
    return fk.dual_norm_act_pool(x, dx, *affine, groups=x.shape[3], **choices)


def _dual_norm_backward(gy: Tensor, dgy: Tensor, x: Tensor, dx: Tensor, *affine: Tensor, **choices: Any) -> Any:
    mean, rstd = _statistics(x)
    wide, along = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in (x, dx))
    dmean = along.mean((-2, -1))
    dvar = 2 * ((wide - mean[..., None, None]) * along).mean((-2, -1))
    drstd = -0.5 * rstd**3 * dvar
    operands: Any = (gy, dgy, x, dx, *affine, mean, rstd, dmean, drstd)
    return fk.dual_norm_act_pool_backward(*operands, groups=x.shape[3], **choices)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide.mean((-2, -1)), (wide.var((-2, -1), correction=0) + 1e-5).rsqrt()


# the first block


def _coarse(tensor: Tensor) -> Tensor:
    """Numbers that TF32 and bfloat16 hold: the first products are exact, so that no rounding crosses a kink."""
    return tensor.bfloat16().to(tensor.dtype)


def _first(sizes: Sizes, numbers: Numbers) -> Operands:
    """Grey images twice the maps' size with a block's weight, bias, and affine, padded by 1."""
    images = _coarse(numbers(*_lead(sizes), 1, 2 * sizes.side, 2 * sizes.side))
    weight = _coarse(numbers(sizes.students, sizes.channels, 1, 3, 3) / 3)
    return (images, weight, *(numbers(sizes.students, sizes.channels) for _ in range(3)))


def _dual_first(sizes: Sizes, numbers: Numbers) -> Operands:
    images, *own = _first(sizes, numbers)
    along = [
        numbers(sizes.students, sizes.groups, sizes.channels, 1, 3, 3) / 3,
        *(numbers(sizes.students, sizes.groups, sizes.channels) for _ in range(3)),
    ]
    return (images, *_interleaved(own, along))


def _first_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (_maps(sizes, numbers).contiguous(), *_first(sizes, numbers))


def _dual_first_backward(sizes: Sizes, numbers: Numbers) -> Operands:
    return (*(_maps(sizes, numbers).contiguous() for _ in range(2)), *_dual_first(sizes, numbers))


def _first_gradients(*operands: Tensor, **options: Any) -> Any:
    weight, _, norm_weight, norm_bias, _ = fk.first_block_backward(*operands, inputs=False, **options)
    return weight, norm_weight, norm_bias  # without the bias's, which a norm behind it makes zero but for rounding


def _dual_first_gradients(*operands: Tensor, **options: Any) -> Any:
    found = fk.dual_first_block_backward(*operands, inputs=False, **options)
    return found[:2] + found[4:8]  # as `_first_gradients`


# the head


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


def _dual_head_gradients(sizes: Sizes, numbers: Numbers) -> Operands:
    return tuple(_interleaved(_head_gradients(sizes, numbers), _head_gradients(sizes, numbers)))


def _head_inputs(sizes: Sizes, numbers: Numbers) -> Operands:
    return numbers(*_lead(sizes), 10), _WEIGHT * numbers(sizes.students, 10, 16 * sizes.channels)


def _dual_head_inputs(sizes: Sizes, numbers: Numbers) -> Operands:
    gy, weight = _head_inputs(sizes, numbers)
    along = _WEIGHT * numbers(sizes.students, sizes.groups, *weight.shape[1:])
    return gy, numbers(*gy.shape), weight, along


def _logits(sizes: Sizes, numbers: Numbers) -> Tensor:
    return numbers(sizes.students, sizes.groups, sizes.rows, 10)


def _hard(sizes: Sizes, numbers: Numbers) -> Operands:
    logits = _logits(sizes, numbers)
    return logits, (1000 * numbers(*logits.shape[:-1]).abs()).long() % 10


def _soft(sizes: Sizes, numbers: Numbers) -> Operands:
    z, dz, labels = (_logits(sizes, numbers) for _ in range(3))
    return z, dz, torch.softmax(labels, -1)


# matching


def _matched(sizes: Sizes, numbers: Numbers) -> Operands:
    return tuple(numbers(sizes.students, sizes.groups, sizes.parameters) for _ in range(2))


def _columns(a: Tensor) -> int:
    return min(1152, a.shape[-1] // 3)


def _match(distance: str, a: Tensor, b: Tensor) -> Any:
    columns = _columns(a)
    return fk.match(a, b, RowTable(((0, a.shape[-1] // columns, columns),), a.shape[-1]), distance)


# vectors

_DECAY = 5e-4
_ADAM: Any = {"beta2": 0.999, "epsilon": 1e-8, "decay": _DECAY}
_BETA1, _NUMBER = 0.9, 7


def _vectors(count: int, sizes: Sizes, numbers: Numbers) -> Operands:
    """Vectors and two scalars of each student."""
    vectors = [numbers(sizes.students, sizes.vector) for _ in range(count)]
    return (*vectors, *(numbers(sizes.students).abs() for _ in range(2)))


def _everyone(vectors: Tensor) -> Tensor:
    return torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)


def _neumann(term: Tensor, total: Tensor, product: Tensor, alpha: Tensor, _: Tensor) -> Any:
    return fk.neumann_update(term, total, product, alpha, _everyone(term))


def _gradients_iteration(x: Tensor, r: Tensor, d: Tensor, q: Tensor, damping: Tensor, _: Tensor) -> Any:
    sums = fk.cg_dots(d, q, r, damping)
    return fk.cg_update(x, r, d, q, sums, damping, torch.zeros_like(damping), _everyone(x))[:3]


def _sgd(weights: Tensor, gradient: Tensor, rate: Tensor, _: Tensor) -> Any:
    return fk.sgd_step(weights, gradient, rate, decay=_DECAY)


def _momentum(weights: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor, momentum: Tensor) -> Any:
    return fk.momentum_step(weights, velocity, gradient, rate, momentum, decay=_DECAY)


def _sgd_adjoint(cotangent: Tensor, product: Tensor, rate: Tensor, _: Tensor) -> Any:
    return fk.sgd_adjoint(cotangent, product, rate, decay=_DECAY)


def _momentum_adjoint(
    cotangent: Tensor, along: Tensor, product: Tensor, velocity: Tensor, new_velocity: Tensor, rate: Tensor, mu: Tensor
) -> Any:
    given = {"state_scale": mu, "product": product, "velocity": velocity, "new_velocity": new_velocity}
    return fk.momentum_adjoint(cotangent, along, rate, decay=_DECAY, **given)


def _moments(sizes: Sizes, numbers: Numbers) -> Tensor:
    """Adam's, of which the second is a mean of squares."""
    found = numbers(2, sizes.students, sizes.vector)
    found[1].square_().add_(0.1)
    return found


def _adam_vectors(sizes: Sizes, numbers: Numbers) -> Operands:
    weights, gradient = (numbers(sizes.students, sizes.vector) for _ in range(2))
    return weights, _moments(sizes, numbers), gradient, numbers(sizes.students).abs()


def _adam(weights: Tensor, moments: Tensor, gradient: Tensor, rate: Tensor) -> Any:
    return fk.adam_step(weights, moments, gradient, rate, torch.full_like(rate, _BETA1), _number(rate), **_ADAM)


def _adam_adjoint_vectors(sizes: Sizes, numbers: Numbers) -> Operands:
    cotangent, state = numbers(sizes.students, sizes.vector), numbers(2, sizes.students, sizes.vector)
    return cotangent, state, _moments(sizes, numbers), _moments(sizes, numbers), numbers(sizes.students).abs()


def _adam_adjoint(cotangent: Tensor, state: Tensor, moments: Tensor, new_moments: Tensor, rate: Tensor) -> Any:
    beta1 = torch.full_like(rate, _BETA1)
    return fk.adam_adjoint(cotangent, state, moments, new_moments, rate, beta1, _number(rate), **_ADAM)


def _number(rate: Tensor) -> Tensor:
    return torch.full((), _NUMBER, dtype=torch.int64, device=rate.device)


# augmentation


def _drawn(sizes: Sizes, numbers: Numbers) -> Operands:
    images = numbers(*_lead(sizes), 3, 2 * sizes.side, 2 * sizes.side)
    operation = (1000 * numbers(sizes.students, sizes.groups).abs()).long() % len(_OPERATIONS)
    return images, operation, numbers(sizes.students, sizes.groups, 1, 3).sigmoid()


def _augmented(images: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    # numbers of one draw: their roundings would be other shifts
    numbers = numbers if images.dtype == torch.float64 else numbers.float()
    return fk.dsa(images, operation, numbers, _OPERATIONS, align_corners=True)


def _augmented_back(cotangent: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    numbers = numbers if cotangent.dtype == torch.float64 else numbers.float()
    return fk.dsa_transpose(cotangent, operation, numbers, _OPERATIONS, align_corners=True)


def _every_operation(images: Tensor, operation: Tensor, numbers: Tensor) -> Any:
    """Every operation for every pair, of which one is taken."""
    found = images
    for index in range(len(_OPERATIONS)):
        chosen = (operation == index)[..., None, None, None, None]
        found = torch.where(chosen, _augmented(images, torch.full_like(operation, index), numbers), found)
    return found


# random numbers


def _counted(sizes: Sizes, numbers: Numbers) -> Operands:
    """Students' indices, and how many numbers they draw: as the length of a vector that is one number."""
    one = numbers(1)
    return torch.arange(sizes.students, device=one.device), one.expand(sizes.students, sizes.vector)


def _draw(kind: str, students: Tensor, like: Tensor) -> Any:
    return getattr(fk, kind)(0, 0, 0, students, like.shape[1])


def all_cases() -> list[KernelCase]:
    """Every kernel that is measured.

    Linear layers and Adam's adjoint have no separate calls: their references are the batched products and the vector
    operations that one would write. Nor have the transpose of an augmentation, which nobody would write, and random
    numbers, of which torch has no such kind.
    """
    products, layers, vectors = ("float32", "tf32", "bf16"), ("float32", "bf16"), ("float32",)
    in_place = separate.updates(_DECAY)
    adam = separate.adam(_ADAM, _BETA1, _NUMBER)

    def case(name: str, precisions: tuple[str, ...], operands: Any, operator: Computation, **more: Any) -> KernelCase:
        return KernelCase(name=name, precisions=precisions, operands=operands, operator=operator, **more)

    def convolving(name: str, operands: Any, operator: Computation, calls: Separate) -> KernelCase:
        return case(name, products, operands, partial(operator, padding=1), separate=calls)

    def kinked(
        name: str, precisions: tuple[str, ...], operands: Any, operator: Any, calls: Separate, **options: Any
    ) -> KernelCase:
        own, smooth = (partial(operator, **choices, **options) for choices in (_KINKED, _SMOOTH))
        return case(name, precisions, operands, own, separate=calls, smooth=smooth)

    def matching(distance: str) -> KernelCase:
        calls = separate.match(distance, _columns)
        return case(f"match-{distance}", layers, _matched, partial(_match, distance), separate=calls)

    def update(name: str, count: int, operator: Computation) -> KernelCase:
        return case(name, vectors, partial(_vectors, count), operator, separate=in_place[name])

    first: Any = {"padding": 1}
    return [
        *(matching(distance) for distance in fk.DISTANCES),
        convolving("convolution", _layer, fk.convolution, separate.CONVOLUTION),
        convolving("dual_convolution", _dual_layer, fk.dual_convolution, separate.DUAL_CONVOLUTION),
        convolving("convolution_input_gradient", _layer, _input_gradient, separate.INPUT_GRADIENT),
        convolving("dual_convolution_input_gradient", _dual_layer, _dual_input, separate.DUAL_INPUT_GRADIENT),
        convolving("convolution_weight_gradient", _two_maps, _weight_gradient, separate.WEIGHT_GRADIENT),
        convolving("dual_convolution_weight_gradient", _four_maps, _dual_weight, separate.DUAL_WEIGHT_GRADIENT),
        kinked("norm_act_pool", layers, _normed, _norm, separate.NORM),
        kinked("norm_act_pool_backward", layers, _normed_backward, _norm_backward, separate.NORM_BACKWARD),
        kinked("dual_norm_act_pool", layers, _dual_normed, _dual_norm, separate.DUAL_NORM),
        kinked(
            "dual_norm_act_pool_backward",
            layers,
            _dual_normed_backward,
            _dual_norm_backward,
            separate.DUAL_NORM_BACKWARD,
        ),
        kinked("first_block", products, _first, fk.first_block, separate.FIRST, **first),
        kinked("first_block_backward", products, _first_backward, _first_gradients, separate.FIRST_BACKWARD, **first),
        kinked("dual_first_block", products, _dual_first, fk.dual_first_block, separate.DUAL_FIRST, **first),
        kinked(
            "dual_first_block_backward",
            products,
            _dual_first_backward,
            _dual_first_gradients,
            separate.DUAL_FIRST_BACKWARD,
            **first,
        ),
        case("linear", products, _head, fk.linear),
        case("dual_linear", products, _dual_head, fk.dual_linear),
        case("linear_input_gradient", products, _head_inputs, fk.linear_input_gradient),
        case("dual_linear_input_gradient", products, _dual_head_inputs, fk.dual_linear_input_gradient),
        case("linear_weight_gradient", products, _head_gradients, fk.linear_weight_gradient),
        case("dual_linear_weight_gradient", products, _dual_head_gradients, fk.dual_linear_weight_gradient),
        case("softmax_xent", layers, _hard, fk.softmax_xent, separate=separate.HARD),
        case("dual_softmax_xent", layers, _soft, fk.dual_softmax_xent, separate=separate.SOFT),
        case("neumann_update", vectors, partial(_vectors, 3), _neumann, separate=separate.NEUMANN),
        case("cg_iteration", vectors, partial(_vectors, 4), _gradients_iteration, separate=separate.ITERATION),
        update("sgd_step", 2, _sgd),
        update("momentum_step", 3, _momentum),
        case("adam_step", vectors, _adam_vectors, _adam, separate=adam),
        update("sgd_adjoint", 2, _sgd_adjoint),
        update("momentum_adjoint", 5, _momentum_adjoint),
        case("adam_adjoint", vectors, _adam_adjoint_vectors, _adam_adjoint),
        case("dsa", layers, _drawn, _augmented, separate=Separate(calls=_every_operation)),
        case("dsa_transpose", layers, _drawn, _augmented_back),
        *(case(kind, vectors, _counted, partial(_draw, kind)) for kind in ("philox", "uniform", "normal")),
    ]
