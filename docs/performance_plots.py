"""The plots of ``docs/performance.md``: speed-up against S, memory against T, the roofline, a timed real run.

Each is a function from what was measured to a picture, with the same bytes for the same figures. A picture carries the
digest of its figures, so that an old one is recognised under any version of matplotlib.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from docs.measurements import FUNCTIONAL, TEXTBOOK, Machine, Step, Training, usual_precision
from fastdistill.report.overlay import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGEST = "Comment"  # the key of a PNG's text
_WIDTH, _DPI = 7, 140  # inches; shown about 700 pixels wide
_MORE = ("0.55", "#8C564B", "#7A3E9D")  # beside the palette's seven
_MARKERS = ("h", "<", ">")
_PARTS = ("references", "data")
_REFERENCE = "0.35"
_HOLLOW = {"linestyle": "--", "markerfacecolor": "white", "markersize": 6}
# how an engine's lines differ from the workload's look
_LINES: Mapping[str, Mapping[str, Any]] = {
    FUNCTIONAL: {},
    "compiled": _HOLLOW,
    "dual": {"linewidth": 3},
    "dual-compiled": {**_HOLLOW, "linewidth": 3},
    "dual-auto": {**_HOLLOW, "linewidth": 3, "linestyle": ":"},
}
# every panel has few enough lines to be told apart
_PANELS: tuple[tuple[str, Callable[[Step], bool]], ...] = (
    ("8×8 images (digits)", lambda step: step.group not in _PARTS and step.problem.endswith("digits")),
    (
        "28×28 images (MNIST)",
        lambda step: step.group not in _PARTS and not step.problem.endswith(("digits", "cifar10")),
    ),
    ("32×32 images (CIFAR-10)", lambda step: step.group not in _PARTS and step.problem.endswith("cifar10")),
    ("parts of a step, by themselves", lambda step: step.group in _PARTS),
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture that can be drawn.

    Attributes:
        name: of its file.
        text: what it shows, for those who do not see it.
        figures: what is drawn.
        draw: draws it.
    """

    name: str
    text: str
    figures: Any
    draw: Callable[[Any], Figure]

    @property
    def digest(self) -> str:
        """Of the figures."""
        return hashlib.sha256(repr(self.figures).encode()).hexdigest()

    def png(self) -> bytes:
        """The picture, without dates or versions."""
        content = BytesIO()
        self.draw(self.figures).savefig(content, format="png", metadata={"Software": None, DIGEST: self.digest})
        return content.getvalue()


def plots_of(machine: Machine) -> dict[str, Plot]:
    """What can be drawn of a machine's results, by kind; what was not measured is left out."""
    found: dict[str, Plot] = {}

    def enter(kind: str, text: str, figures: Any, draw: Callable[[Any], Figure]) -> None:
        if figures:
            name = f"performance-{machine.name}-{kind}.png"
            found[kind] = Plot(name=name, text=f"{text}, {machine.hardware}", figures=figures, draw=draw)

    against = [step for step in usual_precision(machine.steps) if step.speedup]
    enter("students", "Times the textbook's speed against students S", against, draw_speedups)
    counted = [step for step in usual_precision(machine.steps) if not step.compiled and step.flops]
    enter("roofline", "Operations per second against operations per byte", counted, draw_roofline)
    for file, (_, trainings) in machine.trainings.items():
        name = file.removesuffix(".json")
        measured = [training for training in trainings if training.engine]
        enter(name, "Peak memory against the steps T of a training", measured, draw_memory)
    if machine.real:
        enter("real", "Accuracy against time of distilling", machine.real, draw_real)
    return found


