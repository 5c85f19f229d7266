"""The resolved plan of a run: everything that decides its bits beside the configuration and the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from fastdistill.config import RunConfig
from fastdistill.derivatives.plan import (
    Batching,
    Path,
    choose_batching,
    forward_cost,
    narrow_pays,
    refuse_what_cannot_compile,
    unsupported,
)
from fastdistill.loop.environment import memory_limit
from fastdistill.loop.memory import step_forecast
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import (
    DistributionConfig,
    ImplicitConfig,
    MatchingConfig,
    TrajectoryConfig,
    UnrolledConfig,
)
from fastdistill.students.ensemble import student_module

# Of all memory the machine has, not of what happens to be free: two processes with one configuration plan alike, and
# so give identical bits. The rest is for selections, the evaluation and other programs.
_SHARE = 0.6
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Switch:
    """The outer step from which on dual programs are compiled, and how students are batched then.

    Attributes:
        step: of the first compiled one.
        real: batching of real gradients.
        synthetic: batching of synthetic gradients and second-order products.
        training: batching of the students' own training.
    """

    step: int
    real: Batching
    synthetic: Batching
    training: Batching


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is computed; chosen once, kept in every checkpoint and reused on resume.

    Attributes:
        device: cpu or cuda.
        dtype: float32 or float64.
        threads: CPU threads.
        chunk: most students in memory at once.
        real: batching of real gradients.
        synthetic: batching of synthetic gradients and second-order products.
        training: batching of the students' own training.
        tf32: CUDA convolutions may round their inputs to TF32.
        torch_version: bits are promised within one version only.
        switch: to compiled programs, where a run makes one.
    """

    device: str
    dtype: str
    threads: int
    chunk: int
    real: Batching
    synthetic: Batching
    training: Batching
    tf32: bool
    torch_version: str
    switch: Switch | None = None

    def at(self, step: int) -> Plan:
        """What computes an outer step."""
        switch = self.switch
        if switch is None or step < switch.step:
            return self
        return replace(self, real=switch.real, synthetic=switch.synthetic, training=switch.training)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of `as_dict`."""
        switch = values.get("switch")
        read = None if switch is None else Switch(step=switch["step"], **_batchings(switch))
        return cls(**{**values, **_batchings(values), "switch": read})

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and images."""
        return _DTYPES[self.dtype]


def _batchings(values: dict[str, Any]) -> dict[str, Batching]:
    names = ("real", "synthetic", "training")
    return {name: Batching(**{**values[name], "path": Path(values[name]["path"])}) for name in names}


def resolve_device(name: str) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: for ``cuda`` where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for device cuda, found none: use --device cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def make_plan(
    config: RunConfig,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    sizes: Sizes | None = None,
    limit: int | None = None,
) -> Plan:
    """Resolves the plan of a configuration on this machine.

    All students are one chunk where a step of theirs is predicted to fit a share of the machine's memory; else halves
    of them, rounded up, are tried until one fits: K, K/2, K/4 … 1. ``config.chunk`` overrides this.

    Args:
        config: the run.
        shape: ``(D, H, W)`` of its images.
        num_classes: ``C``.
        sizes: how many real images there are; without, just enough for the real batches.
        limit: bytes of memory of the machine; measured when not given.

    Raises:
        ValueError: for a run to be compiled where there is nothing that compiles C++, or under an older torch; for TF32
            on a CPU.
    """
    device = resolve_device(config.device)
    refuse_what_cannot_compile(config.compile, device)
    if config.precision == "tf32" and device.type != "cuda":
        raise ValueError("expected a CUDA device for precision tf32, got a CPU: leave it out")
    drawn = 2 * _images(config, num_classes).real + config.ipc
    sizes = sizes or Sizes(shape=shape, classes=(drawn,) * num_classes, test=0)
    limit = memory_limit(device) if limit is None else limit
    students = config.students * config.runs
    for chunk in [min(config.chunk, students)] if config.chunk else halves(students):
        plan = _of_chunk(config, device, chunk, shape, num_classes)
        if chunk == 1 or config.chunk or step_forecast(config, plan, sizes) <= _SHARE * limit:
            break
    return switched(config, plan, shape, num_classes, step=0) if config.compile == "always" else plan


def switched(config: RunConfig, plan: Plan, shape: tuple[int, int, int], num_classes: int, *, step: int) -> Plan:
    """The plan with compiled programs from a step on; the same plan where there is nothing to compile."""
    batchings = _chosen(config, plan.chunk, shape, num_classes, compiled=True)
    if not any(batching.compiled for batching in batchings):
        return plan
    return replace(plan, switch=Switch(step=step, **batchings._asdict()))


