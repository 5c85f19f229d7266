"""What a comparison ends with: its table, its plots and its page, made from the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastdistill.comparison_config import ARMS
from fastdistill.files import write_whole
from fastdistill.report import facts
from fastdistill.report.cells import Cell, Column, Table, figure, words
from fastdistill.report.compare import write_comparison
from fastdistill.report.evaluations import accuracy
from fastdistill.report.folder import RunFolder, part, read_run
from fastdistill.report.formats import count, duration, megabytes
from fastdistill.report.overlay import ACCURACY, overlay
from fastdistill.report.sizes import size_plot

TIME_PLOT, SIZE_PLOT = "accuracy-time.png", "accuracy-size.png"
_BEST, _FAR = "distilled (best", 0.9  # an arm that used less of its time than this did not use it up
Score = Mapping[str, Any]  # with ``mean`` and ``std``, or ``failed``


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm of a comparison, or what arms are compared with.

    Attributes:
        name: of the arm or baseline.
        own: the score of the network that images were distilled for; empty where it was not measured.
        tests: the scores of the tests, by name.
        run: the arm's folder; None for a baseline.
        failed: why the arm has no scores; empty where it has.
    """

    name: str
    own: Score = field(default_factory=dict)
    tests: Mapping[str, Score] = field(default_factory=dict)
    run: RunFolder | None = None
    failed: str = ""

    @property
    def method(self) -> str:
        """The kind of the arm's method."""
        return "" if self.run is None else str(part(self.run.config, "method").get("kind", "?"))

    @property
    def decoder(self) -> str:
        """What the arm's images are made by: ``pixels``, or such as ``generator full-64``."""
        name = self._generator.get("architecture", "none")
        return "pixels" if name == "none" else f"generator {name}-{self._generator.get('width')}"

    @property
    def width(self) -> int | None:
        """The generator's width; None for pixels."""
        return None if self.decoder == "pixels" else int(self._generator["width"])

    @property
    def _generator(self) -> Mapping[str, Any]:
        return {} if self.run is None else part(self.run.config, "generator")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison as its folder tells it.

    Attributes:
        name: of the comparison.
        rows: its arms, in order, then random real images and the baselines.
        own: what the network is called that images were distilled for.
        tests: names of the tests.
        conditions: sentences about how each column was measured, and what is to be known of some arms.
    """

    name: str
    rows: tuple[Row, ...]
    own: str
    tests: tuple[str, ...]
    conditions: tuple[str, ...]


def read_comparison_folder(folder: Path) -> Comparison:
    """Reads a comparison's folder.

    Raises:
        ValueError: for a folder without one.
    """
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        results = json.loads((folder / "results.json").read_bytes())
        found, random_real = results["arms"], results["random_real"]
        tests, names = settings["tests"], tuple(settings["arms"])
        images = settings["images"]
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"expected the folder of a comparison at {folder}, got {type(error).__name__}: name one that fastdistill "
            "compare wrote"
        ) from error
    places = {name: folder / ARMS / name for name in names}
    runs = {name: read_run(place) for name, place in places.items() if (place / "config.yaml").exists()}
    rows = [
        Row(
            name=name,
            own=_own(runs.get(name), images),
            tests=found[name]["tests"],
            run=runs.get(name),
            failed=found[name].get("failed", ""),
        )
        for name in names
        if name in found
    ]
    sizes = list(dict.fromkeys(str(run.config.get("ipc")) for run in runs.values()))
    for ipc in sizes:
        arms = [facts.reference(run, facts.RANDOM) for run in runs.values() if str(run.config.get("ipc")) == ipc]
        judged = [arm for arm in arms if arm]  # more than one where arms are judged by networks of their own
        own, seen = judged[0] if len(judged) == 1 else {}, random_real.get(ipc, {})
        if own or seen:
            name = facts.RANDOM + (f", {ipc} a class" if len(sizes) > 1 else "")
            rows.append(Row(name=name, own=own, tests=seen))
    networks = list(dict.fromkeys(facts.architecture(run) for run in runs.values()))
    return Comparison(
        name=str(results["name"]),
        rows=(*rows, *_baselines(folder)),
        own=networks[0] if len(networks) == 1 else "its own network",
        tests=tuple(tests),
        conditions=tuple(_conditions(rows, tests, runs)),
    )


def _own(run: RunFolder | None, images: str) -> Score:
    """The score of the run's own judgement, of the images that the tests are of."""
    arms = [] if run is None else [arm for arm in run.arms if facts.is_distilled(arm)]
    best = [arm for arm in arms if str(arm.get("arm", "")).startswith(_BEST)]
    chosen = best if images == "best" and best else arms[:1]
    return chosen[0] if chosen else {}


def _baselines(folder: Path) -> list[Row]:
    """The baselines but random real images, which stand there already."""
    try:
        arms = json.loads((folder / "baselines" / "results.json").read_bytes())["arms"]
        found = [Row(name=_baseline(arm), own=arm) for arm in arms if arm["arm"] != facts.RANDOM]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return found


def _baseline(arm: Mapping[str, Any]) -> str:
    """The whole set is a bound only where networks are trained to the end, so its epochs are named."""
    name, epochs = str(arm["arm"]), arm.get("epochs")
    return f"{name}, {epochs} {'epoch' if epochs == 1 else 'epochs'}" if name.startswith(facts.WHOLE) else name


