"""Compiling a run's dual programs where that pays back, while the run goes on.

A run begins as it is. After a few steps it is known how long all of them will take. Where that is long, a process of
its own compiles what the run needs, which stays in the compiler's cache on the disk, for this run and for later ones.
The run goes over to it at a step that is fixed there and then and kept in its plan: if the process is not done by then
it is waited for. So a run that is stopped and repeated goes over at the same step, to the same bits. Where compiled
steps turn out no faster, it goes back.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from fastdistill.config import RunConfig
from fastdistill.derivatives.plan import nothing_compiles
from fastdistill.loop.environment import available_memory
from fastdistill.loop.plan import Plan, switched
from fastdistill.loop.sizes import Sizes

_WATCHED = 3  # steps that are timed before a decision, the first of a start left out
_WORTH = (
    600.0  # seconds of steps left from which compiling pays: it takes a minute of one core and saves a third or more
)
_ALLOWED = 90.0  # seconds of steps until the switch
_GAIN = 0.95  # most of the time of a step before that one after the switch may take


class Compilation:
    """Decides for a run, starts what compiles, and judges it.

    Args:
        config: the run.
        sizes: of its images.
        predicted: peak bytes of the run, which the process that compiles takes once more.
        say: takes one sentence about every decision.
        worth: seconds of steps left from which it compiles.
        allowed: seconds of steps that compiling is given.
    """

    def __init__(
        self,
        config: RunConfig,
        sizes: Sizes,
        predicted: float,
        say: Callable[[str], None],
        *,
        worth: float = _WORTH,
        allowed: float = _ALLOWED,
    ) -> None:
        self._config, self._sizes, self._predicted, self._say = config, sizes, predicted, say
        self._worth, self._allowed = worth, allowed
        # a run of so many seconds would go less far for having been compiled in the middle of them
        self._decided = config.compile != "auto" or bool(config.seconds) or bool(nothing_compiles())
        self._before: list[float] = []
        self._after: list[float] = []
        self._steps = 0
        self._process: subprocess.Popen[bytes] | None = None

    def after_step(self, plan: Plan, step: int, seconds: float) -> Plan:
        """The plan to go on with.

        Args:
            plan: so far.
            step: how many steps are done.
            seconds: that the last of them took.
        """
        self._steps += 1
        compiled = plan.switch is not None and step > plan.switch.step
        if not compiled and self._steps > 1:  # the first step of a start does more
            self._before.append(seconds)
        if not self._decided and plan.switch is None and len(self._before) == _WATCHED:
            return self._decide(plan, step)
        if plan.switch is not None and step == plan.switch.step and step:
            return self._joined(plan)
        if compiled and self._before and plan.switch is not None and step > plan.switch.step + 1:
            self._after.append(seconds)
            if len(self._after) == _WATCHED:
                return self._judged(plan)
        return plan

    def close(self) -> None:
        """Ends a process that still compiles."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _decide(self, plan: Plan, step: int) -> Plan:
        self._decided = True
        each, left = median(self._before), self._config.method.steps - step
        if each * left < self._worth:
            return plan
        at = step + max(1, math.ceil(self._allowed / each))
        shape, classes = self._sizes.shape, len(self._sizes.classes)
        following = switched(self._config, plan, shape, classes, step=at) if at < self._config.method.steps else plan
        if following.switch is None:
            return plan
        self._say(f"about {each * left / 60:.0f} minutes of steps are left: compiling what they need until step {at}")
        if self._predicted < available_memory(torch.device(plan.device)):
            self._start(following)
        return following

    def _start(self, plan: Plan) -> None:
        request = {
            "config": self._config.as_dict(),
            "plan": plan.as_dict(),
            "shape": self._sizes.shape,
            "classes": self._sizes.split(self._config.data.validation_fraction)[0],
        }
        command = [sys.executable, "-m", "fastdistill.loop.precompile"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
        )
        asked, self._process.stdin = self._process.stdin, None  # or it would be flushed once more at the end
        assert asked is not None
        asked.write(json.dumps(request).encode())
        asked.close()

    def _joined(self, plan: Plan) -> Plan:
        """The plan once what compiles has ended; without a switch where it has failed."""
        if self._process is None:
            return plan
        if self._process.poll() is None:
            self._say("waiting for what compiles")
        said = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
        code, self._process = self._process.returncode, None
        if not code:
            return plan
        self._say(f"compiling failed, so the run goes on as it is ({said[-1] if said else f'exit code {code}'})")
        return self._never(plan)

    def _judged(self, plan: Plan) -> Plan:
        before, after = median(self._before), median(self._after)
        if after <= _GAIN * before:
            self._say(f"a compiled step takes {after:.3g} s, one before took {before:.3g} s")
            return plan
        self._say(f"a compiled step takes {after:.3g} s, one before took {before:.3g} s: going back")
        return self._never(plan)

    def _never(self, plan: Plan) -> Plan:
        """The plan with its switch behind the last step, which says that this has been decided."""
        return (
            plan if plan.switch is None else replace(plan, switch=replace(plan.switch, step=self._config.method.steps))
        )
