"""Data: real batches of every class for every student, and their siamese augmentation."""

from __future__ import annotations

import torch

from bench.cases import Case, Step, family
from bench.naive.augmentation import OPERATIONS, siamese
from bench.problems import CLASSES, MNIST, class_batches
from fastdistill.augmentation import dsa
from fastdistill.data.sampler import class_batches as keyed_batches

GROUP = "data"
_REAL = 64
_STRATEGY = "_".join(OPERATIONS)


def naive_batches(device: torch.device) -> Step:
    """The textbook's batches: of every class in turn, by a random order of all its images."""
    store, generator = MNIST.store(device), torch.Generator(device).manual_seed(0)
    return lambda: class_batches(store, _REAL, generator)


def batches(students: int, _primitive: str, device: torch.device) -> Step:
    """The engine's batches of ``S`` students."""
    store, indices = MNIST.store(device), torch.arange(students, device=device)
    return lambda: store.batch(keyed_batches(store.class_index, seed=0, step=0, students=indices, batch=_REAL))


def _images(students: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(students, CLASSES, _REAL, *MNIST.shape, generator=generator).to(device)


def naive_augmentation(device: torch.device) -> Step:
    """The textbook's augmentation: of every class in turn, one operation."""
    images, generator = _images(1, device)[0], torch.Generator(device).manual_seed(0)

    def step() -> object:
        drawn = torch.randint(len(OPERATIONS), (CLASSES,)).tolist()
        uniforms = torch.rand(CLASSES, 3, generator=generator, device=device)
        augment = siamese([OPERATIONS[number] for number in drawn], uniforms)
        return [augment(batch, label) for label, batch in enumerate(images)]

    return step


def augmentation(students: int, _primitive: str, device: torch.device) -> Step:
    """The engine's augmentation for ``S`` students."""
    images, indices = _images(students, device), torch.arange(students, device=device)
    strategy = dsa.Strategy.parse(_STRATEGY)

    def step() -> object:
        draw = dsa.draw_siamese(strategy, seed=0, step=0, students=indices, groups=CLASSES)
        return dsa.augment(images, strategy, draw)

    return step


def cases() -> list[Case]:
    """All of this workload."""
    students = (1, 4, 16)
    of_batches = family(GROUP, "batches", images=0, naive=naive_batches, engine=batches, students=students, short=(16,))
    of_dsa = family(
        GROUP, "dsa", images=0, naive=naive_augmentation, engine=augmentation, students=students, short=(4,)
    )
    return of_batches + of_dsa
