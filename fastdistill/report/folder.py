"""What a run folder holds, read so that a damaged file is named and the rest is still shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastdistill.report.metrics import number, read_records, series

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
FAILED, MASKED = "failed: ", "masked "  # how the notes of a run log begin
_SHOWN = 5  # of a remark's steps or notes; the rest is counted
_STEP_PICTURE = re.compile(r"images-(\d{1,12})\.png")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run as its folder tells it; whatever is missing or damaged is empty.

    Attributes:
        path: the folder.
        config: ``config.yaml``.
        config_text: the same, as written.
        results: ``results.json``.
        environment: ``environment.json``.
        metrics: the records of ``metrics.jsonl``.
        evaluations: the records of ``evaluations.jsonl``, the judgements made later.
        images: a PNG file of the distilled images.
        images_step: the step of these images where they are not the last ones.
        curves: a PNG file of the run's course.
        damaged: the files that could not be read, and what of them.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    images: bytes = b""
    images_step: int | None = None
    curves: bytes = b""
    damaged: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name; the folder's where the configuration gives none."""
        return str(self.config.get("name") or self.path.name)

    @property
    def arms(self) -> list[Mapping[str, Any]]:
        """The arms of the final table."""
        arms = self.results.get("arms")
        return [arm for arm in arms if isinstance(arm, Mapping)] if isinstance(arms, list) else []

    @property
    def remarks(self) -> list[str]:
        """What is unfinished, failed, masked, damaged or to be known, as ``Word: sentence``; often nothing."""
        known = [self.results.get("note"), *(line.get("note") for line in self.evaluations)]
        notes = [f"Note: {note}" for note in dict.fromkeys(known) if note and isinstance(note, str)]
        damage = [f"Damaged and left out: {', '.join(self.damaged)}"] if self.damaged else []
        return [*self._state(), *self._masked(), *notes, *damage]

    def _state(self) -> list[str]:
        if self.results.get("judged", self.arms):
            return []
        if self.failure:
            return [f"Failed: {self.failure}"]
        if self.results:
            return ["Not judged: repeat the command of the run to test its images"]
        steps = part(self.config, "method").get("steps", "?")
        done = max((record["step"] for record in self.metrics), default=None)
        where = "no step is recorded" if done is None else f"step {done} of {steps} is the last one recorded"
        losses = [record["outer/loss"] for record in self.metrics if "outer/loss" in record]
        if losses and number(losses[-1]) is None:
            return [f"Failed: its last loss is not a finite number, {where}"]
        return [f"Unfinished: {where}"]

    @property
    def failure(self) -> str:
        """Why the run ended, where it has not gone on since."""
        last = max((i for i, record in enumerate(self.metrics) if "outer/loss" in record), default=-1)
        failures = [text for _, text in noted(self.metrics[last + 1 :]) if text.startswith(FAILED)]
        return failures[-1].removeprefix(FAILED).rstrip(".") if failures else ""

    def _masked(self) -> list[str]:
        steps, counts = series(self.metrics, "outer/masked")
        logged = [(f"{step:.0f}", int(count)) for step, count in zip(steps, counts, strict=True) if count > 0]
        notes = [(step, text) for step, text in noted(self.metrics) if text.startswith(MASKED)]
        said = [f"step {step}: {text.removeprefix(MASKED).rstrip('.')}" for step, text in notes]
        if logged:
            total, where = sum(count for _, count in logged), _few([step for step, _ in logged])
            said.insert(0, f"{total} students were not finite in the recorded steps ({where})")
        return [f"Masked: {_few(said, '; ')}"] if said else []


def noted(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """What was noted in words, and at which step; what a resumed run noted again counts once."""
    notes = ((record["step"], record.get("note")) for record in metrics)
    return list(dict.fromkeys((step, note) for step, note in notes if isinstance(note, str)))


def _few(texts: Sequence[str], between: str = ", ") -> str:
    shown = [*texts[:_SHOWN], *([f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else [])]
    return between.join(shown)


def read_run(path: Path) -> RunFolder:
    """Reads a run folder, finished or not.

    A file that cannot be understood is left out and named in ``damaged``, since the others may still be of use.

    Args:
        path: the folder.

    Raises:
        ValueError: if the folder has no ``config.yaml``, which every run writes first.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(f"expected the folder of a run, got {path} without a config.yaml: give runs/NAME")
    damaged: list[str] = []

    def read(name: str, parse: Callable[[str], Any]) -> Mapping[str, Any]:
        if not (path / name).is_file():
            return {}
        try:
            found = parse((path / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError, yaml.YAMLError):
            found = None
        if not isinstance(found, Mapping):
            damaged.append(name)
            return {}
        return found

    def records(name: str, needed: str = "") -> list[dict[str, Any]]:
        if not (path / name).is_file():
            return []
        found, lines = read_records(path / name, needed)
        if lines:
            shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
            damaged.append(f"{name} (line {shown})")
        return found

    def picture(file: Path) -> bytes:
        content = file.read_bytes() if file.is_file() else b""
        whole = content.startswith(_PNG) and content.endswith(_PNG_END)
        if content and not whole:
            damaged.append(file.name)
        return content if whole else b""

    images, step = picture(path / "images.png"), None
    if not images:
        taken = sorted(
            (int(match[1]), file) for file in path.iterdir() if (match := _STEP_PICTURE.fullmatch(file.name))
        )
        if taken:
            step, images = taken[-1][0], picture(taken[-1][1])
    return RunFolder(
        path=path,
        config=read("config.yaml", plain_yaml),
        config_text=(path / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        results=read("results.json", json.loads),
        environment=read("environment.json", json.loads),
        metrics=records("metrics.jsonl", "step"),
        evaluations=records("evaluations.jsonl"),
        images=images,
        images_step=step,
        curves=picture(path / "curves.png"),
        damaged=tuple(damaged),
    )


def plain_yaml(text: str) -> Any:
    """The content of a YAML file of plain values.

    Raises:
        ValueError, yaml.YAMLError, RecursionError: for anything else; the caller names the file.
    """
    # a few lines of nested aliases stand for more values than any memory holds, and a run writes none
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("expected plain values, got an alias: write the value out")
    return yaml.safe_load(text)


def part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A group of values; empty where there is none."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values by dotted name, as text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
