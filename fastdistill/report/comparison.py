"""What a comparison ends with: its table, its plots and its page, made from the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
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
from fastdistill.report.metrics import number
from fastdistill.report.overlay import ACCURACY, overlay, styles

TIME_PLOT, SIZE_PLOT = "accuracy-time.png", "accuracy-size.png"
_BEST = "distilled (best"
Score = Mapping[str, Any]  # with ``mean`` and ``std``


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm of a comparison, or what arms are compared with.

    Attributes:
        name: of the arm or baseline.
        scores: by column, that of the network which images were distilled for first; without those not measured.
        run: the arm's folder; None for a baseline.
        failed: why the arm has no scores; empty where it has.
    """

    name: str
    scores: dict[str, Score] = field(default_factory=dict)
    run: RunFolder | None = None
    failed: str = ""

    @property
    def method(self) -> str:
        """The kind of the arm's method."""
        return "" if self.run is None else str(part(self.run.config, "method").get("kind", "?"))

    @property
    def decoder(self) -> str:
        """What the arm's images are made by: ``pixels``, or such as ``generator full-64``."""
        generator = {} if self.run is None else part(self.run.config, "generator")
        name = generator.get("architecture", "none")
        return "pixels" if name == "none" else f"generator {name}-{generator.get('width')}"

    @property
    def width(self) -> int | None:
        """The generator's width; None for pixels."""
        generator = {} if self.run is None else part(self.run.config, "generator")
        return None if generator.get("architecture", "none") == "none" else int(generator["width"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison as its folder tells it.

    Attributes:
        name: of the comparison.
        rows: its arms, in order, then random real images and the baselines.
        columns: of scores, that of the network which images were distilled for first.
    """

    name: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]


def read_comparison_folder(folder: Path) -> Comparison:
    """Reads a comparison's folder.

    Raises:
        ValueError: for a folder without one.
    """
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        results = json.loads((folder / "results.json").read_bytes())
        found, random_real = results["arms"], results["random_real"]
        tests, names = tuple(settings["tests"]), tuple(settings["arms"])
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"expected the folder of a comparison at {folder}, got {type(error).__name__}: name one that fastdistill "
            "compare wrote"
        ) from error
    places = {name: folder / ARMS / name for name in names}
    runs = {name: read_run(place) for name, place in places.items() if (place / "config.yaml").exists()}
    first = _title(runs)
    rows = []
    for name in (name for name in names if name in found):
        own = _own_score(runs.get(name), settings.get("images", "last"))
        scores = {**({first: own} if own else {}), **found[name]["tests"]}
        rows.append(Row(name=name, scores=scores, run=runs.get(name), failed=found[name].get("failed", "")))
    for ipc in dict.fromkeys([str(run.config.get("ipc")) for run in runs.values()]):
        of_run = [facts.reference(run, facts.RANDOM) for run in runs.values() if str(run.config.get("ipc")) == ipc]
        first_arms = [arm for arm in of_run if arm]
        scores = {**({first: first_arms[0]} if first_arms else {}), **random_real.get(ipc, {})}
        if scores:
            several = len({run.config.get("ipc") for run in runs.values()}) > 1
            rows.append(Row(name=f"random real, {ipc} a class" if several else "random real", scores=scores))
    return Comparison(name=str(results["name"]), rows=(*rows, *_baselines(folder, first)), columns=(first, *tests))


def _title(runs: Mapping[str, RunFolder]) -> str:
    """What the column of the students that images were distilled for is called."""
    names = list(dict.fromkeys(facts.architecture(run) for run in runs.values()))
    return names[0] if len(names) == 1 else "its own network"


def _own_score(run: RunFolder | None, images: str) -> Score:
    """The score of the run's own judgement."""
    arms = [] if run is None else [arm for arm in run.arms if facts.is_distilled(arm)]
    best = [arm for arm in arms if str(arm.get("arm", "")).startswith(_BEST)]
    chosen = best if images == "best" and best else arms[:1]
    return chosen[0] if chosen else {}


def _baselines(folder: Path, title: str) -> list[Row]:
    """The baselines but random real images, which stand there already."""
    try:
        arms = json.loads((folder / "baselines" / "results.json").read_bytes())["arms"]
        return [Row(name=arm["arm"], scores={title: arm}) for arm in arms if arm["arm"] != facts.RANDOM]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def write_comparison_report(folder: Path) -> Path:
    """Writes ``table.md``, the plots and ``report.html`` into a comparison's folder, from the files in it.

    Returns:
        The page's path.

    Raises:
        ValueError: for a folder without a comparison.
    """
    found = read_comparison_folder(folder)
    write_whole(folder / "table.md", markdown(found).encode())
    arms = [row for row in found.rows if row.run is not None]
    plots = []
    for name, picture, title in (
        (
            TIME_PLOT,
            overlay([(row.name, row.run.metrics) for row in arms if row.run], (ACCURACY,)),
            "Validation accuracy of the arms against step and time of distilling",
        ),
        (SIZE_PLOT, size_plot(found), "Test accuracy against the width of the generator"),
    ):
        if picture:
            write_whole(folder / name, picture)
            plots.append((picture, title))
    runs = [folder / ARMS / row.name for row in arms]
    return (
        write_comparison(runs, folder / "report.html", title=found.name, scores=_table(found), plots=plots)
        if runs
        else folder / "table.md"
    )


def markdown(found: Comparison) -> str:
    """The table of a comparison: accuracies in per cent ± a standard deviation over the students, time and memory."""
    heading = ("trained on", *found.columns, "steps", "a step", "distilled in", "peak memory")
    lines = [_line(heading), _line(["---", *["---:"] * (len(heading) - 1)])]
    for row in found.rows:
        scores = [_percent(row.scores.get(column)) for column in found.columns]
        run = row.run
        costs = (
            [""] * 4
            if run is None
            else [
                count(facts.steps(run)),
                duration(facts.step_seconds(run)),
                duration(facts.seconds(run)),
                megabytes(facts.peak_mb(run)),
            ]
        )
        lines.append(_line([row.name + (" (failed)" if row.failed else ""), *scores, *costs]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}"


def _table(found: Comparison) -> Table:
    """The same for the page."""
    names = ("trained on", "method", "images from")
    columns = (
        *(Column(name=name, numeric=False) for name in names),
        *(Column(name=f"{name} (%)") for name in found.columns),
        *(Column(name=name) for name in ("steps", "one step", "distillation", "peak memory")),
    )
    return Table(
        label="Accuracy, time and memory of every arm", columns=columns, rows=[_cells(found, row) for row in found.rows]
    )


def _cells(found: Comparison, row: Row) -> tuple[Cell, ...]:
    run = row.run
    scores = [row.scores.get(column) for column in found.columns]
    empty = Cell(text="")
    shown = [
        empty if score is None else accuracy(score.get("mean"), score.get("std"), look="" if index else "strong")
        for index, score in enumerate(scores)
    ]
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


def size_plot(found: Comparison) -> bytes:
    """Test accuracy against the generator's width as a PNG file, a line for every method; pixels are level lines.

    Returns:
        The picture; empty where no two widths are compared.
    """
    title = found.columns[0]
    scored = [
        row for row in found.rows if row.run is not None and number(row.scores.get(title, {}).get("mean")) is not None
    ]
    by_method: dict[str, list[Row]] = {}
    for row in scored:
        if row.width is not None:
            by_method.setdefault(f"{row.method}, {row.decoder.rpartition('-')[0]}", []).append(row)
    if max((len({row.width for row in rows}) for rows in by_method.values()), default=0) < 2:
        return b""
    from matplotlib.figure import Figure  # takes most of a second

    picture = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = picture.subplots()
    looks = styles(len(by_method))
    colours = {}
    for (name, rows), look in zip(by_method.items(), looks, strict=True):
        rows = sorted(rows, key=lambda row: row.width or 0)
        means, spreads = ([100 * row.scores[title][key] for row in rows] for key in ("mean", "std"))
        axes.errorbar([row.width or 0 for row in rows], means, yerr=spreads, label=name, capsize=3, **look)
        colours[rows[0].method] = look["color"]
    for row in scored:
        if row.width is None and row.method in colours:
            axes.axhline(
                100 * row.scores[title]["mean"],
                color=colours[row.method],
                linestyle=":",
                linewidth=1.2,
                label=f"{row.method}, pixels",
            )
    for row in found.rows:
        if row.name == facts.RANDOM and title in row.scores:
            axes.axhline(100 * row.scores[title]["mean"], color="0.5", linewidth=1.2, label=row.name)
    widths = sorted({row.width for row in scored if row.width})
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_xlabel("width of the generator")
    axes.set_ylabel(f"test accuracy of {title} (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = BytesIO()
    picture.savefig(content, format="png")
    return content.getvalue()
