"""One benchmark: a workload's problem, computed by one engine for so many students."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

Step = Callable[[], object]
ENGINES = ("naive", "functional", "compiled", "dual", "dual-compiled", "dual-auto")
COMPILED = ("compiled", "dual-compiled", "dual-auto")  # of whose steps only the operations are known
PRECISIONS = ("float32", "tf32", "bf16")
_MOST = 64  # students


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step that can be timed and counted.

    Attributes:
        group: the workload.
        problem: what of it is computed, sizes and method.
        engine: naive, functional, compiled, dual, dual-compiled or dual-auto.
        students: ``S``; the textbook has one at a time.
        images: images that one student's network is shown in a step, real and synthetic; 0 where there is no network.
        make: builds the step on a device; what it builds is not part of the step.
        short: belongs to the short set, which CI runs.
        precision: float32, tf32 or bf16 (by autocast).
        cuda: too large for anything but a GPU.
    """

    group: str
    problem: str
    engine: str
    students: int
    images: int
    make: Callable[[torch.device], Step]
    short: bool = False
    precision: str = "float32"
    cuda: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or self.precision not in PRECISIONS:
            raise ValueError(
                f"expected an engine of {', '.join(ENGINES)} and a precision of {', '.join(PRECISIONS)}, got "
                f"{self.engine!r} and {self.precision!r}: choose of these"
            )
        if self.engine == "naive" and self.students != 1:
            raise ValueError(f"expected one student of the textbook, got {self.students}: leave students at 1")

    @property
    def name(self) -> str:
        """What it is known by in results and baselines; no two cases share one."""
        precision = "" if self.precision == "float32" else f"-{self.precision}"
        return f"{self.group}/{self.problem}/{self.engine}{precision}/S{self.students}"

    @property
    def yardstick(self) -> str:
        """The name of the textbook's case of the same problem and precision."""
        precision = "" if self.precision == "float32" else f"-{self.precision}"
        return f"{self.group}/{self.problem}/naive{precision}/S1"

    @property
    def compiled(self) -> bool:
        """Whether its step is compiled code."""
        return self.engine in COMPILED

    def runs_on(self, device: str) -> bool:
        """Whether it is measured on a kind of device."""
        if device == "cuda":
            # there a plan is for torch.func whatever a student is made of, which has its own cases
            return not self.engine.startswith("dual")
        return not self.cuda and self.precision == "float32"


def family(
    group: str,
    problem: str,
    *,
    images: int,
    naive: Callable[[torch.device], Step],
    engine: Callable[[int, str, torch.device], Step],
    students: Sequence[int],
    short: Sequence[int] = (),
    compiled: Sequence[int] = (),
    short_compiled: Sequence[int] = (),
    dual: Sequence[int] = (),
    short_dual: Sequence[int] = (),
    dual_compiled: Sequence[int] = (),
    dual_auto: Sequence[int] = (),
    cpu: int = _MOST,
    precisions: bool = False,
) -> list[Case]:
    """The cases of one problem: the textbook's, and the engine's for every number of students.

    Args:
        group: the workload.
        problem: its problem.
        images: see `Case`.
        naive: makes the textbook's step.
        engine: makes the engine's step from ``S``, the primitive's name and the device.
        students: numbers of students.
        short: those of them in the short set, to which the textbook then belongs too.
        compiled: those of them that are also compiled.
        short_compiled: those of these in the short set.
        dual: those of them that are also dual programs.
        short_dual: those of these in the short set.
        dual_compiled: those of them that are also compiled dual programs.
        dual_auto: those of these whose products are also in the precision that a run would choose.
        cpu: most students on a CPU; 0 for a problem that is too large for one.
        precisions: on a GPU, measure it with TF32 too, as those compute by default, and the textbook in bfloat16.
    """
    first = Case(
        group=group,
        problem=problem,
        engine="naive",
        students=1,
        images=images,
        make=naive,
        short=bool(short),
        cuda=not cpu,
    )
    found = [first]
    engines: tuple[tuple[str, Sequence[int], Sequence[int]], ...] = (
        ("functional", students, short),
        ("compiled", compiled, short_compiled),
        ("dual", dual, short_dual),
        ("dual-compiled", dual_compiled, ()),
        ("dual-auto", dual_auto, ()),
    )
    for name, counts, some in engines:
        for count in counts:
            found.append(
                replace(
                    first,
                    engine=name,
                    students=count,
                    make=partial(engine, count, name),
                    short=count in some,
                    cuda=count > cpu,
                )
            )
    if not precisions:
        return found
    with_tf32 = [replace(case, precision="tf32", cuda=True, short=False) for case in found]
    return [*found, *with_tf32, replace(first, precision="bf16", cuda=True, short=False)]


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Float32 as it is, TF32 in convolutions and matrix products of a GPU, or bfloat16 by autocast."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "tf32"
    try:
        # a cache of cast weights would outlive the updates of a training inside
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
