"""What a run says on stderr: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastdistill.progress import Advance, Silent

_LINE_EVERY_S = 10.0  # between plain lines of one stage


class PatientConsole(Console):
    """A console that falls silent, rather than ending the program, when nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        """Says nothing from now on."""
        self.quiet = True


class Talkative(Silent):
    """Shows stages on stderr."""

    def __init__(self) -> None:
        self._console = PatientConsole(file=sys.stderr)

    def say(self, text: str) -> None:
        """Prints one line."""
        with contextlib.suppress(OSError):  # a terminal that is gone is no reason to end a run
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar with the remaining time on a terminal, a line every ten seconds elsewhere."""
        if self._console.is_terminal:
            with Progress(
                TextColumn("{task.description:<34}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[remark]}"),
                console=self._console,
                speed_estimate_period=600,  # seconds: steps may take minutes, and the estimate should survive them
            ) as bar:
                task = bar.add_task(name, total=total, completed=done, remark="")
                yield lambda count, remark: bar.update(task, completed=count, remark=remark)
            return
        begin = time.monotonic()
        last = [begin]

        def line(count: int, remark: str) -> None:
            now = time.monotonic()
            if count < total and now - last[0] < _LINE_EVERY_S:
                return
            last[0] = now
            left = (now - begin) / max(1, count - done) * (total - count)
            self.say(f"{name}: {count}/{total}, {now - begin:.0f} s, about {left:.0f} s left {remark}".rstrip())

        yield line
