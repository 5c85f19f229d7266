"""What the workloads compute on: networks, random real images, the engine's step and the textbook's weights.

Images are random bytes in the shape of a data set, since neither time nor memory depends on what is on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.cases import Step
from bench.naive.convnet import ConvNet
from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.arrays import from_arrays
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Cost, choose_batching
from fastdistill.derivatives.primitive import make_primitive
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import Plan, make_plan
from fastdistill.loop.random_experts import RandomExperts
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import MethodConfig, TrajectoryConfig, UnrolledConfig
from fastdistill.students.architectures import build_student

CLASSES = 10
Primitive = Callable[[nn.Module, Batching], Functional]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A student and the images it is shown.

    Attributes:
        name: what it is called.
        shape: ``(D, H, W)``.
        width: of the ConvNet.
        architecture: convnet or lenet.
        depth: of the ConvNet.
        per_class: real images there are of each of ten classes.
    """

    name: str
    shape: tuple[int, int, int]
    width: int
    architecture: str = "convnet"
    depth: int = 3
    per_class: int = 300

    @property
    def student(self) -> StudentConfig:
        """As the engine is configured."""
        return StudentConfig(architecture=self.architecture, width=self.width, depth=self.depth)

    def network(self) -> nn.Module:
        """A fresh network of the textbook's."""
        channels, height, width = self.shape
        if self.architecture == "convnet":
            return ConvNet(channels, CLASSES, width=self.width, depth=self.depth, image_size=height)
        return build_student(
            self.architecture, channels=channels, height=height, width=width, num_classes=CLASSES, device="cpu"
        )

    def store(self, device: torch.device) -> ImageStore:
        """Random real images."""
        generator = torch.Generator().manual_seed(0)
        shape = (CLASSES * self.per_class, *self.shape)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return from_arrays(images, torch.arange(CLASSES).repeat_interleave(self.per_class)).to(device)


DIGITS = Problem(name="digits", shape=(1, 8, 8), width=16)
MNIST = Problem(name="mnist", shape=(1, 28, 28), width=128)
CIFAR10 = Problem(name="cifar10", shape=(3, 32, 32), width=128)


class Compiled(Functional):
    """The functional primitive with its two passes compiled whole, each for the shapes it meets."""

    def __init__(self, module: nn.Module, batching: Batching) -> None:
        super().__init__(module, batching)
        # what the layout computes once, under a lock on Python 3.11, which the compiler cannot enter
        self.layout.views(torch.zeros(self.layout.size))
        self.value_and_gradient = torch.compile(  # type: ignore[method-assign]
            super().value_and_gradient, fullgraph=True, dynamic=False
        )
        self.products = torch.compile(super().products, fullgraph=True, dynamic=False)  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A way to differentiate students, as a run's configuration asks for it.

    Attributes:
        make: makes the primitive of a batching.
        derivatives: auto or functional, as in a configuration.
        compile: whether dual programs are.
        precision: of their products.
    """

    make: Primitive = make_primitive
    derivatives: str = "auto"
    compile: bool = False
    precision: str = "float32"

    def batching(
        self, cost: Cost, device: torch.device, *, students: int, groups: int, images: int, compiled: bool = False
    ) -> Batching:
        """As a plan chooses it, but for what is compiled, which is measured."""
        if self.derivatives == "functional":
            cost = by_functional(cost)
        return choose_batching(
            cost,
            device,
            students=students,
            groups=groups,
            images=images,
            compiled=self.compile,
            precision="float32" if self.precision == "auto" else self.precision,
        )


def by_functional(cost: Cost) -> Cost:
    """The same for a batching that is for ``torch.func`` whatever the student is made of."""
    return replace(cost, unsupported="torch.func is measured")


FUNCTIONAL = Implementation(make=Functional, derivatives="functional")
PRIMITIVES: Mapping[str, Implementation] = {
    "functional": FUNCTIONAL,
    "compiled": Implementation(make=Compiled, derivatives="functional"),
    "dual": Implementation(),
    "dual-compiled": Implementation(compile=True),
    "dual-auto": Implementation(compile=True, precision="auto"),
}


def engine_step(
    problem: Problem,
    method: MethodConfig,
    device: torch.device,
    *,
    students: int,
    ipc: int = 1,
    primitive: Implementation = FUNCTIONAL,
    chunk: int = 0,
) -> Step:
    """The engine's outer step with fresh students: always the second one of a run, since the first does more.

    Args:
        problem: the student and its images.
        method: the recipe.
        device: where.
        students: ``S``.
        ipc: ``M``.
        primitive: how students are differentiated.
        chunk: most students in memory at once; all of them by default, whatever the machine's memory is, so that one
            program is compared everywhere.
    """
    own = isinstance(method, UnrolledConfig) and method.learn_rates
    config = RunConfig(
        ipc=ipc,
        students=students,
        student=problem.student,
        method=method,
        evaluation=EvaluationConfig(protocol="own" if own else "default"),
        device=device.type,
        chunk=chunk or students,
        derivatives=primitive.derivatives,
        compile="always" if primitive.compile else "never",
        precision=primitive.precision,
    )
    store = problem.store(device)
    plan: Plan = make_plan(config, store.shape, store.num_classes)
    experts = RandomExperts.of(config, store.shape, CLASSES) if isinstance(method, TrajectoryConfig) else None
    made = make_method(config, plan.at(0), store, primitive.make, experts=experts)
    state = replace(initial_state(config, plan, store), step=1)
    descent = make_descent(method)
    return lambda: outer_step(made, descent, state)


def class_batches(store: ImageStore, count: int, generator: torch.Generator) -> list[Tensor]:
    """As the textbook samples: of each class in turn, ``[B, D, H, W]`` of a random order of all its images."""
    batches = []
    for label in range(CLASSES):
        members = store.class_indices(label)
        order = torch.randperm(len(members), generator=generator, device=generator.device)
        batches.append(store.batch(members[order[:count]]))
    return batches


def any_batch(store: ImageStore, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, D, H, W]`` of any class, and their labels ``[B]``."""
    chosen = torch.randperm(len(store), generator=generator, device=generator.device)[:count]
    return store.batch(chosen), store.labels[chosen]


def fresh_weights(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights by name, without a graph."""
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
