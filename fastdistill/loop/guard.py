"""The non-finite guard: names students that are masked, and stops a run with too many of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastdistill.failures import RunFailed
from fastdistill.loop.outer import Method, State, Step

_NAMED = 3  # students located at one look; the rest is counted
_WINDOW = 32  # steps whose states are kept for locating, at most


class Guard:
    """Looks at the flags of the steps since the last look.

    A look waits for the device, so it is taken where the run waits anyhow: at its log lines and before it saves. On the
    CPU nothing is waited for, and every step is looked at. Whenever the look comes, masked students have counted for
    nothing and a step with too many of them has not moved the images: the device decides both (`outer.outer_step`).

    Args:
        method: locates the layer.
        say: takes the message about newly masked students at a step.
    """

    def __init__(self, method: Method, say: Callable[[int, str], None]) -> None:
        self._method, self._say = method, say
        self._pending: list[tuple[State, Step]] = []
        self._masked: set[int] = set()

    def watch(self, before: State, step: Step) -> None:
        """Takes the findings of a step from the state before it."""
        self._pending.append((before, step))
        if before.device.type == "cpu" or len(self._pending) >= _WINDOW:
            self.look()

    def look(self) -> None:
        """Reads the flags.

        Raises:
            RunFailed: for the first step that was not sound, saying which and why.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        flags = torch.stack([torch.cat([step.finite, step.sound[None]]) for _, step in pending]).cpu()
        if bool(flags.all()):
            self._masked.clear()
            return
        for (before, _), (*finite, sound) in zip(pending, flags.tolist(), strict=True):
            masked = {student for student, fine in enumerate(finite) if not fine}
            new = sorted(masked - self._masked)
            self._masked = masked
            where = self._describe(before, new) if new else ""
            if not sound:
                raise RunFailed(
                    f"expected finite losses and gradients, got {len(masked)} of {len(finite)} students non-finite at "
                    f"step {before.step} ({where or 'and an update that would not be finite'}): the images "
                    "are kept as they were; lower a learning rate under another --name, or raise --max_masked_share"
                )
            if new:
                self._say(before.step, f"masked {len(new)} non-finite of {len(finite)} students ({where})")

    def _describe(self, before: State, new: list[int]) -> str:
        students = before.students or self._method.fresh(before.step)
        parts = []
        for student in new[:_NAMED]:
            where = self._method.locate(before.learned, students, before.step, student)
            parts.append(f"student {student}: {where or 'loss or second-order product'}")
        if len(new) > _NAMED:
            parts.append(f"and {len(new) - _NAMED} more")
        return "; ".join(parts)
