"""Experts: one epoch of networks on real images, as trajectory matching follows them, all at once or one by one."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.matching import train_epoch
from bench.problems import CIFAR10, CLASSES, DIGITS, PRIMITIVES, Problem
from fastdistill.derivatives.plan import forward_cost
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import Training, train_students
from fastdistill.students.weights import initial_weights

GROUP = "experts"
_BATCH, _RATE = 100, 0.01


def naive(problem: Problem, device: torch.device) -> Step:
    """The textbook's epoch of one network."""
    store = problem.store(device)
    images = store.batch(torch.arange(len(store), device=device))
    generator = torch.Generator(device).manual_seed(0)

    def step() -> object:
        network = problem.network().to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=_RATE)
        train_epoch(network, images, store.labels, optimizer, _BATCH, generator=generator)
        return next(network.parameters())

    return step


def engine(problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's epoch of ``S`` networks."""
    store = problem.store(device)
    module = student_module(problem.student, problem.shape, CLASSES)
    cost, chosen = forward_cost(module, problem.shape), PRIMITIVES[primitive]
    batching = chosen.batching(cost, device, students=students, groups=1, images=_BATCH)
    passes, fetch = chosen.make(module, batching), store_fetch(store, torch.float32)
    indices = torch.arange(students, device=device)
    training = Training(epochs=1, learning_rate=_RATE, batch=_BATCH)

    def step() -> object:
        weights = initial_weights(module, "default", seed=0, step=0, students=indices)
        return train_students(passes, weights, {}, fetch, len(store), training, seed=0, students=indices)

    return step


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for problem in (DIGITS, CIFAR10):
        small = problem is DIGITS
        found += family(
            GROUP,
            problem.name,
            images=CLASSES * problem.per_class,
            naive=partial(naive, problem),
            engine=partial(engine, problem),
            students=(1, 4, 16, 64),
            short=(16,) if small else (),
            compiled=(4,) if small else (),
            short_compiled=(4,) if small else (),
            dual=(1, 4, 16, 64),
            dual_compiled=(4, 16) if small else (),
            cpu=64 if small else 0,
            precisions=not small,
        )
    return found
