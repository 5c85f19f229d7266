"""Unrolled training: one update of images and learning rates by the loss after a whole training (Wang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.unrolled import Training, cycled, hypergradient, inverse_softplus
from bench.problems import CIFAR10, CLASSES, DIGITS, MNIST, PRIMITIVES, Problem, any_batch, engine_step, fresh_weights
from fastdistill.method_configs import UnrolledConfig

GROUP = "unrolled"
_RATE = 0.02
LENET = Problem(name="lenet", shape=(1, 28, 28), width=1, architecture="lenet")


@dataclass(frozen=True, kw_only=True)
class Length:
    """Of a training on ``ipc`` images a class, all of them in each of so many steps.

    Attributes:
        ipc: ``M``.
        steps: ``T``.
        real: real images of the outer loss.
    """

    ipc: int
    steps: int
    real: int


LENGTHS = {
    "digits": Length(ipc=1, steps=10, real=256),
    "lenet": Length(ipc=1, steps=30, real=1024),
    "mnist": Length(ipc=1, steps=10, real=256),
    "cifar10": Length(ipc=10, steps=10, real=256),
}


def naive(problem: Problem, device: torch.device) -> Step:
    """The textbook's update for one student: a graph of all steps, then Adam on images and rates."""
    length = LENGTHS[problem.name]
    generator = torch.Generator(device).manual_seed(0)
    store, count = problem.store(device), CLASSES * length.ipc
    images = torch.randn(count, *problem.shape, generator=generator, device=device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(length.ipc)
    rho = torch.full((length.steps,), inverse_softplus(_RATE), device=device)
    optimizer = torch.optim.Adam([images, rho], lr=0.01, betas=(0.5, 0.999))

    def step() -> object:
        network = problem.network().to(device)
        training = Training(net=network, batches=cycled(1, count, length.steps))
        value, gradients = hypergradient(
            training, fresh_weights(network), images, labels, rho, *any_batch(store, length.real, generator)
        )
        images.grad, rho.grad = gradients["images"], gradients["rho"]
        optimizer.step()
        return value

    return step


def engine(problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's outer step."""
    length = LENGTHS[problem.name]
    recipe = UnrolledConfig(
        batches=1, epochs=length.steps, real_batch=length.real, inner_learning_rate=_RATE, decay_every=0
    )
    return engine_step(problem, recipe, device, students=students, ipc=length.ipc, primitive=PRIMITIVES[primitive])


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for problem, students, cpu in (
        (DIGITS, (1, 4, 16, 64), 64),
        (LENET, (1, 4, 8, 16), 16),
        (MNIST, (1, 4, 16, 64), 0),
        (CIFAR10, (1, 4, 16, 64), 0),
    ):
        length, small = LENGTHS[problem.name], problem.name == "digits"
        found += family(
            GROUP,
            f"dd-{problem.name}",
            images=length.steps * CLASSES * length.ipc + length.real,
            naive=partial(naive, problem),
            engine=partial(engine, problem),
            students=students,
            short=(1, 16) if small else (),
            compiled=(1, 16) if small else (),
            dual=students,
            dual_compiled={"digits": (1, 16), "lenet": (8,)}.get(problem.name, ()),
            cpu=cpu,
            precisions=not small,
        )
    return found
