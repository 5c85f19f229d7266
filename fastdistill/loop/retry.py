"""Running out of memory although the forecast fitted: the same again by a plan that holds less at once.

On CUDA an allocation that fails is an error and this ends at what fits. On the CPU an error only comes where memory is
not overcommitted; elsewhere the kernel ends the process, which is why a run is refused by its forecast there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from fastdistill.derivatives.plan import Batching
from fastdistill.failures import RunFailed
from fastdistill.loop.plan import Plan, Switch

_Outcome = TypeVar("_Outcome")
_Of = TypeVar("_Of", Plan, Switch)
_SIGNS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed: on CUDA a type of its own, on the CPU told by its text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def halved(plan: Plan) -> Plan | None:
    """The plan that holds about half as much at once: half the chunk and at most as many students to a program.

    With a chunk of one student, pieces of images are halved instead. None when nothing is left to halve. Its results
    differ from those of the plan before by rounding.
    """
    chunk = -(-plan.chunk // 2)

    def smaller(batching: Batching) -> Batching:
        if plan.chunk > 1:
            return replace(batching, students=min(batching.students, chunk))
        return replace(batching, piece=-(-batching.piece // 2), students=1, groups=-(-batching.groups // 2))

    def smaller_ones(of: _Of) -> _Of:
        return replace(of, real=smaller(of.real), synthetic=smaller(of.synthetic), training=smaller(of.training))

    switch = None if plan.switch is None else smaller_ones(plan.switch)
    half = replace(smaller_ones(plan), chunk=chunk, switch=switch)
    return None if half == plan else half


def retrying(plan: Plan, attempt: Callable[[Plan], _Outcome], say: Callable[[str], None]) -> tuple[Plan, _Outcome]:
    """Attempts something by a plan, and by halved ones while it runs out of memory.

    Args:
        plan: the first to try.
        attempt: must leave its inputs as they were when it fails.
        say: takes one sentence about every smaller plan.

    Returns:
        The plan that worked and what the attempt gave.

    Raises:
        RunFailed: when nothing is left to halve.
        Exception: the attempt's own, when it is no lack of memory.
    """
    while True:
        try:
            return plan, attempt(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = halved(plan)
            if smaller is None:
                raise RunFailed(
                    "expected enough memory for one image of one student at once, got none: free some, or lower "
                    "--method.real_batch, --ipc or --student.width under another --name"
                ) from error
        # behind the handler, since the error's traceback holds every tensor of the attempt
        plan = smaller
        if plan.device == "cuda":
            torch.cuda.empty_cache()
        say(f"out of memory: going on with chunks of {plan.chunk} students, {plan.real.piece} real images at once")
