"""The workloads that are measured, one file each: its problems, the textbook's step and the engine's."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import Case
from bench.workloads import (
    data,
    distribution,
    evaluation,
    experts,
    implicit,
    kernels,
    matching,
    products,
    references,
    trajectory,
    unrolled,
)

__all__ = ["all_cases", "chosen_cases"]


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    modules = (
        matching,
        unrolled,
        trajectory,
        implicit,
        distribution,
        evaluation,
        experts,
        products,
        references,
        kernels,
        data,
    )
    found = [case for module in modules for case in module.cases()]
    names = {case.name: case for case in found}
    assert len(names) == len(found), "two cases have one name"
    return names


def chosen_cases(which: str, device: str, only: Sequence[str] = ()) -> list[Case]:
    """The cases of a set, short or full, that run on a device and whose names contain any of some parts, or all."""
    return [
        case
        for name, case in all_cases().items()
        if (which == "full" or case.short) and case.runs_on(device) and (not only or any(part in name for part in only))
    ]
