"""The workloads that are measured, one file each: its problems, the textbook's step and the engine's."""

from __future__ import annotations

from bench.cases import Case
from bench.workloads import (
    data,
    distribution,
    evaluation,
    experts,
    implicit,
    matching,
    products,
    references,
    trajectory,
    unrolled,
)

__all__ = ["all_cases"]


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
        data,
    )
    found = [case for module in modules for case in module.cases()]
    names = {case.name: case for case in found}
    assert len(names) == len(found), "two cases have one name"
    return names
