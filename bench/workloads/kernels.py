"""Kernels' operators, which on a CPU are their references, against the separate library calls of one student."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.kernel_cases import KernelCase, Sizes, all_cases, large

GROUP = "kernels"
_STUDENTS = 16
_SHORT = ("match-ours", "dual_convolution", "norm_act_pool", "first_block", "cg_iteration", "dsa")


def _sizes(students: int) -> Sizes:
    """Of students for 8×8 digits, as many of them as asked for."""
    return Sizes(students=students, groups=4, images=16, channels=16, side=8, parameters=20_000, vector=20_000, rows=16)


def separate(case: KernelCase, device: torch.device) -> Step:
    """The separate calls for one student, in torch's own layout."""
    _, calls = next(case.calls(large(case, _sizes(1), "float32", device)))
    return calls


def operator(case: KernelCase, students: int, _primitive: str, device: torch.device) -> Step:
    """The operator for ``S`` students."""
    return partial(case.operator, *large(case, _sizes(students), "float32", device), **case.policy("float32"))


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for case in all_cases():
        if case.separate is not None:
            found += family(
                GROUP,
                case.name,
                images=0,
                naive=partial(separate, case),
                engine=partial(operator, case),
                students=(1, _STUDENTS),
                short=(_STUDENTS,) if case.name in _SHORT else (),
            )
    return found
