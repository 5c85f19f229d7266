"""Distribution matching: one update by the mean features of every class in random networks (Zhao and Bilen 2023)."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.convnet import ConvNet
from bench.naive.distribution import image_gradient
from bench.problems import CLASSES, DIGITS, MNIST, PRIMITIVES, Problem, class_batches, engine_step
from fastdistill.method_configs import DistributionConfig

GROUP = "distribution"
_REAL = {"digits": 64, "mnist": 256}
_RATE, _MOMENTUM = 1.0, 0.5


def naive(problem: Problem, device: torch.device) -> Step:
    """The textbook's update for one network."""
    generator = torch.Generator(device).manual_seed(0)
    store = problem.store(device)
    images = torch.randn(CLASSES, 1, *problem.shape, generator=generator, device=device)
    optimizer = torch.optim.SGD([images], lr=_RATE, momentum=_MOMENTUM)

    def step() -> object:
        network = problem.network().to(device)
        assert isinstance(network, ConvNet)
        images.grad = image_gradient(network, class_batches(store, _REAL[problem.name], generator), images)
        optimizer.step()
        return images.grad

    return step


def engine(problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's outer step."""
    recipe = DistributionConfig(
        real_batch=_REAL[problem.name],
        augmentation="none",
        start="noise",
        image_learning_rate=_RATE,
        image_momentum=_MOMENTUM,
    )
    return engine_step(problem, recipe, device, students=students, primitive=PRIMITIVES[primitive])


def cases() -> list[Case]:
    """All of this workload; its features are not compiled yet."""
    found = []
    for problem in (DIGITS, MNIST):
        small = problem.name == "digits"
        found += family(
            GROUP,
            f"dm-{problem.name}",
            images=CLASSES * (_REAL[problem.name] + 1),
            naive=partial(naive, problem),
            engine=partial(engine, problem),
            students=(1, 4, 16, 64),
            short=(16,) if small else (),
            cpu=64 if small else 4,
            precisions=not small,
        )
    return found
