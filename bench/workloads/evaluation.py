"""Evaluation: fresh networks trained on a distilled set and tested, all at once against one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from unittest import mock

import torch

from bench.cases import Case, Step, family
from bench.naive.evaluation import train_and_test
from bench.problems import CIFAR10, CLASSES, DIGITS, MNIST, PRIMITIVES, Problem
from fastdistill.evaluation import evaluate
from fastdistill.evaluation.protocols import protocol
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import image_fetch

GROUP = "evaluation"
NARROW = Problem(name="mnist-32", shape=MNIST.shape, width=32)


@dataclass(frozen=True, kw_only=True)
class Length:
    """Of an evaluation.

    Attributes:
        ipc: distilled images of each class.
        epochs: passes over them, one batch each, and one more, as the protocol ``dc`` counts.
    """

    ipc: int
    epochs: int


LENGTHS = {
    "digits": Length(ipc=1, epochs=30),
    "mnist-32": Length(ipc=10, epochs=15),
    "mnist": Length(ipc=10, epochs=30),
    "cifar10": Length(ipc=10, epochs=30),
}


def _set(problem: Problem, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ipc = LENGTHS[problem.name].ipc
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CLASSES * ipc, *problem.shape, generator=generator).to(device)
    return images, torch.arange(CLASSES, device=device).repeat_interleave(ipc)


def naive(problem: Problem, device: torch.device) -> Step:
    """The textbook's training and test of one network."""
    images, labels = _set(problem, device)
    store = problem.store(device)
    test = store.batch(torch.arange(len(store), device=device))
    generator = torch.Generator(device).manual_seed(0)

    def step() -> object:
        network = problem.network().to(device)
        epochs = LENGTHS[problem.name].epochs
        return train_and_test(network, images, labels, test, store.labels, epochs, generator=generator)

    return step


def engine(problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's training and test of ``S`` networks.

    An evaluation plans for itself, by dual layers where it can, and compiles when it is long; what is measured is
    put in the place of its choices. Compiled programs are kept from step to step, or each would compile them anew.
    """
    images, labels = _set(problem, device)
    store = problem.store(device)
    module = student_module(problem.student, problem.shape, CLASSES)
    # the schedule of DC without its augmentation, which is for MNIST alone
    judged = protocol("dc", dataset="cifar10", architecture="convnet", norm="instance")
    judged = judged.with_epochs(LENGTHS[problem.name].epochs)
    indices = torch.arange(students, device=device)
    fetch, chosen = image_fetch(images, labels), PRIMITIVES[primitive]
    make = cache(chosen.make) if chosen.compile else chosen.make

    def step() -> object:
        with mock.patch.multiple(evaluate, choose_batching=chosen.batching, make_primitive=make):
            return evaluate.evaluate_students(module, fetch, len(images), store, judged, students=indices, seed=0)

    return step


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for problem in (DIGITS, NARROW, MNIST, CIFAR10):
        length, small = LENGTHS[problem.name], problem.name == "digits"
        found += family(
            GROUP,
            problem.name,
            images=(length.epochs + 1) * CLASSES * length.ipc + CLASSES * problem.per_class,
            naive=partial(naive, problem),
            engine=partial(engine, problem),
            students=(1, 4, 16, 64) if small else (1, 4, 20, 64),
            short=(16,) if small else (),
            dual=(1, 4, 16, 64) if small else (1, 4, 20, 64),
            short_dual=(16,) if small else (),
            dual_compiled=(16,) if small else (20,),
            cpu={DIGITS: 64, NARROW: 20}.get(problem, 0),
            precisions=not small,
        )
    return found