def _conditions(rows: Sequence[Row], tests: Mapping[str, Any], runs: Mapping[str, RunFolder]) -> list[str]:
    """How the columns were measured, and which arms' accuracies or times do not compare."""
    arms = [(row, row.run) for row in rows if row.run is not None]
    said = [
        _measured("The first column", [{"protocol": facts.protocol(run), **row.own} for row, run in arms if row.own])
    ]
    for name, settings in tests.items():
        said.append(_measured(name, [{**settings, **row.tests[name]} for row, _ in arms if name in row.tests]))
    protocols = dict.fromkeys(facts.protocol(run) for run in runs.values())
    if len(protocols) > 1:
        said.append(f"Arms are judged by different protocols ({', '.join(protocols)}) and do not compare.")
    for name, run in runs.items():
        seconds, taken = run.config.get("seconds"), facts.seconds(run)
        if seconds and taken is not None and taken < _FAR * seconds:
            said.append(f"{name} ended by its own steps after {duration(taken)} of {duration(seconds)}.")
    return [sentence for sentence in said if sentence]


def _measured(name: str, scores: Sequence[Score]) -> str:
    """By how many networks, what protocol and how many test images; empty where nothing was measured."""
    whole = [score for score in scores if "mean" in score]
    if not whole:
        return ""
    score = whole[0]
    length = f"{score['steps']} steps of the images' own" if score.get("steps") else f"{score.get('epochs')} epochs"
    tested = f", {score['test_images']} test images" if score.get("test_images") else ""
    networks = f"{score.get('students')} network" + ("" if score.get("students") == 1 else "s")
    protocol = f"protocol {score['protocol']}, " if "protocol" in score else ""
    return f"{name}: {networks}, {protocol}{length}{tested}."


def write_comparison_report(folder: Path) -> Path:
    """Writes ``table.md``, the plots and ``report.html`` into a comparison's folder, from the files in it.

    Returns:
        The page's path; the table's where no arm has begun.

    Raises:
        ValueError: for a folder without a comparison.
    """
    found = read_comparison_folder(folder)
    write_whole(folder / "table.md", markdown(found).encode())
    arms = [(row.name, row.run) for row in found.rows if row.run is not None]
    if not arms:
        return folder / "table.md"
    plots = []
    for name, picture, title in (
        (
            TIME_PLOT,
            overlay([(name, run.metrics) for name, run in arms], (ACCURACY,)),
            "Validation accuracy of the arms against step and time of distilling",
        ),
        (SIZE_PLOT, _sizes(found), "Test accuracy against the width of the generator"),
    ):
        if picture:
            write_whole(folder / name, picture)
            plots.append((picture, title))
    return write_comparison(
        [folder / ARMS / name for name, _ in arms],
        folder / "report.html",
        title=found.name,
        scores=_table(found),
        conditions=found.conditions,
        plots=plots,
    )


def _sizes(found: Comparison) -> bytes:
    """The plot against the generator's width."""
    scored = [row for row in found.rows if "mean" in row.own]
    points = [(row.method, row.width, row.own["mean"], row.own["std"]) for row in scored if row.run is not None]
    levels = [(row.name, row.own["mean"]) for row in scored if row.name == facts.RANDOM]
    return size_plot(points, levels, title=f"test accuracy of {found.own} (%)")


def markdown(found: Comparison) -> str:
    """The table of a comparison: accuracies in per cent ± a standard deviation over the networks, time and memory."""
    heading = ("trained on", found.own, *found.tests, "steps", "a step", "distilled in", "peak memory")
    lines = [_line(heading), _line(["---", *["---:"] * (len(heading) - 1)])]
    for row in found.rows:
        scores = [_percent(score) for score in _scores(found, row)]
        lines.append(_line([row.name + (" (failed)" if row.failed else ""), *scores, *_costs(row)]))
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in found.conditions), ""])


def _scores(found: Comparison, row: Row) -> list[Score]:
    return [row.own, *(row.tests.get(name, {}) for name in found.tests)]


def _costs(row: Row) -> list[str]:
    """Steps, time of a step, time in all and peak memory."""
    run = row.run
    if run is None:
        return [""] * 4
    seconds = duration(facts.step_seconds(run)), duration(facts.seconds(run))
    return [count(facts.steps(run)), *seconds, megabytes(facts.peak_mb(run))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(score: Score) -> str:
    """Without a deviation where there was one network."""
    if "mean" not in score:
        return "failed" if "failed" in score else ""
    shown = f"{100 * score['mean']:.1f}"
    return shown if score.get("students") == 1 else f"{shown} ± {100 * score['std']:.1f}"


def _table(found: Comparison) -> Table:
    """The same for the page."""
    columns = (
        *(Column(name=name, numeric=False) for name in ("trained on", "method", "images from")),
        *(Column(name=f"{name} (%)") for name in (found.own, *found.tests)),
        *(Column(name=name) for name in ("steps", "one step", "distillation", "peak memory")),
    )
    rows = [_cells(found, row) for row in found.rows]
    return Table(label="Accuracy, time and memory of every arm", columns=columns, rows=rows)


def _cells(found: Comparison, row: Row) -> tuple[Cell, ...]:
    run, empty = row.run, Cell(text="")
    shown = [_cell(score, look="" if index else "strong") for index, score in enumerate(_scores(found, row))]
    if run is None:
        return (words(row.name), words("real images"), empty, *shown, *[empty] * 4)
    return (
        words(row.name, f"failed: {row.failed}" if row.failed else ""),
        words(row.method),
        words(row.decoder),
        *shown,
        figure(facts.steps(run), count),
        figure(facts.step_seconds(run), duration),
        figure(facts.seconds(run), duration),
        figure(facts.peak_mb(run), megabytes),
    )


def _cell(score: Score, *, look: str) -> Cell:
    if "mean" not in score:
        return words("failed", str(score["failed"])) if "failed" in score else Cell(text="")
    return accuracy(score["mean"], None if score.get("students") == 1 else score["std"], look=look)
