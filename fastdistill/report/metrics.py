"""Reading a run's ``metrics.jsonl``: its records, and the course of one metric."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else that a damaged file may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def read_records(path: Path, needed: str = "") -> tuple[list[dict[str, Any]], list[int]]:
    """The JSON objects of a file with one a line, and the numbers of the lines that are none.

    What a killed run left unfinished in the last line is neither.

    Args:
        path: the file.
        needed: a name under which every object must have an integer.
    """
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    for position, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # a ValueError also for an integer of thousands of digits
            record = None
        if isinstance(record, dict) and (not needed or _is_integer(record.get(needed))):
            records.append(record)
        elif position < len(lines):
            damaged.append(position)
    return records, damaged


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and number(value) is not None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` file; a line that is none is skipped, and logged inside the file."""
    records, damaged = read_records(path, "step")
    for position in damaged:
        logger.warning("%s line %d is not a record of metrics and is skipped", path, position)
    return records


def without_judgement(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of the run itself; the judgement comes after its last step and would stretch its clock."""
    return [record for record in metrics if not any(str(name).startswith("eval/") for name in record)]


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array]:
    """Steps, ascending, and values of a metric, those that are no finite number as not-a-number.

    Of a step that a resumed run repeated, the later value counts.
    """
    steps, _, values = course(metrics, key)
    return steps, values


def course(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[Array, Array, Array]:
    """Steps, ascending, seconds of distilling (not-a-number where they are missing) and values of a metric."""
    found = {record["step"]: record for record in metrics if isinstance(record.get(key), (int, float))}
    steps = sorted(found)
    seconds, values = (
        np.array([math.nan if (value := number(found[step].get(name))) is None else value for step in steps])
        for name in ("time_s", key)
    )
    return np.array(steps, dtype=np.float64), seconds.astype(np.float64), values.astype(np.float64)
