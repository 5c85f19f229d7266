"""What the operators ask of an H200 at least: ``python -m fastdistill_kernels.roofline``.

One step of gradient matching is written down in the operators' own calls and run on tensors without values, so that
shapes, bytes and operations are those of the calls themselves. The floor of a call is the larger of two times: its
floating-point operations at the tensor cores' peak, and its operands, each read or written once, at the bandwidth of a
copy. What other methods ask for stands beside it, so that every operator is there. No time here was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import fastdistill_kernels as fk
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.dsa import OPERATIONS

PRODUCTS_PER_S, BYTES_PER_S = 790e12, 4.3e12  # of an H200: bfloat16 with float32 sums, and a copy
OTHERS = "other methods"  # the part that is none of the step's
_NAMESPACE = "fastdistill"


@dataclass(frozen=True)
class Call:
    """One call of an operator: the part of the step it belongs to, its name, and what it asks for."""

    part: str
    operator: str
    cost: Cost

    @property
    def seconds(self) -> float:
        """Its floor."""
        return self.cost.seconds(products_per_s=PRODUCTS_PER_S, bytes_per_s=BYTES_PER_S)


class Recorder(TorchDispatchMode):
    """Writes down every operator of ours that is called inside.

    Attributes:
        calls: in their order.
        part: of the step that runs now.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.part = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == _NAMESPACE:
            flops = flop_registry[func._overloadpacket](*args, out_val=found)
            moved = sum(map(held_bytes, tree_leaves((args, found))))
            self.calls.append(Call(self.part, func._opname, Cost(flops=flops, bytes=moved, products=flops)))
        return found


def held_bytes(value: Any) -> int:
    """Bytes of a tensor's distinct elements: an axis of stride 0 counts once. Zero for what is no tensor."""
    if not isinstance(value, Tensor):
        return 0
    return value.itemsize * prod(size for size, stride in zip(value.shape, value.stride(), strict=True) if stride)


@dataclass(frozen=True, kw_only=True)
class Student:
    """A ConvNet with instance norm, ReLU and average pooling, as operators see it.

    Attributes:
        students: ``S``.
        groups: ``G``, also the number of classes.
        shape: ``(D, H, W)`` of the images.
        width: channels of every block.
        depth: blocks.
        padding: of the first convolution.
    """

    students: int = 16
    groups: int = 10
    shape: tuple[int, int, int] = (1, 28, 28)
    width: int = 128
    depth: int = 3
    padding: int = 3

    def block(self, index: int, *, tangent: bool) -> list[Tensor]:
        """Weight and bias of a convolution, then of its norm; weights per student, tangents per group too."""
        lead = (self.students, self.groups) if tangent else (self.students,)
        fan = self.shape[0] if index == 0 else self.width
        return [_made(*lead, self.width, fan, 3, 3), *(_made(*lead, self.width) for _ in range(3))]

    def side(self, index: int) -> int:
        """Height and width of the map that a block is given, as its convolution makes it."""
        return (self.shape[1] + 2 * (self.padding - 1)) >> index

    def head(self, *, tangent: bool) -> list[Tensor]:
        """Weight and bias of the last layer."""
        lead = (self.students, self.groups) if tangent else (self.students,)
        features = self.width * self.side(self.depth) ** 2
        return [_made(*lead, self.groups, features), _made(*lead, self.groups)]

    def parameters(self) -> int:
        """``P``."""
        tensors = [tensor for index in range(self.depth) for tensor in self.block(index, tangent=False)]
        return sum(prod(tensor.shape[1:]) for tensor in (*tensors, *self.head(tangent=False)))


def _made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


_POOLED: Any = {"activation": "relu", "pooling": "avg"}


def gradient(student: Student, images: int) -> None:
    """Gradients of ``images`` images of every (student, group)."""
    x = _made(student.students, student.groups, images, *student.shape)
    first = student.block(0, tangent=False)
    options: Any = {"padding": student.padding, **_POOLED}
    y = fk.first_block(x, *first, **options)
    kept = []
    for index in range(1, student.depth):
        weight, bias, norm_weight, norm_bias = student.block(index, tangent=False)
        z = fk.convolution(y, weight, bias, padding=1)
        out, *statistics = fk.norm_act_pool(z, norm_weight, norm_bias, groups=student.width, **_POOLED)
        kept.append((y, z, weight, norm_weight, norm_bias, statistics))
        y = out
    weight, bias = student.head(tangent=False)
    features = y.flatten(3)
    _, cotangent = fk.softmax_xent(fk.linear(features, weight, bias), _labels(student, images))
    fk.linear_weight_gradient(features, cotangent)
    g = fk.linear_input_gradient(cotangent, weight).view(y.shape)
    for y, z, weight, norm_weight, norm_bias, statistics in reversed(kept):
        g, _, _ = fk.norm_act_pool_backward(g, z, norm_weight, norm_bias, *statistics, groups=student.width, **_POOLED)
        fk.convolution_weight_gradient(y, g, 3, padding=1)
        g = fk.convolution_input_gradient(g, weight, (y.shape[-2], y.shape[-1]), padding=1)
    fk.first_block_backward(g, x, *first, **options, inputs=False)


