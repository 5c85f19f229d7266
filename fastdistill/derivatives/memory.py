"""What a program will allocate and compute, found without doing either: its tensors live on the meta device.

A tensor counts from the operator that makes it until its storage is gone, whoever holds it: a variable, a list of
parts, autograd's graph, a functorch level. That is what the allocator of the real device is asked for; what an
operator takes and gives back inside one call (the convolution's workspace) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastdistill.derivatives.flops import flops

LARGE = 32 * 2**20  # bytes from which glibc always maps a block by itself and gives it back when it is freed


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a program holds, beyond the tensors it was given.

    Attributes:
        peak: most bytes at any moment.
        kept: bytes left when it is done: its result.
        course: for every new height that the blocks below ``LARGE`` reach together, that height and the most bytes that
            the other blocks take until the next; a process keeps the memory of small blocks when they go.
        flops: floating-point operations, see `flops`.
    """

    peak: int = 0
    kept: int = 0
    course: tuple[tuple[int, int], ...] = ()
    flops: int = 0

    @property
    def small(self) -> int:
        """Most bytes in blocks below ``LARGE``, at any moment."""
        return self.course[-1][0] if self.course else 0

    @property
    def large(self) -> int:
        """Most bytes in the other blocks, at any moment."""
        return max((large for _, large in self.course), default=0)

    @classmethod
    def of_blocks(cls, sizes: Iterable[int]) -> Footprint:
        """Blocks that are held together."""
        sizes = list(sizes)
        large = sum(size for size in sizes if size >= LARGE)
        return cls(peak=sum(sizes), kept=sum(sizes), course=((sum(sizes) - large, large),))

    @classmethod
    def in_turn(cls, programs: Sequence[Footprint]) -> Footprint:
        """Programs one after the other, of which only the last one's result is kept."""
        course: list[tuple[int, int]] = []
        for program in programs:
            for small, large in program.course:
                _climb(course, small, large)
        peak = max((program.peak for program in programs), default=0)
        return cls(
            peak=peak,
            kept=programs[-1].kept if programs else 0,
            course=tuple(course),
            flops=sum(program.flops for program in programs),
        )

    def above(self, blocks: Footprint) -> Footprint:
        """This while some blocks (`of_blocks`) are held."""
        return Footprint(
            peak=self.peak + blocks.peak,
            kept=self.kept + blocks.kept,
            course=tuple((small + blocks.small, large + blocks.large) for small, large in self.course or ((0, 0),)),
            flops=self.flops,
        )

    def times(self, count: int) -> Footprint:
        """As many of these blocks (`of_blocks`)."""
        return Footprint(
            peak=self.peak * count,
            kept=self.kept * count,
            course=tuple((small * count, large * count) for small, large in self.course),
        )


def _climb(course: list[tuple[int, int]], small: int, large: int) -> None:
    """Enters a moment into a course."""
    if not course or small > course[-1][0]:
        course.append((small, large))
    elif large > course[-1][1]:
        course[-1] = (course[-1][0], large)


class Ledger(TorchDispatchMode):
    """Counts the storages that operators make while it is entered, and their arithmetic, on whatever device.

    A storage that an operator is given and did not come from one before is somebody else's and never counted.

    Attributes:
        flops: floating-point operations so far; whoever counts a part of the program by another ledger sets it back.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._live = {False: 0, True: 0}
        self._peak = 0
        self._course: list[tuple[int, int]] = []

    @property
    def footprint(self) -> Footprint:
        """What has been counted so far."""
        return Footprint(peak=self._peak, kept=sum(self._live.values()), course=tuple(self._course), flops=self.flops)

    def pass_through(self, program: Footprint) -> None:
        """Counts a program that came and went on top of what is held now, its result excluded."""
        self.flops += program.flops
        self._peak = max(self._peak, sum(self._live.values()) + program.peak)
        for small, large in program.course:
            _climb(self._course, self._live[False] + small, self._live[True] + large)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                self._note(given, owned=False)
        result = func(*args, **kwargs)
        self.flops += flops(func, args, kwargs, result)
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._note(made, owned=True)
        return result

    def _note(self, tensor: Tensor, *, owned: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if owned else 0
        large = size >= LARGE

        def gone(_: object) -> None:
            self._live[large] -= size
            del self._known[key]

        self._known[key] = (weakref.ref(storage, gone), size)
        if size:
            self._live[large] += size
            self._peak = max(self._peak, sum(self._live.values()))
            _climb(self._course, self._live[False], self._live[True])


class PhaseLedger(Ledger):
    """Counts as a `Ledger` does, by the innermost label that is open (`torch.profiler.record_function`).

    Attributes:
        peaks: most bytes held at any moment at which a label was the innermost, whoever made them; the empty name is
            for where there was none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._open: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "profiler":
            if "enter" in func.__name__:
                self._open.append(args[0])
            else:
                self._open.pop()
        name = self._open[-1] if self._open else ""
        self.peaks[name] = max(self.peaks.get(name, 0), sum(self._live.values()))
        return result


def trace(program: Callable[..., object], *inputs: Any) -> Footprint:
    """What a program would allocate on these inputs.

    Args:
        program: called once, on the meta device; it must not ask what is in a tensor.
        *inputs: tensors, or nests of them, wherever they are: only their shapes, strides and dtypes matter.
    """
    moved = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    ledger = Ledger()
    with ledger:
        result = program(*moved)
        found = ledger.footprint
    del result
    return found


def peak_bytes(program: Callable[..., object], *inputs: Any) -> int:
    """Most bytes that a program would hold at once beyond its inputs; arguments as `trace`."""
    return trace(program, *inputs).peak
