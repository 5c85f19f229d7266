"""The courses of several runs in the same axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdistill.report.curves import clock_unit, draw_spread, scale_logarithmically, spread_of
from fastdistill.report.metrics import course, without_judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]

# Okabe and Ito's palette without yellow, which is too pale on white: told apart with any colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LONGEST = 48  # characters of a run's name in the legend
LOSS, ACCURACY, _SPREAD = "outer/loss", "validation/acc_mean", "validation/acc_std"


def overlay(runs: Runs, keys: Sequence[str] = (LOSS, ACCURACY)) -> bytes:
    """Loss and validation accuracy of runs, against step and against time of distilling, as a PNG file.

    Bars and bands of the accuracy are one standard deviation. What no run measured has no panel, and a run that
    measured nothing no line.

    Args:
        runs: names, and records of ``metrics.jsonl``; those of the judgement after the last step are left out.
        keys: which of the two to show.

    Returns:
        The picture; empty where nothing was measured.
    """
    runs = [(name, without_judgement(metrics)) for name, metrics in runs]
    runs = [(name, metrics) for name, metrics in runs if any(_measured(metrics, key) for key in keys)]
    shown = [key for key in keys if any(_measured(metrics, key) for _, metrics in runs)]
    if not shown:
        return b""
    from matplotlib.figure import Figure  # takes most of a second

    columns = min(3, len(runs))
    figure = Figure(figsize=(12, 4 * len(shown) + 0.25 * -(-len(runs) // columns)), dpi=120, layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False, sharex="col", sharey="row")
    ends = [_ends(metrics, key) for _, metrics in runs for key in shown]
    unit, unit_name = clock_unit(max(seconds for _, seconds in ends))
    for key, row in zip(shown, panels, strict=True):
        _panel(row[0], runs, key, seconds=None)
        _panel(row[1], runs, key, seconds=unit)
        row[0].set_ylabel("loss" if key == LOSS else "validation accuracy (%)")
    panels[-1, 0].set_xlabel("step")
    panels[-1, 0].set_xlim(0, 1.02 * max(1.0, *(step for step, _ in ends)))
    panels[-1, 1].set_xlabel(f"time of distilling ({unit_name})")
    panels[-1, 1].set_xlim(0, 1.02 * max(1e-3, *(seconds / unit for _, seconds in ends)))
    handles = [_handle(name, style) for (name, _), style in zip(runs, styles(len(runs)), strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def has_accuracy(runs: Runs) -> bool:
    """Whether any of the runs measured its validation accuracy."""
    return any(_measured(metrics, ACCURACY) for _, metrics in runs)


def _measured(metrics: Sequence[Mapping[str, Any]], key: str) -> bool:
    return bool(np.isfinite(course(metrics, key)[2]).any())


def styles(number: int) -> list[dict[str, Any]]:
    """A colour, line and marker for every run; the first seven differ in both colour and marker."""
    pairs = zip(cycle(_MARKERS), product(_LINES, _COLOURS), strict=False)
    return [
        {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 1.5}
        for marker, (line, colour) in islice(cycle(pairs), number)
    ]


def _handle(name: str, style: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2 - 2]}...{name[2 - _LONGEST // 2 :]}"
    # a leading underscore would hide the line, dollar signs would be read as mathematics
    return Line2D([], [], label=short.replace("$", r"\$").replace("\n", " "), **style)


def _ends(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """The last step and the last second of a metric."""
    steps, clock, _ = course(metrics, key)
    return float(steps.max(initial=0.0)), float(np.nanmax(clock, initial=0.0))


def _panel(axes: Axes, runs: Runs, key: str, *, seconds: float | None) -> None:
    """Draws a metric of all runs against time of distilling in units of some seconds, or against step where None."""
    found = [course(metrics, key) for _, metrics in runs]
    scale = 100.0 if key == ACCURACY else 1.0
    for (_, metrics), (steps, clock, values), style in zip(runs, found, styles(len(runs)), strict=True):
        places = steps if seconds is None else clock / seconds
        if key == ACCURACY and len(steps):
            draw_spread(axes, places, scale * values, scale * spread_of(metrics, _SPREAD, steps), style["color"])
        axes.plot(places, scale * values, **style, markevery=max(1, len(steps) // 12))
    if key == LOSS:
        scale_logarithmically(axes, [values for _, _, values in found])
    axes.grid(alpha=0.3)
