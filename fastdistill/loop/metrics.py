"""The run log: one JSON object a line, append-only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fastdistill.files import append, sync, write_whole


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; lines past the step that a run resumes at are dropped.

    Args:
        path: the file.
        step: outer steps done.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._values: dict[str, list[float]] = {}
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    continue  # the last line of a run that was killed while writing it
                if not isinstance(values, dict) or not isinstance(values.get("step"), int):
                    continue
                # a note is of the step that begins where its number says, and that step is repeated
                if values["step"] < step or (values["step"] == step and "note" not in values):
                    kept.append(line)
                    self._remember(values)
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Appends the values of a step; ``time_s`` is the time distilled so far."""
        self._remember(values)
        self._append({"step": step, "time_s": round(time_s, 3), **values})

    def note(self, step: int, time_s: float, text: str) -> None:
        """Appends something that happened at a step, in words."""
        self._append({"step": step, "time_s": round(time_s, 3), "note": text})

    def sync(self) -> None:
        """Makes everything appended so far survive a power loss."""
        if self._path.exists():
            sync(self._path)

    def median(self, name: str) -> float | None:
        """The median of everything written under a name; None where nothing was."""
        return median(self._values[name]) if name in self._values else None

    def highest(self, name: str) -> float:
        """The highest value written under a name; 0 where there is none."""
        return max(self._values.get(name, [0.0]))

    def _append(self, line: Mapping[str, Any]) -> None:
        append(self._path, f"{json.dumps(line)}\n".encode())

    def _remember(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._values.setdefault(name, []).append(value)
