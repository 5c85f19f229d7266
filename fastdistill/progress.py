"""What a run says while it runs: nothing here; see `talkative` for what people see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]  # units done so far, and a remark such as the loss


class Silent:
    """Says nothing; for use from Python."""

    def say(self, text: str) -> None:
        """Ignores a message."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A stage of ``total`` units of which ``done`` are done already."""
        yield lambda count, remark: None