def second_order(student: Student, images: int) -> None:
    """The tangent of the same gradient along v, and with it the product K v: forward-over-reverse on few images.

    Value weight gradients are not asked for, and the images have no tangent.
    """
    x = _made(student.students, student.groups, images, *student.shape)
    options: Any = {"padding": student.padding, **_POOLED}
    first = _pairs(student.block(0, tangent=False), student.block(0, tangent=True))
    y, dy = fk.dual_first_block(x, *first, **options)
    kept = []
    for index in range(1, student.depth):
        block = _pairs(student.block(index, tangent=False), student.block(index, tangent=True))
        convolution, norm = block[:4], block[4:]
        z, dz = fk.dual_convolution(y, dy, *convolution, padding=1)
        out, dout, *statistics = fk.dual_norm_act_pool(z, dz, *norm, groups=student.width, **_POOLED)
        kept.append((y, z, dz, convolution, norm, statistics))
        y, dy = out, dout
    head = _pairs(student.head(tangent=False), student.head(tangent=True))
    features = y.flatten(3), dy.flatten(3)
    logits, dlogits = fk.dual_linear(*features, *head)
    _, _, c, dc, _ = fk.dual_softmax_xent(logits, dlogits, _labels(student, images))
    of_features, along = fk.dual_linear_input_gradient(c, dc, head[0], head[1])
    assert of_features is not None  # it is asked for
    g, dg = of_features.view(y.shape), along.view(y.shape)
    for y, z, dz, convolution, norm, statistics in reversed(kept):
        g, dg, *_ = fk.dual_norm_act_pool_backward(
            g, dg, z, dz, *norm, *statistics, groups=student.width, value=False, **_POOLED
        )
        size = (y.shape[-2], y.shape[-1])
        of_maps, dg = fk.dual_convolution_input_gradient(g, dg, convolution[0], convolution[1], size, padding=1)
        assert of_maps is not None
        g = of_maps
    fk.dual_first_block_backward(g, dg, x, *first, **options, inputs=True, value=False)


