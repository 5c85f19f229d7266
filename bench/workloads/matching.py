"""Gradient matching: one update of one image a class by fresh students (DC; DSA with siamese augmentation)."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, Step, family
from bench.naive.augmentation import OPERATIONS, siamese
from bench.naive.matching import dc_step, image_optimizer
from bench.problems import CIFAR10, CLASSES, DIGITS, MNIST, PRIMITIVES, Problem, class_batches, engine_step
from fastdistill.method_configs import matching_recipe

GROUP = "matching"
# real images a class; those of digits are the design's, those of the others the papers'
REAL = {"digits": 64, "mnist": 256, "cifar10": 256}
_PROBLEMS = (("dc", DIGITS), ("dsa", DIGITS), ("dc", MNIST), ("dsa", MNIST), ("dc", CIFAR10), ("dsa", CIFAR10))
_CHUNK = 16  # more students of the large networks than that are more chunks


def naive(method: str, problem: Problem, device: torch.device) -> Step:
    """The textbook's update for one student: a fresh network, real batches class by class, a graph of the gradient."""
    generator = torch.Generator(device).manual_seed(0)
    store = problem.store(device)
    shape = (CLASSES, 1, *problem.shape)
    synthetic = torch.randn(shape, generator=generator, device=device).requires_grad_()
    optimizer = image_optimizer(synthetic)

    def step() -> object:
        network = problem.network().to(device)
        batches = class_batches(store, REAL[problem.name], generator)
        augment = None
        if method == "dsa":
            drawn = torch.randint(len(OPERATIONS), (CLASSES,)).tolist()
            uniforms = torch.rand(CLASSES, 3, generator=generator, device=device)
            augment = siamese([OPERATIONS[number] for number in drawn], uniforms)
        return dc_step(network, batches, synthetic, optimizer, augment=augment)

    return step


def engine(method: str, problem: Problem, students: int, primitive: str, device: torch.device) -> Step:
    """The engine's outer step without training of the students after it."""
    large = problem.name != "digits"
    return engine_step(
        problem,
        matching_recipe(method, 1, real_batch=REAL[problem.name], outer_loop=1, start="noise"),
        device,
        students=students,
        primitive=PRIMITIVES[primitive],
        chunk=min(students, _CHUNK) if large else students,
    )


def cases() -> list[Case]:
    """All of this workload."""
    found = []
    for method, problem in _PROBLEMS:
        small = problem.name == "digits"
        found += family(
            GROUP,
            f"{method}-{problem.name}",
            images=CLASSES * (REAL[problem.name] + 1),
            naive=partial(naive, method, problem),
            engine=partial(engine, method, problem),
            students=(1, 4, 16, 64),
            short=(1, 16) if small else (),
            compiled=(1, 4, 16) if small and method == "dc" else (),
            dual=(1, 4, 16, 64),
            short_dual=(16,) if small and method == "dc" else (),
            dual_compiled=((1, 4, 16, 64) if small else (1, 4)) if method == "dc" else (),
            dual_auto=(1, 4) if method == "dc" and not small else (),
            cpu={"digits": 64, "mnist": 4, "cifar10": 0}[problem.name],
            precisions=not small,
        )
    return found
