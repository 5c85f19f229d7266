"""The course of one run: loss and accuracy against step and time of distilling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdistill.files import write_whole
from fastdistill.report.metrics import Array, number, series, without_judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# blue and vermillion of Okabe and Ito, whose palette readers with any colour vision can tell apart
_LOSS, _ACCURACY = "#0072B2", "#D55E00"
_REFERENCES = {"distilled": (_ACCURACY, "--"), "random": ("0.35", ":"), "whole": ("0.35", "-.")}
_FEW = 30  # points that are marked one by one


def save_curves(
    path: Path, metrics: Sequence[Mapping[str, Any]], title: str, *, arms: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes `curves` as a PNG file."""
    write_whole(path, curves(metrics, title, arms=arms))


def curves(metrics: Sequence[Mapping[str, Any]], title: str, *, arms: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Loss and validation accuracy against step, with time of distilling above, as a PNG file.

    Bands and bars are one standard deviation. Accuracies are shares in ``[0, 1]``, shown in per cent.

    Args:
        metrics: records of ``metrics.jsonl``; those of the judgement after the last step are left out.
        title: of the picture.
        arms: of the final table; each test accuracy is a level line beside the validation accuracy.
    """
    from matplotlib.figure import Figure  # takes most of a second, and only runs that draw need it

    metrics = without_judgement(metrics)
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(title, parse_math=False)
    losses = _curve(loss, metrics, "outer/loss", "outer/loss_std", 1.0, _LOSS)
    if losses:
        scale_logarithmically(loss, [series(metrics, "outer/loss")[1]])
    loss.set(xlabel="step", ylabel="loss")
    validated = _curve(accuracy, metrics, "validation/acc_mean", "validation/acc_std", 100.0, _ACCURACY)
    tested = _levels(accuracy, arms)
    accuracy.set(xlabel="step", ylabel="accuracy (%)" if tested else "validation accuracy (%)")
    if tested:
        accuracy.legend(fontsize="small")
    last = max((record["step"] for record in metrics), default=1)
    for axes, drawn in ((loss, losses), (accuracy, validated or tested)):
        axes.set_xlim(0, 1.02 * max(last, 1))
        axes.grid(alpha=0.3)
        _wall_clock(axes, metrics)
        if not drawn:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.4")
            axes.set_yticks([])
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def scale_logarithmically(axes: Axes, values: Sequence[Array]) -> None:
    """Makes the value axis logarithmic with plain numbers, if all values are above zero."""
    from matplotlib.ticker import LogFormatter

    together = np.concatenate(values)
    if (together > 0).any() and not (together <= 0).any():
        axes.set_yscale("log")
        # within a decade, powers of ten alone would leave an axis with a label or none
        axes.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(1.5, 0.8)))
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.8)))


def draw_spread(axes: Axes, places: Array, values: Array, deviations: Array, colour: str) -> None:
    """Bars, or a band where there are many points, of one standard deviation to either side."""
    # a logarithmic axis has no place for what lies below zero
    below = deviations if (values <= 0).any() else np.minimum(deviations, 0.95 * values)
    if len(places) <= _FEW:  # the band of a lone point would be invisible
        axes.errorbar(places, values, np.stack([below, deviations]), fmt="none", color=colour, capsize=3)
    else:
        axes.fill_between(places, values - below, values + deviations, color=colour, alpha=0.2, linewidth=0)


def spread_of(metrics: Sequence[Mapping[str, Any]], key: str, steps: Array) -> Array:
    """The values of a metric at these steps, not-a-number where there is none."""
    found = dict(zip(*(part.tolist() for part in series(metrics, key)), strict=True))
    return np.array([found.get(step, np.nan) for step in steps.tolist()], dtype=np.float64)


def clock_unit(seconds: float) -> tuple[float, str]:
    """The unit of time, in seconds, that suits a span, and its name."""
    return next((pair for pair in ((3600.0, "h"), (60.0, "min")) if seconds >= 3 * pair[0]), (1.0, "s"))


def _curve(axes: Axes, metrics: Sequence[Mapping[str, Any]], mean: str, spread: str, scale: float, colour: str) -> bool:
    """Draws a metric; False where there is nothing to draw."""
    steps, values = series(metrics, mean)
    if not np.isfinite(values).any():
        return False
    draw_spread(axes, steps, scale * values, scale * spread_of(metrics, spread, steps), colour)
    marker = "o" if len(steps) <= _FEW else ""
    name = mean.partition("/")[0]
    axes.plot(steps, scale * values, color=colour, linewidth=1.5, marker=marker, markersize=4, label=name)
    return True


def _levels(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> bool:
    """Draws the test accuracy of every arm as a level line, equal ones once; False where there is none."""
    drawn: set[float] = set()
    for arm in arms:
        name, mean = str(arm.get("arm", "")), number(arm.get("mean"))
        if mean is None or mean in drawn:
            continue
        drawn.add(mean)
        colour, style = _REFERENCES.get(name.split(" ")[0], ("0.35", (0, (5, 1))))
        label = f"test, {name}: {100 * mean:.1f}".replace("$", r"\$")
        axes.axhline(100 * mean, color=colour, linestyle=style, linewidth=1.3, label=label)
    return bool(drawn)


def _wall_clock(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    steps, seconds = series(metrics, "time_s")
    steps, seconds = steps[np.isfinite(seconds)], np.maximum.accumulate(seconds[np.isfinite(seconds)])
    if not len(steps):
        return
    unit, name = clock_unit(seconds[-1])
    ticks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(seconds[0] / unit, seconds[-1] / unit)
    ticks = ticks[(ticks >= seconds[0] / unit) & (ticks <= seconds[-1] / unit)]
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    above.set_xticks(np.interp(unit * ticks, seconds, steps), [f"{tick:g}" for tick in ticks])
    above.set_xlabel(f"time of distilling ({name})", fontsize="small", color="0.35")
    above.tick_params(labelsize="small", colors="0.35", length=2)