def _pairs(values: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    return [tensor for pair in zip(values, tangents, strict=True) for tensor in pair]


def _labels(student: Student, images: int) -> Tensor:
    labels = torch.empty(1, student.groups, images, dtype=torch.int64, device="meta")
    return labels.expand(student.students, -1, -1)


def matching(student: Student) -> None:
    """The distance of the gradients and its cotangent."""
    size = student.parameters()
    flat = _made(student.students, student.groups, size, dtype=torch.float32)
    segments, end = [], 0
    for index in range(student.depth):
        shape = student.block(index, tangent=False)[0].shape
        segments.append((end, shape[1], prod(shape[2:])))
        end += prod(shape[1:]) + 3 * student.width
    shape = student.head(tangent=False)[0].shape
    segments.append((end, shape[1], shape[2]))
    fk.match(flat, flat, fk.RowTable(tuple(segments), size), "ours")


def vector_work(student: Student) -> None:
    """The solvers' and inner optimisers' passes over ``[S, P]``, one of each."""
    a, b, c = (_made(student.students, student.parameters(), dtype=torch.float32) for _ in range(3))
    scalar = _made(student.students, dtype=torch.float32)
    mask = _made(student.students, dtype=torch.bool)
    moments = _made(2, student.students, student.parameters(), dtype=torch.float32)
    number = _made(dtype=torch.int64)
    adam: Any = {"beta2": 0.999, "epsilon": 1e-8, "decay": 0.0}
    fk.neumann_update(a, b, c, scalar, mask)
    sums = fk.cg_dots(a, b, c, scalar)
    fk.cg_update(a, b, c, a, sums, scalar, scalar, mask)
    fk.sgd_step(a, b, scalar, decay=0.0)
    fk.momentum_step(a, b, c, scalar, scalar, decay=0.0)
    fk.adam_step(a, moments, b, scalar, scalar, number, **adam)
    fk.sgd_adjoint(a, b, scalar, decay=0.0)
    fk.momentum_adjoint(a, b, scalar, decay=0.0, state_scale=scalar, product=c, velocity=a, new_velocity=b)
    fk.adam_adjoint(a, moments, moments, moments, scalar, scalar, number, product=c, **adam)


def hessian_product(student: Student, images: int) -> None:
    """What a product with the Hessian adds to `second_order`: the tangents of the weight gradients behind the first."""
    for index in range(1, student.depth):
        y, z = (
            _made(student.students, student.groups, images, student.width, *[student.side(index)] * 2) for _ in range(2)
        )
        fk.dual_convolution_weight_gradient(y, y, z, z, 3, padding=1, value=False)
    features = _made(student.students, student.groups, images, student.width * student.side(student.depth) ** 2)
    cotangent = _made(student.students, student.groups, images, student.groups)
    fk.dual_linear_weight_gradient(features, features, cotangent, cotangent, value=False)


def augmentation(student: Student, images: int) -> None:
    """The drawn augmentation of every (student, group), and its transpose."""
    pairs = student.students, student.groups
    x, operation = _made(*pairs, images, *student.shape), _made(*pairs, dtype=torch.int64)
    numbers = _made(*pairs, 1, 3, dtype=torch.float32)
    y = fk.dsa(x, operation, numbers, OPERATIONS, align_corners=True)
    fk.dsa_transpose(y, operation, numbers, OPERATIONS, align_corners=True)


def draws(student: Student) -> None:
    """As many random words and numbers as the students have weights."""
    students = _made(student.students, dtype=torch.int64)
    for draw in (fk.philox, fk.uniform, fk.normal):
        draw(0, 0, 0, students, student.parameters())


def recorded(student: Student, real: int, synthetic: int) -> list[Call]:
    """The calls of one step of gradient matching, and what other methods ask for beside it.

    Args:
        student: whose.
        real: real images of each (student, group), ``B``.
        synthetic: synthetic ones, the images per class.
    """
    recorder = Recorder()
    parts: Iterable[tuple[str, Any]] = (
        ("real gradient", lambda: gradient(student, real)),
        ("synthetic gradient", lambda: gradient(student, synthetic)),
        ("match", lambda: matching(student)),
        ("second order", lambda: second_order(student, synthetic)),
        (OTHERS, lambda: vector_work(student)),
        (OTHERS, lambda: hessian_product(student, synthetic)),
        (OTHERS, lambda: augmentation(student, synthetic)),
        (OTHERS, lambda: draws(student)),
    )
    with recorder:
        for recorder.part, work in parts:
            work()
    return recorder.calls


def as_table(calls: list[Call]) -> str:
    """Calls of a part and operator together: number, operations, bytes, floor and what it is bound by."""
    together: dict[tuple[str, str], tuple[int, Cost, float]] = {}
    for call in calls:
        number, cost, seconds = together.get((call.part, call.operator), (0, Cost(0, 0), 0.0))
        together[call.part, call.operator] = number + 1, cost + call.cost, seconds + call.seconds
    lines = [f"{'part':<20}{'operator':<34}{'calls':>6}{'GFLOP':>11}{'GB':>9}{'ms':>9}  bound by"]
    for (part, operator), (number, cost, seconds) in together.items():
        bound = "products" if cost.products / PRODUCTS_PER_S > cost.bytes / BYTES_PER_S else "memory"
        lines.append(
            f"{part:<20}{operator:<34}{number:>6}{cost.flops / 1e9:>11.1f}{cost.bytes / 1e9:>9.3f}"
            f"{seconds * 1e3:>9.3f}  {bound}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the step of the design's MNIST figure: ConvNet-3-128, 256 real images and one synthetic one per class."""
    student = Student()
    calls = recorded(student, real=256, synthetic=1)
    step = sum(call.seconds for call in calls if call.part != OTHERS)
    print(as_table(calls))
    machine = f"{PRODUCTS_PER_S / 1e12:.0f} TFLOP/s, {BYTES_PER_S / 1e12:.1f} TB/s"
    print(
        f"\nOne step of gradient matching, MNIST, ConvNet-{student.depth}-{student.width}, {student.students} "
        f"students, 256 real images a class, bfloat16:\nat least {step * 1e3:.1f} ms on an H200 ({machine}), "
        f"{step / student.students * 1e3:.2f} ms a student. Not measured."
    )


if __name__ == "__main__":
    main()
