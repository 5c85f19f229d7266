"""The table of judgements made after a run's end: other architectures, other protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdistill.report import facts
from fastdistill.report.cells import Cell, Column, Table, figure, words
from fastdistill.report.folder import RunFolder
from fastdistill.report.formats import count, duration, with_spread
from fastdistill.report.metrics import number

# names of evaluations.jsonl that have a column of their own, or too many values for one
_KNOWN = ("architecture", "norm", "protocol", "epochs", "images", "seed", "mean", "std", "per_student", "seconds")
_REMARK = "note"  # said once above, for all lines
_RANDOM = ("random_real_mean", "random_real_std")


def evaluations_table(runs: Sequence[tuple[str, RunFolder]]) -> Table | None:
    """One row per line of the runs' ``evaluations.jsonl``; None where there is no line.

    Settings that only some lines name have columns too; the source of the test images is one where it is not the run's.

    Args:
        runs: what they are called on the page, and what they hold.
    """
    lines = [(label, _without_own_source(run, line)) for label, run in runs for line in run.evaluations]
    if not lines:
        return None
    others = dict.fromkeys(
        key
        for _, line in lines
        for key, value in line.items()
        if key not in (*_KNOWN, *_RANDOM, _REMARK) and isinstance(value, (str, int, float))
    )
    columns = (
        *(Column(name=name, numeric=False) for name in ("run", "architecture", "norm", "protocol", "images")),
        *(Column(name=name.replace("_", " ")) for name in others),
        *map(lambda name: Column(name=name), ("accuracy (%)", "random real (%)", "students", "epochs", "seed", "time")),
    )
    return Table(
        label="Evaluations made after the end of the runs",
        columns=columns,
        rows=[(words(label), *_row(line, tuple(others))) for label, line in lines],
    )


def _without_own_source(run: RunFolder, line: Mapping[str, Any]) -> Mapping[str, Any]:
    own = facts.data_set(run)
    return {key: value for key, value in line.items() if key != "source" or value != own}


def _row(line: Mapping[str, Any], others: Sequence[str]) -> tuple[Cell, ...]:
    students = line.get("per_student")
    return (
        *(words(str(line.get(key, "?"))) for key in ("architecture", "norm", "protocol", "images")),
        *(Cell(text=str(line[key]), key=str(line[key]).casefold()) if key in line else Cell(text="") for key in others),
        accuracy(line.get("mean"), line.get("std"), look="strong"),
        accuracy(*(line.get(key) for key in _RANDOM)),
        figure(float(len(students)) if isinstance(students, list) else None, count),
        figure(number(line.get("epochs")), count),
        figure(number(line.get("seed")), lambda seed: f"{seed:.0f}"),
        figure(number(line.get("seconds")), duration),
    )


def accuracy(mean: object, deviation: object, *, look: str = "") -> Cell:
    """A cell of a mean share and its standard deviation, in per cent."""
    spread = number(deviation)
    return figure(number(mean), lambda share: with_spread(share, spread), look=look)
