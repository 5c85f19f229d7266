"""Kernels of `fastdistill_kernels.philox`: a program makes the numbers of a run of one student's counters."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdistill_kernels.gpu.launching import Capability, Launch

_BLOCK = 256  # counters of a program: two for each of 128 threads, which then store eight numbers as two 16-byte words
_TYPES = {"philox": torch.int64, "uniform": torch.float32, "normal": torch.float32}


@triton.jit
def _normals(left, right):
    """Two normals of two words, in float64 and rounded once."""
    radius = tl.sqrt(-2.0 * tl.log((left.to(tl.float64) + 1.0) * 2.3283064365386963e-10))  # 2⁻³²
    angle = right.to(tl.float64) * 1.4629180792671596e-09  # 2π · 2⁻³²
    return (radius * tl.cos(angle)).to(tl.float32), (radius * tl.sin(angle)).to(tl.float32)


# the counter's words are different at every call: none of them may choose a kernel of its own
@triton.jit(do_not_specialize=["key0", "key1", "stream", "step"])
def numbers_kernel(
    p_students, p_numbers, key0, key1, stream, step, count, blocks, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """Numbers of ``BLOCK`` counters of one student, of ``blocks`` such runs, to ``numbers [S, count]``."""
    pid = tl.program_id(0)
    student, begin = (pid // blocks).to(tl.int64), (pid % blocks).to(tl.int64) * BLOCK
    counter = (begin + tl.arange(0, BLOCK)).to(tl.uint32)
    index = tl.load(p_students + student).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(
        counter, index, step.to(tl.uint32), stream.to(tl.uint32), key0.to(tl.uint32), key1.to(tl.uint32)
    )
    if KIND == "normal":
        b0, b1 = _normals(w0, w1)
        b2, b3 = _normals(w2, w3)
    elif KIND == "uniform":
        b0, b1 = (w0 >> 8).to(tl.float32) * 5.9604644775390625e-08, (w1 >> 8).to(tl.float32) * 5.9604644775390625e-08
        b2, b3 = (w2 >> 8).to(tl.float32) * 5.9604644775390625e-08, (w3 >> 8).to(tl.float32) * 5.9604644775390625e-08
    else:
        b0, b1, b2, b3 = w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)
    b_numbers = tl.interleave(tl.interleave(b0, b2), tl.interleave(b1, b3))
    o = 4 * begin + tl.arange(0, 4 * BLOCK)
    tl.store(p_numbers + student * count + o, b_numbers, mask=o < count)


def prepare_numbers(
    kind: str, students: Tensor, key0: int, key1: int, stream: int, step: int, count: int
) -> tuple[Tensor, list[Launch]]:
    """Numbers ``[S, count]``, and the launch that fills them."""
    numbers = torch.empty(len(students), count, dtype=_TYPES[kind], device=students.device)
    blocks = -(-count // (4 * _BLOCK))
    words = {"key0": key0, "key1": key1, "stream": stream, "step": step}
    launch = Launch(
        kernel=numbers_kernel,
        grid=len(students) * blocks,
        arguments={
            "p_students": students,
            "p_numbers": numbers,
            **{name: _signed(word) for name, word in words.items()},
            "count": count,
            "blocks": blocks,
        },
        constants={"KIND": kind, "BLOCK": _BLOCK},
    )
    return numbers, [launch]


def _signed(word: int) -> int:
    """The same 32 bits as a signed number, so that the kernel's type does not depend on the value."""
    return word - (word >> 31 << 32)


def _numbers(kind: str, students: Tensor, *words: int) -> Tensor:
    numbers, launches = prepare_numbers(kind, students.contiguous(), *words)
    for launch in launches:
        launch.run()
    return numbers


def philox(*arguments: Any) -> Tensor:
    """Launches what `fastdistill_kernels.reference.philox.philox` computes."""
    return _numbers("philox", *arguments)


def uniform(*arguments: Any) -> Tensor:
    """Launches what `fastdistill_kernels.reference.philox.uniform` computes."""
    return _numbers("uniform", *arguments)


def normal(*arguments: Any) -> Tensor:
    """Launches what `fastdistill_kernels.reference.philox.normal` computes."""
    return _numbers("normal", *arguments)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for the weights of sixteen ConvNet-3-128 on images of 32×32."""
    students = torch.empty(16, dtype=torch.int64, device="meta")
    return {
        f"philox/{kind}/{name}": prepare_numbers(kind, students, 1, 2, 3, 4, 320032)[1]
        for kind, name in (("philox", "int64"), ("uniform", "float32"), ("normal", "float32"))
    }
