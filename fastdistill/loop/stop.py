"""Stopping a run from outside without losing anything."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fastdistill.failures import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A request to stop: at once, or where a step is under way after the step.

    Args:
        say: told that a request will be followed after the step.

    Attributes:
        asked: what asked, such as SIGTERM; empty until then.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.asked, self._say = "", say
        self._deferred = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM for requests meanwhile; call it from the main thread."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets the block notice a request itself, by `asked`; a second request interrupts it all the same."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def ask(self, name: str) -> None:
        """Requests a stop.

        Raises:
            Stopped: unless a block defers it.
        """
        again, self.asked = bool(self.asked), name
        if again or not self._deferred:
            raise Stopped(name)
        self._say(f"{name}: finishing the step and saving; again stops at once")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)
