"""How students are run: chosen once by a measured rule, kept with the run, reused on resume.

Results are bit-identical for the same plan; between plans they differ by rounding.
"""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastdistill.derivatives.dual.graph import Unsupported, read

PRECISIONS = ("float32", "tf32", "bfloat16")  # of products; statistics, sums over images and weights are wider


class Path(StrEnum):
    """How the students of one program are computed."""

    DUAL = "dual"
    VMAP = "vmap"
    LOOP = "loop"


@dataclass(frozen=True, kw_only=True)
class Batching:
    """One way to run a primitive.

    Attributes:
        path: the dual program, or torch.func in one vmapped program or in a loop over (student, group) pairs.
        piece: most images of a pair that are processed at once; losses and gradients accumulate exactly.
        students: most students in one program; the others follow in further calls.
        groups: most groups of a student in one dual program.
        compiled: whether the dual program is compiled, for every size of its pieces.
        precision: of the dual program's products, one of ``PRECISIONS``; float64 stays what it is under float32.
    """

    path: Path
    piece: int
    students: int
    groups: int = 1
    compiled: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {self.precision!r}: choose one")
        if min(self.piece, self.students, self.groups) < 1:
            raise ValueError(
                "expected a piece and counts of students and groups of at least 1, got "
                f"{self.piece}, {self.students} and {self.groups}: raise them"
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs one student.

    Attributes:
        flops: floating-point operations of the forward pass.
        activations: elements of all module outputs together.
        largest: elements of the largest of them.
        buffers: whether the student has any, such as running statistics.
        unsupported: why the student cannot be a dual program; empty where it can.
    """

    flops: int
    activations: int
    largest: int
    buffers: bool = False
    unsupported: str = "it has not been read"


def forward_cost(module: nn.Module, shape: tuple[int, int, int]) -> Cost:
    """Counts one image's forward pass on the meta device, without allocating anything.

    Args:
        module: a student; only its shapes matter.
        shape: ``(D, H, W)``.
    """
    # eval mode, because batch norm refuses a single value per channel while training
    meta = copy.deepcopy(module).to("meta").eval()
    sizes: list[int] = []

    def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    leaves = [layer for layer in meta.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(record) for layer in leaves]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            meta(torch.empty(1, *shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(
        flops=counter.get_total_flops(),
        activations=sum(sizes),
        largest=max(sizes),
        buffers=any(True for _ in module.buffers()),
        unsupported=unsupported(module),
    )


# Measured on two cores of an AVX-512 CPU, torch 2.13, float32 ConvNets of width 16 to 128 on 8x8 to 32x32 images
# (bench/results/cpu/batching.json). A call of torch.func costs about 2 ms of one core whatever its size, so small
# pairs belong in one vmapped program; large ones make vmap's grouped convolutions slower than plain ones in a loop.
_VMAP_FLOPS = 150e6  # forward operations of one pair's images up to which one program wins
_VMAP_BYTES = 32e6  # activations of one program; past it the grouped convolutions leave the cache
_PIECE_FLOPS = 700e6  # a loop's call must be this large to hide its overhead
_PIECE_BYTES = 4e6  # and its largest activation this small to stay in cache
# On an H200 (torch 2.11, bench/results/h200/batching.json) one program beat the loop in all 25 shapes, 1.5 to 60 times.
_DUAL_BYTES = 16e6  # largest activations of the images that go through a dual program together
# Compiled, a program's passes over memory are few and its calls cheap, so that smaller pieces pay. Students' channels
# lie side by side: of small networks all students at once fill a vector and a grouped convolution.
_COMPILED_BYTES = 5e6
_COMPILED_IMAGES = 16  # of a pair, before students share a piece
_COMPILED_STUDENTS = 16  # 32 students of 16 channels took 1.7 times as long each
# bfloat16 halves the products' time and slows what lies between, whose vectors are of float32: operations of an image
# for each element of its largest activation from which it pays (738 with 128 channels on 28x28, 108 with 16 on 8x8)
_NARROW_FLOPS = 400
_COMPILING_FLOPS = 1e13  # about two minutes of two cores: compiling takes a quarter of one and saves a third or more
_COMPILING_TORCH = (2, 13)  # 2.11 lowers no convolution of students' interleaved channels
_INDEXABLE = 2**31 - 1  # elements that cuDNN's grouped convolutions can address


def choose_batching(
    cost: Cost,
    device: torch.device,
    *,
    students: int,
    groups: int,
    images: int,
    frozen: bool = False,
    compiled: bool = False,
    precision: str = "float32",
) -> Batching:
    """The fastest batching of ``S`` students, ``G`` groups and ``n`` images a pair, by the measured rule.

    A fixed function of shapes and device type, not a timing at start-up: two processes with one configuration choose
    alike, and so give identical bits.

    Args:
        cost: of the student.
        device: where.
        students: ``S``.
        groups: ``G``.
        images: ``n``.
        frozen: whether the student's buffers stay as they are in all passes.
        compiled: whether a dual program is to be compiled; a batching that is none is as without.
        precision: of a dual program's products.
    """
    if device.type != "cpu":
        fitting = _INDEXABLE / (cost.largest * groups * images)
        return Batching(
            path=Path.VMAP,
            piece=max(1, min(images, int(fitting * images))),
            students=max(1, min(students, int(fitting))),
        )
    if not cost.unsupported and (frozen or not cost.buffers):
        return replace((_compiled if compiled else _dual)(cost, students, groups, images), precision=precision)
    if cost.flops * images <= _VMAP_FLOPS and students * groups == 1:
        # nothing to batch: vmap's rules alone cost a LeNet of 10 images 1.4 times the gradient, 1.2 times the products
        return Batching(path=Path.LOOP, piece=images, students=1)
    if cost.flops * images <= _VMAP_FLOPS:
        fitting = _VMAP_BYTES / (4 * cost.activations * images * groups)
        return Batching(path=Path.VMAP, piece=images, students=max(1, min(students, int(fitting))))
    piece = max(_PIECE_FLOPS / max(cost.flops, 1), _PIECE_BYTES / (4 * cost.largest))
    return Batching(path=Path.LOOP, piece=max(1, min(images, round(piece))), students=1)


def nothing_compiles() -> str:
    """What compiling for a CPU would need and does not find; empty where it finds all."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < _COMPILING_TORCH:
        return f"torch {'.'.join(map(str, _COMPILING_TORCH))} or later, not {torch.__version__},"
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return "a C++ compiler, such as g++,"
    return ""


def refuse_what_cannot_compile(compile: str, device: torch.device) -> None:
    """Refuses ``always`` where there is nothing that compiles; a device for which nothing is compiled needs nothing.

    Raises:
        ValueError: naming what is lacking.
    """
    if compile == "always" and device.type == "cpu" and (lacking := nothing_compiles()):
        raise ValueError(f"expected {lacking} for compile always: install it, or leave compile out")


def compiling_pays(cost: Cost, device: torch.device, *, trained: int, tested: int) -> bool:
    """Whether training on so many images and testing so many, each student's each time, is worth compiling first."""
    worth = cost.flops * (3 * trained + tested) >= _COMPILING_FLOPS
    return worth and device.type == "cpu" and not cost.unsupported and not nothing_compiles()


def narrow_pays(cost: Cost, device: torch.device) -> bool:
    """Whether bfloat16 products make a compiled dual program faster."""
    if device.type != "cpu" or cost.flops < _NARROW_FLOPS * cost.largest:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _dual(cost: Cost, students: int, groups: int, images: int) -> Batching:
    """As many images as stay in cache: of one pair first, then of the groups of a student, then of students."""
    fitting = max(1, round(_DUAL_BYTES / (4 * cost.largest)))
    piece = max(1, min(images, fitting))
    across = max(1, min(groups, fitting // max(images, 1)))
    return Batching(
        path=Path.DUAL,
        piece=piece,
        groups=across,
        students=max(1, min(students, fitting // max(images * groups, 1))),
    )


def _compiled(cost: Cost, students: int, groups: int, images: int) -> Batching:
    """As many images as stay in cache: some of each student first, then of the groups of a student."""
    fitting = max(1, round(_COMPILED_BYTES / (4 * cost.largest)))
    together = max(1, min(students, _COMPILED_STUDENTS, fitting // max(1, min(images, _COMPILED_IMAGES))))
    together = -(-students // -(-students // together))  # alike, so that one program does for all; images below too
    piece = max(1, min(images, fitting // together))
    piece = -(-images // -(-images // piece)) if images else 1
    across = max(1, min(groups, fitting // (together * piece))) if piece >= images else 1
    return Batching(path=Path.DUAL, piece=piece, groups=across, students=together, compiled=True)


def unsupported(module: nn.Module) -> str:
    """Why a student cannot be a dual program; empty where it can."""
    try:
        read(module)
    except Unsupported as error:
        return str(error)
    return ""
