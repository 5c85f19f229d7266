"""Implicit differentiation: a short training, then one update by a Neumann series (Lorraine et al. 2020)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from bench.cases import Case, Step, family
from bench.naive.implicit import image_gradient, neumann
from bench.problems import CIFAR10, CLASSES, DIGITS, MNIST, PRIMITIVES, Problem, any_batch, engine_step, fresh_weights
from fastdistill.method_configs import ImplicitConfig

GROUP = "implicit"
_STEPS, _TERMS, _REAL, _ALPHA, _RATE, _MOMENTUM = 10, 10, 256, 0.01, 0.02, 0.5


def naive(problem: Problem, device: torch.device) -> Step:
    """The textbook's update for one student."""
    generator = torch.Generator(device).manual_seed(0)
    store = problem.store(device)
    images = torch.randn(CLASSES, *problem.shape, generator=generator, device=device)
    labels = torch.arange(CLASSES, device=device)
    optimizer = torch.optim.Adam([images], lr=0.01)

    def step() -> object:
        network = problem.network().to(device)
        training = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=_MOMENTUM)
        for _ in range(_STEPS):
            training.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images), labels))
            training.step()
        weights = {name: value.requires_grad_() for name, value in fresh_weights(network).items()}
        value, images.grad = image_gradient(
            network,
            weights,
            images.detach().requires_grad_(),
            labels,
            *any_batch(store, _REAL, generator),
            partial(neumann, steps=_TERMS, alpha=_ALPHA),
        )
        optimizer.step()
        return value

    return step


def engine(problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's outer step."""
    recipe = ImplicitConfig(
        inner_steps=_STEPS,
        terms=_TERMS,
        alpha=_ALPHA,
        real_batch=_REAL,
        inner_learning_rate=_RATE,
        inner_momentum=_MOMENTUM,
        eigenvalue_every=0,
    )
    return engine_step(problem, recipe, device, students=students, primitive=PRIMITIVES[primitive])


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for problem in (DIGITS, MNIST, CIFAR10):
        small = problem.name == "digits"
        found += family(
            GROUP,
            f"ift-{problem.name}",
            images=(_STEPS + _TERMS + 1) * CLASSES + _REAL,
            naive=partial(naive, problem),
            engine=partial(engine, problem),
            students=(1, 4, 16, 64),
            short=(16,) if small else (),
            compiled=(16,) if small else (),
            dual=(1, 4, 16, 64),
            dual_compiled=(16,) if small else (),
            cpu=64 if small else 0,
            precisions=not small,
        )
    return found
