"""The run log: one JSON object a line, append-only."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from fastdistill.files import write_whole


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
            for line in path.read_text().splitlines():
                try:
                    values = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was killed while writing it
                if values["step"] <= step:
                    kept.append(line)
                    self._remember(values)
            write_whole(path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, time_s: float, values: dict[str, float]) -> None:
        """Appends the values of a step; ``time_s`` is the wall-clock time of the run."""
        self._remember(values)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "time_s": round(time_s, 3), **values}) + "\n")

    def median(self, name: str) -> float:
        """The median of everything written under a name."""
        return median(self._values[name])

    def _remember(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
