"""The primitive alone: a gradient, and the product of a Hessian with a vector, on one class's real images."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.products import gradient, hessian_product
from bench.problems import CLASSES, DIGITS, MNIST, PRIMITIVES, Problem
from fastdistill.derivatives.plan import forward_cost
from fastdistill.students.ensemble import Ensemble

GROUP = "products"
_REAL = 256


def naive(kind: str, problem: Problem, device: torch.device) -> Step:
    """The textbook's: one graph, or a graph of the gradient's graph."""
    network = problem.network().to(device)
    batch = problem.store(device).batch(torch.arange(_REAL, device=device))
    labels = torch.zeros(_REAL, dtype=torch.int64, device=device)
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(parameter.shape, generator=generator).to(device) for parameter in network.parameters()]
    if kind == "gradient":
        return lambda: gradient(network, batch, labels)
    return lambda: hessian_product(network, batch, labels, vector)


def engine(kind: str, problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's, for ``S`` students; both in the same pieces of images."""
    batch = problem.store(device).batch(torch.arange(_REAL, device=device))[None]
    ensemble = Ensemble(problem.student, problem.shape, CLASSES, seed=0, dtype=torch.float32)
    drawn = ensemble.draw(0, torch.arange(students, device=device))
    cost, chosen = forward_cost(ensemble.module, problem.shape), PRIMITIVES[primitive]
    batching = chosen.batching(cost, device, students=students, groups=1, images=_REAL)
    made = chosen.make(ensemble.module, batching)
    labels = torch.zeros(batch.shape[:2], dtype=torch.int64, device=device)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(students, 1, drawn.weights.shape[1], generator=generator).to(device)
    if kind == "gradient":
        return lambda: made.value_and_gradient(drawn.weights, drawn.buffers, batch, labels)
    return lambda: made.products(drawn.weights, drawn.buffers, batch, labels, vector, wanted=("weights",))


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for kind in ("gradient", "hessian"):
        for problem in (DIGITS, MNIST):
            small = problem is DIGITS
            found += family(
                GROUP,
                f"{kind}-{problem.name}",
                images=_REAL,
                naive=partial(naive, kind, problem),
                engine=partial(engine, kind, problem),
                students=(1, 4, 16, 64),
                short=(4,) if small and kind == "hessian" else (),
                compiled=(4,) if small else (),
                dual=(1, 4, 16, 64),
                short_dual=(4,) if small and kind == "hessian" else (),
                dual_compiled=(4, 16) if small else (1, 4),
                cpu=64 if small else 4,
                precisions=not small,
            )
    return found
