"""Trajectory matching: one update by where a training ends, exact (Cazenavette et al. 2022) or TESLA (Cui et al.)."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from bench.cases import Case, Step, family
from bench.naive.trajectory import mtt, tesla
from bench.naive.unrolled import Training
from bench.problems import CIFAR10, CLASSES, DIGITS, MNIST, PRIMITIVES, Problem, engine_step, fresh_weights
from fastdistill.method_configs import TrajectoryConfig

GROUP = "trajectory"
_RATE, _NEAR = 0.01, 0.01
LENGTHS = {"digits": (1, 10), "mnist": (1, 10), "cifar10": (10, 10)}  # images a class, steps


def naive(method: str, problem: Problem, device: torch.device) -> Step:
    """The textbook's update for one student, then SGD on images and step size."""
    ipc, steps = LENGTHS[problem.name]
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(CLASSES * ipc, *problem.shape, generator=generator, device=device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(ipc)
    rate = torch.tensor(_RATE, device=device)
    start = fresh_weights(problem.network().to(device))
    target = {
        name: value + _NEAR * torch.randn(value.shape, generator=generator, device=device)
        for name, value in start.items()
    }
    optimizer = torch.optim.SGD([images, rate], lr=1e-4, momentum=0.5)
    gradient = mtt if method == "mtt" else tesla
    training = Training(net=problem.network().to(device), batches=[slice(None)] * steps)

    def step() -> object:
        value, gradients = gradient(training, start, target, images, labels, rate)
        images.grad, rate.grad = gradients["images"], gradients["step_size"]
        optimizer.step()
        return value

    return step


def engine(method: str, problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's outer step."""
    ipc, steps = LENGTHS[problem.name]
    recipe = TrajectoryConfig(
        inner_steps=steps,
        expert_epochs=1,
        gradient="exact" if method == "mtt" else "tesla",
        augmentation="none",
        start="noise",
        inner_learning_rate=_RATE,
    )
    return engine_step(
        problem,
        recipe,
        device,
        students=students,
        ipc=ipc,
        primitive=PRIMITIVES[primitive],
    )


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for method, problem in product(("mtt", "tesla"), (DIGITS, MNIST, CIFAR10)):
        (ipc, steps), small = LENGTHS[problem.name], problem.name == "digits"
        found += family(
            GROUP,
            f"{method}-{problem.name}",
            images=steps * CLASSES * ipc,
            naive=partial(naive, method, problem),
            engine=partial(engine, method, problem),
            students=(1, 4, 16, 64),
            short=(16,) if small else (),
            compiled=(16,) if small else (),
            dual=(1, 4, 16, 64),
            dual_compiled=(16,) if small else (),
            cpu=64 if small else 0,
            precisions=not small,
        )
    return found
