"""Kernel references: the plain-torch truth of every kernel, which is also what runs on a CPU, against simple loops."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.matching import distance
from bench.problems import CLASSES, DIGITS, MNIST, Problem
from fastdistill.derivatives.layout import Layout
from fastdistill.students.ensemble import student_module
from fastdistill_kernels import RowTable, match, normal

GROUP = "references"
_NUMBERS = 100_000


def naive_match(problem: Problem, kind: str, device: torch.device) -> Step:
    """The textbook's distance of one student's gradients, class by class, and its derivative by autograd."""
    generator = torch.Generator().manual_seed(0)
    shapes = Layout.of(student_module(problem.student, problem.shape, CLASSES)).shapes.values()

    def gradients() -> list[list[torch.Tensor]]:
        return [[torch.randn(shape, generator=generator).to(device) for shape in shapes] for _ in range(CLASSES)]

    synthetic, real = gradients(), gradients()

    def step() -> object:
        found = []
        for ours, theirs in zip(synthetic, real, strict=True):
            leaves = [tensor.detach().requires_grad_() for tensor in ours]
            value = distance(leaves, theirs, "ours" if kind == "ours" else "mse")
            found.append(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))
        return found

    return step


def fused_match(problem: Problem, kind: str, students: int, _primitive: str, device: torch.device) -> Step:
    """The reference of ``match`` for ``S`` students and ten classes."""
    layout = Layout.of(student_module(problem.student, problem.shape, CLASSES))
    table = RowTable.build(layout.shapes, layout.offsets, layout.size, kind, None)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(students, CLASSES, layout.size, generator=generator).to(device) for _ in range(2))
    return lambda: match(a, b, table, kind)


def naive_normal(device: torch.device) -> Step:
    """Numbers of one student from a generator of its own."""

    def step() -> object:
        return torch.randn(_NUMBERS, generator=torch.Generator(device).manual_seed(0), device=device)

    return step


def keyed_normal(students: int, _primitive: str, device: torch.device) -> Step:
    """Counter-based numbers of ``S`` students."""
    indices = torch.arange(students, device=device)
    return lambda: normal(0, 0, 0, indices, _NUMBERS)


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for problem, kind in ((DIGITS, "ours"), (DIGITS, "mse"), (MNIST, "ours"), (MNIST, "mse")):
        small = problem is DIGITS
        found += family(
            GROUP,
            f"match-{kind}-{problem.name}",
            images=0,
            naive=partial(naive_match, problem, kind),
            engine=partial(fused_match, problem, kind),
            students=(1, 4, 16, 64) if small else (1, 4),
            short=(16,) if small else (),
            cpu=64,
        )
    found += family(
        GROUP,
        "philox-normal",
        images=0,
        naive=naive_normal,
        engine=keyed_normal,
        students=(1, 4, 16),
        short=(16,),
    )
    return found
