"""The images of a run as one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fastdistill.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

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
        labels: integers ``[N]``, the classes, the same in every run; or soft rows ``[N, C]`` or ``[R, N, C]`` of images
            that stand in the order of the classes, equally many of each.
        class_names: the name of class ``c`` at index ``c``; the number itself when there is none.

    Returns:
        An RGB picture at most 2000 pixels wide, unless a row of unenlarged images is wider.

    Raises:
        ValueError: if the shapes do not fit together or the pixels are integers.
    """
    numbers = _classes(labels)
    if images.ndim not in (4, 5) or numbers.shape != images.shape[-4:-3] or 0 in images.shape:
        raise ValueError(
            f"expected images [N, D, H, W] or [R, N, D, H, W] and labels [N], got {list(images.shape)} and "
            f"{list(labels.shape)}: give every image one label"
        )
    if not images.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], got {images.dtype}: divide bytes by 255")
    pixels = _rgb(images.detach().cpu().float().numpy())
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


def save_picture(path: Path, picture: Image.Image) -> None:
    """Writes a PNG file."""
    content = BytesIO()
    picture.save(content, format="PNG")
    write_whole(path, content.getvalue())


def _classes(labels: Tensor) -> npt.NDArray[Any]:
    if labels.is_floating_point() and labels.ndim in (2, 3):
        return np.arange(labels.shape[-2]) * labels.shape[-1] // max(labels.shape[-2], 1)
    return labels.detach().cpu().numpy()


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
