"""Accuracy against the size of generators."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from fastdistill.report.overlay import styles

Point = tuple[str, int | None, float, float]  # method, width (None for pixels), mean, standard deviation


def size_plot(points: Sequence[Point], levels: Sequence[tuple[str, float]], *, title: str) -> bytes:
    """Accuracy against the generator's width as a PNG file: a line for every method, a level line for its pixels.

    Args:
        points: of the arms; accuracies are shares in ``[0, 1]``.
        levels: names and accuracies of what all are compared with.
        title: of the accuracy's axis.

    Returns:
        The picture; empty where no method has generators of two widths.
    """
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for method, width, mean, deviation in points:
        if width is not None:
            lines.setdefault(method, []).append((width, 100 * mean, 100 * deviation))
    if max((len({width for width, _, _ in line}) for line in lines.values()), default=0) < 2:
        return b""
    from matplotlib.figure import Figure  # takes most of a second

    picture = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = picture.subplots()
    looks = dict(zip(lines, styles(len(lines)), strict=True))
    for method, line in lines.items():
        widths, means, deviations = zip(*sorted(line), strict=True)
        axes.errorbar(widths, means, yerr=deviations, label=f"{method}, generator", capsize=3, **looks[method])
    for method, width, mean, _ in points:
        if width is None and method in looks:
            axes.axhline(
                100 * mean, color=looks[method]["color"], linestyle=":", linewidth=1.2, label=f"{method}, pixels"
            )
    for name, mean in levels:
        axes.axhline(100 * mean, color="0.5", linewidth=1.2, label=name)
    ticks = sorted({width for line in lines.values() for width, _, _ in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(width) for width in ticks])
    axes.minorticks_off()
    axes.set_xlabel("width of the generator")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = BytesIO()
    picture.savefig(content, format="png")
    return content.getvalue()
