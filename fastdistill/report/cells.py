"""Tables whose rows a reader can sort: what is shown in a cell, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastdistill.report.formats import MISSING


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell.

    Attributes:
        text: what is shown.
        key: what it is sorted by, a number or a text; empty for the end, whichever the direction.
        note: said below the text, softly.
        href: where the text leads, such as ``#run-1``.
        look: how it is shown: ``strong``, ``missing`` or ``whole`` (in one line).
        share: length of a bar that stands for the number, in ``[0, 1]``.
        reference: draw that bar in the colour of what distilled images are compared with.
    """

    text: str
    key: str = ""
    note: str = ""
    href: str = ""
    look: str = ""
    share: float | None = None
    reference: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading.

    Attributes:
        name: of the column.
        numeric: align at the right.
    """

    name: str
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, each row as long as the headings.

    Attributes:
        label: what the table is, for readers who cannot see it.
        columns: the headings.
        rows: the cells.
    """

    label: str
    columns: tuple[Column, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"expected {len(self.columns)} cells in every row, got {len(row)}: give every heading a cell"
                )


def words(text: str, note: str = "", *, look: str = "") -> Cell:
    """A cell of text, sorted without regard to case."""
    return Cell(text=text, key=f"{text} {note}".strip().casefold(), note=note, look=look)


def figure(value: float | None, shown: Callable[[float], str], *, look: str = "") -> Cell:
    """A cell of a number, sorted by its value; not measured when there is none."""
    if value is None:
        return Cell(text=MISSING, look="missing")
    return Cell(text=shown(value), key=repr(value), look=look)
