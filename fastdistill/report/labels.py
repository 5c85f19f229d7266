"""Names that tell the runs on one page apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def run_labels(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """A different label for every run: its name, and where runs share one, the shortest path that tells them apart.

    Args:
        runs: names and folders; no folder twice.
    """
    shared = Counter(name for name, _ in runs)
    paths = {name: [path.resolve() for other, path in runs if other == name] for name in shared}
    labels = [name if shared[name] == 1 else _told_apart(name, path.resolve(), paths[name]) for name, path in runs]
    if len(set(labels)) < len(labels):  # a name may look like another run's path
        return [f"{name} ({path.resolve()})" for name, path in runs]
    return labels


def _told_apart(name: str, path: Path, paths: Sequence[Path]) -> str:
    depth = next(d for d in range(1, len(path.parts) + 1) if sum(p.parts[-d:] == path.parts[-d:] for p in paths) == 1)
    shown = str(Path(*path.parts[-depth:]))
    return shown if Path(shown).name == name else f"{name} ({shown})"