def draw_speedups(steps: Sequence[Step]) -> Figure:
    """A panel for every kind of workload with a line for each: compiled dashed, dual thick."""
    panels = [(title, [step for step in steps if belongs(step)]) for title, belongs in _PANELS]
    panels = [(title, chosen) for title, chosen in panels if chosen]
    figure = _figure(3.3 * len(panels))
    for axes, (title, chosen) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        workloads = list(dict.fromkeys(step.workload for step in chosen))
        for workload, look in zip(workloads, _looks(len(workloads)), strict=True):
            label: dict[str, Any] = {"label": workload}
            for engine, changes in _LINES.items():
                if _drawn_line(axes, chosen, workload, engine, {**look, **changes, **label}):
                    label = {}
        for engine, changes in _LINES.items():
            if changes and any(step.engine == engine for step in chosen):
                axes.plot([], [], **{"marker": "o", "color": _REFERENCE, **changes, "label": engine})
        axes.axhline(1, color=_REFERENCE, linewidth=1)
        _logarithmic(axes, "x", sorted({step.students for step in chosen}))
        _logarithmic(axes, "y", _round_values([step.speedup or 1 for step in chosen] + [1.0]))
        axes.set(xlabel="students S", ylabel="times the textbook's speed", title=title)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    return figure


def draw_memory(trainings: Sequence[Training]) -> Figure:
    """A panel for every method: the engine's peak, its stored weights, the textbook's peak and the line through it."""
    figure = _figure(3.6)
    panels = figure.subplots(1, len(trainings), squeeze=False, sharey=True)[0]
    (engine, textbook, stored) = styles(3)
    for axes, training in zip(panels, trainings, strict=True):
        lengths = sorted({*training.engine, *training.textbook})
        beyond = [length for length in lengths if not training.textbook or length >= max(training.textbook)]
        drawn = [training.textbook_at(length) / 1e6 for length in beyond]
        axes.plot(beyond, drawn, color=textbook["color"], linestyle="--", linewidth=1.5, label="textbook, extrapolated")
        for name, look, peaks in (
            ("textbook, measured", textbook, training.textbook),
            ("engine", engine, training.engine),
            ("of that, stored weights", {**stored, "linestyle": ":"}, training.stored),
        ):
            axes.plot(list(peaks), [peak / 1e6 for peak in peaks.values()], label=name, **look)
        _logarithmic(axes, "x", lengths)
        axes.set_yscale("log")
        axes.set(xlabel="steps T", title=training.method)
        axes.grid(alpha=0.3)
    levels = [level for axes in panels for line in axes.lines for level in line.get_ydata() if math.isfinite(level)]
    _logarithmic(panels[0], "y", _round_values(levels, steps=(1,)))
    panels[0].set_ylabel("peak memory (MB)")
    handles, names = panels[0].get_legend_handles_labels()
    order = [names.index(name) for name in ("engine", "of that, stored weights", "textbook, measured")]
    order += [index for index in range(len(names)) if index not in order]
    chosen = [handles[index] for index in order], [names[index] for index in order]
    figure.legend(*chosen, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return figure


def draw_roofline(steps: Sequence[Step]) -> Figure:
    """Every case below the machine's two ceilings; circles grow with S."""
    figure = _figure(5.2)
    axes = figure.subplots()
    groups = list(dict.fromkeys(step.group for step in steps))
    colours = dict(zip(groups, (look["color"] for look in _looks(len(groups))), strict=True))
    most = max(step.students for step in steps)
    scale, unit = (1e12, "TFLOP/s") if max(step.peaks.flops for step in steps) > 1e13 else (1e9, "GFLOP/s")
    for step in steps:
        textbook = step.engine == TEXTBOOK
        axes.scatter(
            [step.flops / step.traffic],
            [step.flops / step.seconds / scale],
            s=28 if textbook else 18 + 70 * math.log2(step.students + 1) / math.log2(most + 1),
            marker="s" if textbook else "o",
            facecolors="white" if textbook else colours[step.group],
            edgecolors=colours[step.group] if textbook else "white",
            linewidths=1.4 if textbook else 0.6,
            zorder=3 if textbook else 2,
        )
    places, rates = [step.flops / step.traffic for step in steps], [step.flops / step.seconds for step in steps]
    # files measured one after the other have peaks of their own; the machine can do the best of them
    best = {
        precision: max(step.peaks.flops for step in steps if step.precision == precision)
        for precision in dict.fromkeys(step.precision for step in steps)
    }
    peaks = {flops: precision for precision, flops in best.items()}
    bandwidth = max(step.peaks.bandwidth for step in steps)
    ridge = max(peaks) / bandwidth
    left, right = min(places) / 1.6, max(1.6 * max(places), 8 * ridge)  # leaves room to name the ceilings
    for peak, precision in peaks.items():
        corner = peak / bandwidth
        axes.plot(
            [left, corner, right], [bandwidth * left / scale, peak / scale, peak / scale], color=_REFERENCE, zorder=1
        )
        said = f"{precision} product, {_three(peak / scale)} {unit}"
        end = (right, peak / scale)
        axes.annotate(said, end, (-5, -4), textcoords="offset points", ha="right", va="top", fontsize="small")
    _logarithmic(axes, "x", _round_values([left, right]))
    _logarithmic(axes, "y", _round_values([min(rates) / scale, max(peaks) / scale], steps=(1,)))
    axes.set(xlim=(left, right), ylim=(min(rates) / scale / 2, 2 * max(peaks) / scale))
    axes.set(xlabel="operations per byte (FLOP/B)", ylabel=f"{unit} reached")
    axes.grid(alpha=0.3)
    for group in groups:
        axes.scatter([], [], color=colours[group], label=group)
    axes.scatter([], [], marker="s", facecolors="white", edgecolors=_REFERENCE, label="textbook")
    axes.scatter([], [], s=18, color=_REFERENCE, label="S = 1")
    axes.scatter([], [], s=88, color=_REFERENCE, label=f"S = {most}")
    axes.plot([], [], color=_REFERENCE, label=f"copy, {_three(bandwidth / 1e9)} GB/s")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def draw_real(content: Mapping[str, Any]) -> Figure:
    """Mean accuracy with its standard deviation, and the goal as a level."""
    figure = _figure(3.4)
    axes = figure.subplots()
    rows = content["rows"]
    (look,) = styles(1)
    axes.errorbar(
        [row["seconds"] for row in rows],
        [100 * row["accuracy_mean"] for row in rows],
        yerr=[100 * row["accuracy_std"] for row in rows],
        capsize=3,
        **look,
    )
    goal = 100 * content["goal"]
    axes.axhline(goal, color=_REFERENCE, linestyle="--", linewidth=1, label=f"goal, {goal:.1f} %")
    axes.set(xlabel="time of distilling (s)", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # takes most of a second

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _drawn_line(axes: Axes, steps: Sequence[Step], workload: str, engine: str, look: Mapping[str, Any]) -> bool:
    chosen = sorted(
        (s.students, s.speedup) for s in steps if (s.workload, s.engine) == (workload, engine) and s.speedup
    )
    if chosen:
        axes.plot(*zip(*chosen, strict=True), **look)
    return bool(chosen)


def _looks(number: int) -> list[dict[str, Any]]:
    """Colours and markers, all different."""
    first = styles(7)
    others = [{**first[0], "color": colour, "marker": marker} for colour, marker in zip(_MORE, _MARKERS, strict=True)]
    palette = [*first, *others]
    rounds, lines = len(palette), ("-", "-.", ":")
    return [{**palette[index % rounds], "linestyle": lines[index // rounds % len(lines)]} for index in range(number)]


def _logarithmic(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    """A logarithmic scale that says its ticks as numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(list(ticks), [_three(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _round_values(values: Sequence[float], steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Round numbers from below the least value to above the largest."""
    least, most = min(values), max(values)
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    found = [step * 10.0**decade for decade in decades for step in steps]
    below = max((value for value in found if value <= least), default=found[0])
    above = min((value for value in found if value >= most), default=found[-1])
    return [value for value in found if below <= value <= above]


def _three(value: float) -> str:
    """Three figures, never in powers of ten."""
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"