def _of_chunk(
    config: RunConfig, device: torch.device, chunk: int, shape: tuple[int, int, int], num_classes: int
) -> Plan:
    chosen = _chosen(config, chunk, shape, num_classes, compiled=False)
    return Plan(
        device=device.type,
        dtype=config.dtype,
        threads=config.threads or torch.get_num_threads(),
        chunk=chunk,
        real=chosen.real,
        synthetic=chosen.synthetic,
        training=chosen.training,
        tf32={"float32": False, "tf32": True}.get(config.precision, torch.backends.cudnn.allow_tf32),
        torch_version=torch.__version__,
    )


def _chosen(
    config: RunConfig, chunk: int, shape: tuple[int, int, int], num_classes: int, *, compiled: bool
) -> _Batchings:
    device, images = resolve_device(config.device), _images(config, num_classes)
    cost = forward_cost(student_module(config.student, shape, num_classes), shape)
    cost = replace(cost, unsupported=outside_the_dual_program(config) or cost.unsupported)
    matching = isinstance(config.method, MatchingConfig)
    precision = config.precision
    if precision == "auto":
        narrow = matching and compiled and config.dtype == "float32" and narrow_pays(cost, device)
        precision = "bfloat16" if narrow else "float32"

    def batching(students: int, groups: int, images: int, frozen: bool) -> Batching:
        return choose_batching(
            cost,
            device,
            students=students,
            groups=groups,
            images=images,
            frozen=frozen,
            compiled=compiled,
            precision=precision,
        )

    return _Batchings(  # a student's buffers are frozen while gradients are matched
        real=batching(chunk, images.groups, images.real, matching),
        synthetic=batching(chunk, images.groups, images.synthetic, matching),
        training=batching(config.students * config.runs, 1, images.training, False),
    )


class _Batchings(NamedTuple):
    """Those of a plan, or of its switch."""

    real: Batching
    synthetic: Batching
    training: Batching


def derivatives(config: RunConfig, plan: Plan, shape: tuple[int, int, int], num_classes: int) -> str:
    """What a run says of how it differentiates students, and why."""
    if plan.synthetic.path is Path.DUAL:
        switch = plan.switch
        if switch is None or switch.step >= config.method.steps:
            return "derivatives by dual layers"
        narrow = ", products in bfloat16" if switch.real.precision == "bfloat16" else ""
        return f"derivatives by dual layers, compiled from step {switch.step} on{narrow}"
    why = outside_the_dual_program(config) or unsupported(student_module(config.student, shape, num_classes))
    if not why and plan.device != "cpu":
        why = "dual layers have not been measured on such a device"
    uncompiled = ", so nothing is compiled" if config.compile == "always" else ""
    return f"derivatives by torch.func{uncompiled}: {why or 'batch norm has the statistics of every batch'}"


def outside_the_dual_program(config: RunConfig) -> str:
    """Why a run differentiates students by ``torch.func`` whatever they are made of; empty where it does not."""
    method = config.method
    if config.derivatives == "functional":
        return "the configuration asks for torch.func"
    if isinstance(method, DistributionConfig):
        return "distribution matching has no second-order pass"
    if isinstance(method, ImplicitConfig) and method.curvature == "gauss_newton":
        return "the Gauss-Newton product differentiates logits"
    return ""


class _Images(NamedTuple):
    """Gradient groups of a method, and images of a (student, group) pair: real, synthetic and in training between."""

    groups: int
    real: int
    synthetic: int
    training: int


def _images(config: RunConfig, num_classes: int) -> _Images:
    method, synthetic = config.method, num_classes * config.ipc
    if isinstance(method, UnrolledConfig):
        batch = method.batch(num_classes, config.ipc)
        return _Images(1, method.real_batch, batch, batch)
    if isinstance(method, TrajectoryConfig):
        batch = min(method.batch or synthetic, synthetic)
        return _Images(1, batch, batch, batch)
    if isinstance(method, ImplicitConfig):
        return _Images(1, method.real_batch, synthetic, synthetic)
    if isinstance(method, DistributionConfig):  # the classes are one batch
        return _Images(1, num_classes * method.real_batch, synthetic, synthetic)
    groups = num_classes if method.per_class else 1
    pooled = num_classes // groups
    return _Images(groups, pooled * method.real_batch, pooled * config.ipc, min(synthetic, method.inner_batch))


def halves(count: int) -> list[int]:
    """A count, its half rounded up, the half of that … 1: at most ``log2(count) + 1`` halvings."""
    found = [count]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found
