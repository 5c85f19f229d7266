"""The resolved plan of experts, and what they will need of memory and disk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.derivatives.plan import (
    Batching,
    Path,
    choose_batching,
    compiling_pays,
    forward_cost,
    refuse_what_cannot_compile,
    unsupported,
)
from fastdistill.derivatives.primitive import make_sketch
from fastdistill.evaluation.evaluate import store_fetch
from fastdistill.experts_config import ExpertsConfig
from fastdistill.loop.environment import memory_limit, release_freed_memory, resident_memory
from fastdistill.loop.experts_trainer import TEST_BLOCK, Trainer
from fastdistill.loop.memory import _COMPILER, _GAPS, _LATER, _LIBRARIES, _Bound, gigabytes
from fastdistill.loop.plan import halves, resolve_device
from fastdistill.loop.sizes import META, Sizes, Unseen
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import count_correct

_SHARE = 0.6  # of all memory the machine has, as for a run
_BATCHES = 3  # of an epoch that are counted: every further one holds the same


@dataclass(frozen=True, kw_only=True)
class ExpertsPlan:
    """How experts are computed; chosen once, kept with what is saved and reused on resume.

    Attributes:
        device: cpu or cuda.
        threads: CPU threads.
        chunk: experts that train together.
        training: batching of the training steps.
        testing: batching of the classification.
        tf32: CUDA convolutions may round their inputs to TF32.
        torch_version: bits are promised within one version only.
    """

    device: str
    threads: int
    chunk: int
    training: Batching
    testing: Batching
    tf32: bool
    torch_version: str

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExpertsPlan:
        """The inverse of `as_dict`."""
        batchings = {
            name: Batching(**{**values[name], "path": Path(values[name]["path"])}) for name in ("training", "testing")
        }
        return cls(**{**values, **batchings})

    def halved(self) -> ExpertsPlan | None:
        """The plan that holds about half as much at once; None when nothing is left to halve.

        The chunk stays, since what is saved belongs to it. Results differ from those of the plan before by rounding.
        """

        def smaller(batching: Batching) -> Batching:
            if batching.students > 1:
                return replace(batching, students=-(-batching.students // 2))
            return replace(batching, piece=-(-batching.piece // 2))

        half = replace(self, training=smaller(self.training), testing=smaller(self.testing))
        return None if half == self else half


def make_experts_plan(config: ExpertsConfig, sizes: Sizes, *, limit: int | None = None) -> ExpertsPlan:
    """Resolves the plan of some experts on this machine.

    Nothing is gained by more experts at once than one program takes, and what is saved after every epoch of a chunk
    would be saved more seldom; so a chunk is at most that, and halved until it fits a share of the machine's memory.
    ``config.chunk`` overrides this.

    Args:
        config: of the experts.
        sizes: of the real images.
        limit: bytes of memory of the machine; measured when not given.

    Raises:
        ValueError: for experts to be compiled where there is nothing that compiles C++, or under an older torch.
    """
    device = resolve_device(config.device)
    limit = memory_limit(device) if limit is None else limit
    cost = forward_cost(student_module(config.student, sizes.shape, len(sizes.classes)), sizes.shape)
    kept = sum(sizes.split(config.data.validation_fraction)[0])
    batch, tested = min(config.batch, kept), kept + sizes.test
    refuse_what_cannot_compile(config.compile, device)
    compiled = config.compile == "always" or (
        config.compile == "auto"
        and compiling_pays(cost, device, trained=config.count * config.epochs * kept, tested=config.count * tested)
    )

    def batching(students: int, images: int) -> Batching:
        return choose_batching(cost, device, students=students, groups=1, images=images, compiled=compiled)

    most = batching(config.count, batch).students
    process = _LIBRARIES + sizes.stored(sum(sizes.classes) + sizes.test) if device.type == "cpu" else 0
    for chunk in [min(config.chunk, config.count)] if config.chunk else halves(most):
        plan = ExpertsPlan(
            device=device.type,
            threads=config.threads or torch.get_num_threads(),
            chunk=chunk,
            training=batching(chunk, batch),
            testing=batching(chunk, TEST_BLOCK),
            tf32=torch.backends.cudnn.allow_tf32,
            torch_version=torch.__version__,
        )
        if config.chunk or process + needed_memory(config, plan, sizes) <= _SHARE * limit:
            break
    return plan


def needed_memory(config: ExpertsConfig, plan: ExpertsPlan, sizes: Sizes) -> int:
    """Bytes that experts need beyond a process that has read the real images; on CUDA, of the card."""
    kept, _ = sizes.split(config.data.validation_fraction)
    on_cpu = plan.device == "cpu"
    programs = _Bound(_GAPS if on_cpu else 0.0)(_footprint(config, plan, sizes))
    if on_cpu:
        return sizes.stored(sum(kept)) + _LATER + _COMPILER * plan.training.compiled + programs
    return sizes.stored(sum(kept) + sizes.test) + programs


def describe_memory(needed: int, available: int, device: torch.device) -> str:
    """What is said before the start, of bytes that are needed and available beyond those held already.

    Raises:
        ValueError: with the predicted bytes and what to lower, when the memory cannot hold them.
    """
    release_freed_memory()
    present = resident_memory() if device.type == "cpu" else 0
    if needed > available:
        raise ValueError(
            f"expected experts that fit the {gigabytes(available + present)} of memory that are free, got ones "
            f"predicted to need {gigabytes(needed + present)}: lower --chunk, --batch or --student.width"
        )
    return f"predicted peak memory {gigabytes(needed + present)} of {gigabytes(available + present)} available"


def describe_derivatives(config: ExpertsConfig, plan: ExpertsPlan, sizes: Sizes) -> str:
    """What is said before the start of how networks are differentiated, and why."""
    if plan.training.path is Path.DUAL:
        return f"derivatives by dual layers{', compiled' * plan.training.compiled}"
    why = unsupported(student_module(config.student, sizes.shape, len(sizes.classes)))
    uncompiled = ", so nothing is compiled" if config.compile == "always" else ""
    return f"derivatives by torch.func{uncompiled}: {why or 'dual layers have not been measured on such a device'}"


def describe_disk(size: int, missing: int, free: int) -> str:
    """What is said before the start of a file's bytes, those of them that the disk has yet to give, and its free ones.

    Raises:
        ValueError: with the bytes and what to lower, when the disk has too few.
    """
    if missing > free:
        raise ValueError(
            f"expected {gigabytes(missing)} of room on the disk for experts, got {gigabytes(free)}: free some, choose "
            "--storage bfloat16, or lower --count, --epochs or --student.width"
        )
    return f"the experts will take {gigabytes(size)} on the disk, where {gigabytes(free)} are free"


def _footprint(config: ExpertsConfig, plan: ExpertsPlan, sizes: Sizes) -> Footprint:
    """One epoch of a chunk, the copies that it is saved by, and its classification, counted on the meta device."""
    ledger, data = Ledger(), RunConfig(data=config.data)
    kept, _ = sizes.split(config.data.validation_fraction)
    train, test = Unseen.of(data, sizes, kept), Unseen.of(data, sizes, (sizes.test,))
    plain, fetched = store_fetch(train, torch.float32), 0

    def some(chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal fetched
        fetched += 1
        if fetched > _BATCHES:
            raise _Enough
        return plain(chosen)

    trainer = Trainer(
        config,
        train,
        plan.training,
        plan.testing,
        primitive=lambda module, batching: make_sketch(module, batching, ledger),
        fetch=some,
    )
    with ledger:
        chunk = trainer.start(torch.arange(plan.chunk, device=META))
        with suppress(_Enough):
            trainer.epoch(chunk, 1)
        tensors = [chunk.weights] if chunk.velocity is None else [chunk.weights, chunk.velocity]
        # of the epoch that ends, and twice for the file: the tensors' copies and its content
        copies = [tensor.clone() for tensor in tensors for _ in range(3)]
        del copies
        block = torch.arange(min(sizes.test, TEST_BLOCK), device=META)
        count_correct(trainer.tester, chunk.weights, {}, test.batch(block, torch.float32), test.labels[block])
        return ledger.footprint


class _Enough(Exception):
    """The next batch holds what the last did."""
