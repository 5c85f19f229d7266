"""TensorBoard as a view of a run's metrics, where the package is installed; ``metrics.jsonl`` stays the record."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Board:
    """Event files of one start of a run.

    A view is not worth a run: when its files cannot be written, one warning is logged and nothing more is written.
    Whatever `write` or `picture` returned from has been handed to the operating system, so a killed run keeps it.

    Args:
        writer: of the event files.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer: SummaryWriter | None = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a step.

        Args:
            step: the outer step.
            values: by name; TensorBoard shows other signs than letters, digits and ``-./_`` as ``_``.
        """

        def scalars(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._attempt(scalars)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Writes a picture of a step."""

        def rgb(writer: SummaryWriter) -> None:
            writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")
            writer.flush()

        self._attempt(rgb)

    def close(self) -> None:
        """Ends the event file; nothing is written after it."""
        self._attempt(lambda writer: writer.close())
        self._writer = None

    def _attempt(self, action: Callable[[SummaryWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:
            self._writer = None
            logger.warning("TensorBoard's files cannot be written and are left as they are: %s", error)


def open_board(folder: Path, step: int) -> Board | None:
    """Opens event files under ``tensorboard/`` in a run folder.

    Args:
        folder: of the run.
        step: outer steps done. What an earlier start wrote of later steps is no longer shown, as these come again.

    Returns:
        The board; None where TensorBoard is not installed, does not work or cannot write there, the last two with a
        warning.
    """
    try:
        importlib.import_module("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        return Board(SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1))
    except ImportError:
        return None
    except Exception as error:  # an optional package fails to load in ways of its own, none of which may end a run
        logger.warning("TensorBoard is installed but cannot be used: %s", error)
        return None
