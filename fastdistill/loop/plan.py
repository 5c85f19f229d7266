"""The resolved plan of a run: everything that decides its bits beside the configuration and the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastdistill.config import RunConfig
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.plan import Batching, Cost, Path, choose_batching, forward_cost
from fastdistill.students.ensemble import student_module

_GRADIENT_BYTES = 2e9  # flat gradients of a chunk of students; a step holds about four per (student, group) pair
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


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

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of `as_dict`."""
        batchings = {
            name: Batching(**{**values[name], "path": Path(values[name]["path"])})
            for name in ("real", "synthetic", "training")
        }
        return cls(**{**values, **batchings})

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and images."""
        return _DTYPES[self.dtype]


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


def make_plan(config: RunConfig, shape: tuple[int, int, int], num_classes: int) -> Plan:
    """Resolves the plan of a configuration on this machine.

    Args:
        config: the run.
        shape: ``(D, H, W)`` of its images.
        num_classes: ``C``.
    """
    device = resolve_device(config.device)
    module = student_module(config.student, shape, num_classes)
    cost: Cost = forward_cost(module, shape)
    students = config.students * config.runs
    groups = num_classes if config.method.per_class else 1
    pooled = num_classes // groups
    per_student = 4 * groups * Layout.of(module).size * _DTYPES[config.dtype].itemsize
    chunk = config.chunk or max(1, int(_GRADIENT_BYTES / per_student))
    chunk = min(chunk, students)
    train_images = min(num_classes * config.ipc, config.method.inner_batch)
    return Plan(
        device=device.type,
        dtype=config.dtype,
        threads=config.threads or torch.get_num_threads(),
        chunk=chunk,
        real=choose_batching(cost, device, students=chunk, groups=groups, images=pooled * config.method.real_batch),
        synthetic=choose_batching(cost, device, students=chunk, groups=groups, images=pooled * config.ipc),
        training=choose_batching(cost, device, students=students, groups=1, images=train_images),
        tf32=torch.backends.cudnn.allow_tf32,
        torch_version=torch.__version__,
    )
