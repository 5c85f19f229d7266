"""One self-contained HTML page that compares runs, made from the files in their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdistill.files import write_whole
from fastdistill.report import facts
from fastdistill.report.cells import Cell, Column, Table, figure, words
from fastdistill.report.evaluations import accuracy, evaluations_table
from fastdistill.report.folder import RunFolder, flat, read_run
from fastdistill.report.formats import MISSING, count, duration, megabytes
from fastdistill.report.labels import run_labels
from fastdistill.report.metrics import number
from fastdistill.report.overlay import has_accuracy, overlay
from fastdistill.report.render import refuse_folder, render

Labelled = Sequence[tuple[str, RunFolder]]

_TEXTS = ("run", "data set", "architecture", "protocol", "hardware")
_COLUMNS = (
    "run",
    "accuracy (%)",
    "random real (%)",
    "gain (points)",
    "whole set (%)",
    "protocol",
    "architecture",
    "data set",
    "images / class",
    "students / step",
    "runs",
    "steps",
    "distillation",
    "one step",
    "peak memory",
    "predicted peak",
    "hardware",
)


def write_comparison(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str = "",
    scores: Table | None = None,
    conditions: Sequence[str] = (),
    plots: Sequence[tuple[bytes, str]] = (),
) -> Path:
    """Writes a page that compares runs; it needs no network to be read.

    A run that is unfinished or failed, or of which files are damaged, is shown with what it has and marked.

    Args:
        folders: of runs; one given twice counts once.
        output: the page.
        title: of the page; by default how many runs it compares.
        scores: a table that stands above all.
        conditions: sentences below it.
        plots: PNG files that stand below them, and what they show.

    Returns:
        The page's path.

    Raises:
        ValueError: if there is no folder, one of them has no ``config.yaml``, or ``output`` is a folder.
    """
    if not folders:
        raise ValueError("expected the folders of runs, got none: give runs/NAME")
    refuse_folder(output)
    found = [read_run(path) for path in {path.resolve(): path for path in folders}.values()]
    runs = list(zip(run_labels([(run.name, run.path) for run in found]), found, strict=True))
    courses = [(label, run.metrics) for label, run in runs]
    page = render(
        "compare.html",
        title=title or (f"Comparison of {len(runs)} runs" if len(runs) > 1 else runs[0][0]),
        scores=scores,
        conditions=conditions,
        plots=plots,
        runs=runs,
        remarks=[(label, remark) for label, run in runs for remark in run.remarks],
        incomparable=_incomparable(found),
        arms=_arms(runs),
        differences=_differences(runs),
        curves=overlay(courses),
        has_accuracy=has_accuracy(courses),
        evaluations=evaluations_table(runs),
        environments=[list(flat(run.environment)) for run in found],
    )
    write_whole(output, page)
    return output


def _incomparable(runs: Sequence[RunFolder]) -> str:
    """What the runs differ in that makes their accuracies incomparable; empty where nothing does."""
    asked: tuple[tuple[str, Callable[[RunFolder], str]], ...] = (
        ("data set", facts.data_set),
        ("protocol", facts.protocol),
        ("architecture", facts.architecture),
        ("layers", facts.layers),
    )
    known = [run for run in runs if run.config]
    found = [(name, list(dict.fromkeys(ask(run) for run in known))) for name, ask in asked]
    return "; ".join(f"{name} ({' / '.join(values)})" for name, values in found if len(values) > 1)


def _arms(runs: Labelled) -> Table:
    several = len({facts.layers(run) for _, run in runs if run.config}) > 1
    return Table(
        label="Accuracy, time and memory of every run",
        columns=tuple(Column(name=name, numeric=name not in _TEXTS) for name in _COLUMNS),
        rows=[
            _row(label, f"#run-{index}", run, arm, facts.layers(run) if several else "")
            for index, (label, run) in enumerate(runs, start=1)
            for arm in [arm for arm in run.arms if facts.is_distilled(arm)] or [{}]
        ],
    )


def _row(label: str, href: str, run: RunFolder, arm: Mapping[str, Any], layers: str) -> tuple[Cell, ...]:
    def setting(value: object) -> Cell:
        return figure(number(value), count)

    state = str(arm.get("arm", "")) or run.remarks[0].partition(":")[0] if arm or run.remarks else MISSING
    mean, random = number(arm.get("mean")), facts.reference(run, facts.RANDOM)
    base, whole = number(random.get("mean")), facts.reference(run, facts.WHOLE)
    gain = None if mean is None or base is None else 100 * (mean - base)
    return (
        Cell(text=label, key=f"{label} {state}".casefold(), href=href, note=state),
        accuracy(arm.get("mean"), arm.get("std"), look="strong"),
        accuracy(random.get("mean"), random.get("std")),
        figure(gain, lambda points: f"{points:+.2f}".replace("-", "\u2212")),
        accuracy(whole.get("mean"), whole.get("std")),
        words(facts.protocol(run)),
        words(facts.architecture(run), layers, look="whole"),
        words(facts.data_set(run)),
        *(setting(run.config.get(key)) for key in ("ipc", "students", "runs")),
        figure(facts.steps(run), count),
        figure(facts.seconds(run), duration),
        figure(facts.step_seconds(run), duration),
        figure(facts.peak_mb(run), megabytes),
        figure(facts.predicted_peak_mb(run), megabytes),
        words(facts.hardware(run)),
    )


def _differences(runs: Labelled) -> Table | None:
    """The configuration keys, but for the name, whose values are not the same in all runs; None for less than two."""
    known = [(label, dict(flat(run.config))) for label, run in runs if run.config]
    if len(known) < 2:
        return None
    keys = [key for key in dict.fromkeys(key for _, config in known for key in config) if key != "name"]
    return Table(
        label="Settings that differ",
        columns=tuple(Column(name=name, numeric=False) for name in ("setting", *(label for label, _ in known))),
        rows=[
            (words(key), *(words(config.get(key, "not set")) for _, config in known))
            for key in keys
            if len({config.get(key) for _, config in known}) > 1
        ],
    )
