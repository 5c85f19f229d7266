"""Pictures of a run: its images as one sheet, its metrics as curves."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastdistill.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

logger = logging.getLogger(__name__)

_CELL = 80  # about the side of an enlarged image, in pixels
_WIDEST = 2000  # pixels of a sheet
_GAP = 2  # pixels between images
_RUN_GAP = 8  # pixels between runs beside each other
_PANEL_GAP = 24  # pixels between panels, and between runs below each other
_LABEL = 14  # font size of class names
_LONGEST_LABEL = 14  # characters of a class name that are shown
_ASPECT = 2.0  # width over height that panels of classes are arranged for


def image_grid(images: Tensor, labels: Tensor, *, class_names: Sequence[str] = ()) -> Image.Image:
    """One sheet of all images: a row per class, named at its left, in the order the images have.

    Images are enlarged by a whole factor without interpolation, so a pixel stays a square. Many short rows are folded
    into panels side by side. Runs stand beside each other in a row if there is room, else below each other.

    Args:
        images: pixel values in ``[0, 1]``, ``[N, D, H, W]`` or ``[R, N, D, H, W]`` of any float type; values outside
            are clamped, not-a-number is black. Of more than three channels the first three are shown, of two the mean.
        labels: integers ``[N]``, the classes, the same in every run.
        class_names: the name of class ``c`` at index ``c``; the number itself when there is none.

    Returns:
        An RGB picture at most 2000 pixels wide, unless a row of unenlarged images is wider.

    Raises:
        ValueError: if the shapes do not fit together or the pixels are integers.
    """
    if images.ndim not in (4, 5) or labels.shape != images.shape[-4:-3] or 0 in images.shape:
        raise ValueError(
            f"expected images [N, D, H, W] or [R, N, D, H, W] and labels [N], got {list(images.shape)} and "
            f"{list(labels.shape)}: give every image one label"
        )
    if not images.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], got {images.dtype}: divide bytes by 255")
    pixels = _rgb(images.detach().cpu().float().numpy())
    numbers = labels.detach().cpu().numpy()
    classes = np.unique(numbers)
    rows = [np.flatnonzero(numbers == number) for number in classes]
    names = [_short(class_names[c] if 0 <= c < len(class_names) else str(c)) for c in classes.tolist()]
    runs = pixels.reshape(-1, *pixels.shape[-4:])
    beside = len(runs) * max(map(len, rows)) * _CELL <= _WIDEST // 2
    sheets = [_sheet(group, rows, names) for group in ([runs] if beside else np.split(runs, len(runs)))]
    width, height = sheets[0].size
    picture = Image.new("RGB", (width, len(sheets) * (height + _PANEL_GAP) - _PANEL_GAP), "white")
    for index, sheet in enumerate(sheets):
        picture.paste(sheet, (0, index * (height + _PANEL_GAP)))
    return picture


def save_image_grid(path: Path, images: Tensor, labels: Tensor, *, class_names: Sequence[str] = ()) -> None:
    """Writes `image_grid` as a PNG file."""
    picture = image_grid(images, labels, class_names=class_names)
    content = BytesIO()
    picture.save(content, format="PNG")
    write_whole(path, content.getvalue())


def _rgb(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    channels = images.shape[-3]
    shown = images.mean(-3, keepdims=True) if channels == 2 else images[..., :3, :, :]
    levels = np.rint(np.clip(np.nan_to_num(shown), 0, 1) * 255).astype(np.uint8)
    return np.moveaxis(np.broadcast_to(levels, (*levels.shape[:-3], 3, *levels.shape[-2:])), -3, -1)


def _short(name: str) -> str:
    name = " ".join(name.split())  # a line break cannot be drawn in one line
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 2] + ".."


def _sheet(runs: npt.NDArray[np.uint8], rows: list[npt.NDArray[Any]], names: list[str]) -> Image.Image:
    """Some runs beside each other: in every row the images of a class, run after run."""
    font = ImageFont.load_default(_LABEL)
    margin = math.ceil(max(font.getlength(name) for name in names)) + 8
    columns = max(map(len, rows))
    height, width = runs.shape[2:4]
    factor = max(1, round(_CELL / max(height, width)))
    while factor > 1 and margin + len(runs) * columns * (factor * width + _GAP) > _WIDEST:
        factor -= 1
    cell_width, cell_height = factor * width + _GAP, factor * height + _GAP
    run_width = columns * cell_width + _RUN_GAP
    panel_width = margin + len(runs) * run_width - _RUN_GAP + _PANEL_GAP
    panels = _panels(len(rows), panel_width, cell_height)
    per_panel = len(rows) // panels

    sheet = Image.new("RGB", (panels * panel_width - _PANEL_GAP - _GAP, per_panel * cell_height - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (members, name) in enumerate(zip(rows, names, strict=True)):
        panel, row = divmod(index, per_panel)
        left, top = panel * panel_width + margin, row * cell_height
        draw.text((left - 8, top + factor * height // 2), name, fill="black", font=font, anchor="rm")
        for (run, column), member in np.ndenumerate(np.tile(members, (len(runs), 1))):
            enlarged = runs[run, member].repeat(factor, axis=0).repeat(factor, axis=1)
            sheet.paste(Image.fromarray(enlarged), (left + run * run_width + column * cell_width, top))
    return sheet


def _panels(rows: int, width: int, height: int) -> int:
    """The divisor of the number of rows whose sheet comes nearest to the wanted aspect and is not too wide."""
    fitting = [count for count in range(1, rows + 1) if rows % count == 0 and (count == 1 or count * width <= _WIDEST)]
    return min(fitting, key=lambda count: abs(math.log(count * width / (rows // count * height) / _ASPECT)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` file; a line that a killed run left unfinished is skipped.

    A resumed run continues behind such a line, so it may stand anywhere; inside the file it is logged.
    """
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif number < len(lines):
            logger.warning("%s line %d is not a record of metrics and is skipped", path, number)
    return records


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps, ascending, and values of a metric, infinite ones as not-a-number.

    Of a step that a resumed run repeated, the later value counts.
    """
    found = {record["step"]: record[key] for record in metrics if isinstance(record.get(key), (int, float))}
    steps = sorted(found)
    values = np.array([found[step] for step in steps], dtype=np.float64)
    return np.array(steps, dtype=np.float64), np.where(np.isfinite(values), values, math.nan)


def save_curves(path: Path, metrics: Sequence[Mapping[str, Any]], title: str) -> None:
    """Writes loss and validation accuracy against step, with wall-clock time above, as a PNG file.

    Bands and bars are one standard deviation. Accuracies are shares in ``[0, 1]``, shown in per cent.
    """
    from matplotlib.figure import Figure  # takes most of a second, and only runs that draw need it
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(title, parse_math=False)
    _curve(loss, metrics, "outer/loss", "outer/loss_std", 1.0, "C0")
    losses = series(metrics, "outer/loss")[1]
    if (losses > 0).any() and not (losses <= 0).any():
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(LogFormatter())
        loss.yaxis.set_minor_formatter(LogFormatter())
    loss.set(xlabel="step", ylabel="loss")
    _curve(accuracy, metrics, "validation/acc_mean", "validation/acc_std", 100.0, "C1")
    accuracy.set(xlabel="step", ylabel="validation accuracy (%)")
    last = max((record["step"] for record in metrics), default=1)
    for axes in (loss, accuracy):
        axes.set_xlim(0, 1.02 * max(last, 1))
        axes.grid(alpha=0.3)
        _wall_clock(axes, metrics)
    content = BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def _curve(axes: Axes, metrics: Sequence[Mapping[str, Any]], mean: str, spread: str, scale: float, colour: str) -> None:
    steps, values = series(metrics, mean)
    if not len(steps):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.5")
        axes.set_yticks([])
        return
    deviations = dict(zip(*(part.tolist() for part in series(metrics, spread)), strict=True))
    band = np.array([deviations.get(step, math.nan) for step in steps.tolist()])
    # a logarithmic axis has no place for what lies below zero
    below = band if (values <= 0).any() else np.minimum(band, 0.95 * values)
    few = len(steps) <= 30
    if few:  # the band of a lone point would be invisible
        axes.errorbar(steps, scale * values, scale * np.stack([below, band]), fmt="none", color=colour, capsize=3)
    else:
        limits = scale * (values - below), scale * (values + band)
        axes.fill_between(steps, *limits, color=colour, alpha=0.25, linewidth=0)
    axes.plot(steps, scale * values, color=colour, linewidth=1.5, marker="o" if few else "", markersize=4)


def _wall_clock(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    steps, seconds = series(metrics, "time_s")
    if not len(steps):
        return
    unit, name = next((pair for pair in ((3600.0, "h"), (60.0, "min")) if seconds[-1] >= 3 * pair[0]), (1.0, "s"))
    ticks = [tick for tick in axes.get_xticks() if steps[0] <= tick <= steps[-1]]
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    above.set_xticks(ticks, [f"{value:.3g}" for value in np.interp(ticks, steps, seconds) / unit])
    above.set_xlabel(f"wall clock ({name})", fontsize="small", color="0.4")
    above.tick_params(labelsize="small", colors="0.4", length=2)
