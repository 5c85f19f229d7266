"""Kernels on a device: each checked against float64, then timed: ``python -m bench.gpu.kernels --out OUT/kernels``.

What fails a check is not timed: neither that of small operands nor, at full size, that of the first and the last
student. Times are the device's own (`bench.gpu.clock`); beside a kernel's stand those of the reference, eager and
compiled, of the separate library calls that one would write instead, in the layout that is faster, and of a copy that
moves as many bytes. On a CPU, where operators are their references, it only shows that all of this runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu.clock import copy_rate, seconds
from bench.kernel_cases import CONVNET, SMALL, KernelCase, Operands, Sizes, all_cases, large, rounded
from bench.machine import describe_machine
from fastdistill.files import write_whole
from fastdistill_kernels import reference
from fastdistill_kernels.roofline import Recorder

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}  # of the output's norm
HEADS = ("kernel", "error", "ms", "GB/s", "TFLOP/s", "% of floor", "÷ reference", "÷ compiled", "÷ separate")


class Captured(TorchDispatchMode):
    """Keeps the operators that are called inside, with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == "fastdistill":
            self.calls.append((func._opname, args))
        return found


class Referred(TorchDispatchMode):
    """Computes the operators that are called inside by their references, whatever device and dtype they are given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (reference_of(func._opname) if func.namespace == "fastdistill" else func)(*args, **(kwargs or {}))


def reference_of(operator: str) -> Callable[..., Any]:
    """The plain torch of an operator, which has its name.

    Raises:
        LookupError: where no file of the references has it.
    """
    for module in pkgutil.iter_modules(reference.__path__):
        found = getattr(importlib.import_module(f"{reference.__name__}.{module.name}"), operator, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise LookupError(f"expected a reference named {operator}, got none: name it as the operator is named")


def called(case: KernelCase, operands: Operands, precision: str) -> Any:
    """The operator's results."""
    return case.operator(*operands, **case.policy(precision))


def error(case: KernelCase, precision: str, device: torch.device) -> float:
    """The largest ‖found − truth‖ / ‖truth‖ of a case's results; infinite where anything is not finite."""
    operands, exact = rounded(case, SMALL, precision, device)
    found = called(case, operands, precision)
    with Referred():
        truth = called(case, exact, precision)
    return farthest(found, truth)


def error_at_ends(case: KernelCase, operands: Operands, precision: str) -> float:
    """The same of the first and the last student of large operands, whose addresses are the shortest and the longest.

    Students are independent of each other, so theirs are the results of the two alone, in float64 on the same device.
    """
    smooth = dataclasses.replace(case, operator=case.smooth or case.operator)
    students = len(operands[0])
    alone = [ends(operand, students) for operand in operands]
    exact = tuple(operand.double() if operand.is_floating_point() else operand for operand in alone)
    with Referred():
        truth = called(smooth, exact, precision)
    found = called(smooth, operands, precision)
    return farthest([ends(tensor, students) for tensor in _tensors(found)], truth)


def ends(tensor: Tensor, students: int) -> Tensor:
    """The first and the last student: of the first axis, or of the second where the first counts Adam's moments."""
    axis = 0 if len(tensor) == students else 1
    return tensor.index_select(axis, torch.tensor([0, students - 1], device=tensor.device))


def farthest(found: Any, truth: Any) -> float:
    """The largest distance of a tensor among results from its truth, as a share of the truth's norm."""
    return max(_apart(ours, theirs) for ours, theirs in zip(_tensors(found), _tensors(truth), strict=True))


def _apart(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖ in float64; infinite where anything is not finite."""
    truth = truth.double()
    difference = float(torch.linalg.vector_norm(found.to(truth.device).double() - truth))
    scale = float(torch.linalg.vector_norm(truth))
    return difference / max(scale, 1e-30) if difference < float("inf") else float("inf")


def _tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.numel()]


def measured(case: KernelCase, precision: str, sizes: Sizes, device: torch.device, budget: float) -> dict[str, Any]:
    """Seconds of a case and of what it is compared with, and what it asks of the machine."""
    operands = large(case, sizes, precision, device)
    found: dict[str, Any] = {"error_at_ends": error_at_ends(case, operands, precision)}
    if found["error_at_ends"] > LIMITS[precision]:
        return {**found, "failure": "wrong at full size"}
    captured, recorder = Captured(), Recorder()
    with captured:
        called(case, operands, precision)
    with recorder:
        called(case, operands, precision)
    moved = sum(call.cost.bytes for call in recorder.calls)
    found |= {
        "flops": sum(call.cost.flops for call in recorder.calls),
        "bytes": moved,
        "copy_bytes_per_s": copy_rate(moved, device, budget),
        "seconds": seconds(lambda: called(case, operands, precision), device, budget),
    }
    functions = [(reference_of(name), arguments) for name, arguments in captured.calls]
    others: dict[str, Callable[[], Any]] = {
        "reference": lambda: [function(*arguments) for function, arguments in functions]
    }
    if device.type == "cuda":
        compiled = [(torch.compile(function, dynamic=False), arguments) for function, arguments in functions]
        others["compiled"] = lambda: [function(*arguments) for function, arguments in compiled]
    for name, compute in others.items():
        with _products(precision):
            found[name] = _attempt(partial(seconds, compute, device, budget))
        torch._dynamo.reset()
    if case.separate is not None:
        with _products(precision):
            layouts = separate_seconds(case, operands, device, budget)
        times = [took for took in layouts.values() if isinstance(took, float)]
        found |= {"separate": min(times) if times else next(iter(layouts.values())), "separate_layouts": layouts}
    return found


def separate_seconds(case: KernelCase, operands: Operands, device: torch.device, budget: float) -> dict[str, Any]:
    """Seconds of the separate calls in every layout, each folded only when its turn comes, for want of memory."""
    found: dict[str, Any] = {}
    ways = case.calls(operands)
    while True:
        way = _attempt(partial(next, ways, None))
        if way is None:
            return found
        if isinstance(way, str):  # it could not even be folded, and what would come next is gone
            return {**found, "folding": way}
        layout, compute = way
        found[layout] = _attempt(partial(seconds, compute, device, budget))
        del way, compute


def _attempt(make: Callable[[], Any]) -> Any:
    """What is made, or how it failed: it is only compared with, so what it cannot do is part of the result."""
    try:
        return make()
    except Exception as failure:
        return f"{type(failure).__name__}: {str(failure)[:200]}"


@contextlib.contextmanager
def _products(precision: str) -> Iterator[None]:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def row(name: str, found: dict[str, Any], peaks: dict[str, float]) -> list[str]:
    """A line of the table."""
    error = f"{max(found['error'], found.get('error_at_ends', 0.0)):.1e}"
    if "seconds" not in found:
        return [name, error, found.get("failure", "not measured"), *[""] * (len(HEADS) - 3)]
    took, precision = found["seconds"], name.rsplit("/", 1)[1]
    floor = max(found["bytes"] / found["copy_bytes_per_s"], found["flops"] / _peak(peaks, precision))
    others = [found.get(other) for other in ("reference", "compiled", "separate")]
    ratios = [f"{value / took:.2f}" if isinstance(value, float) else ("fails" if value else "") for value in others]
    figures = (f"{took * 1e3:.3f}", f"{found['bytes'] / took / 1e9:.0f}", f"{found['flops'] / took / 1e12:.2f}")
    return [name, error, *figures, f"{100 * floor / took:.0f}", *ratios]


def _peak(peaks: dict[str, float], precision: str) -> float:
    return peaks.get(f"matmul_{precision}_flops_per_s", peaks["matmul_float32_flops_per_s"])


def as_markdown(found: dict[str, Any]) -> str:
    """The table; ratios above 1 say how much slower the others are."""
    rows = [row(name, one, found["machine"]["peaks"]) for name, one in found["kernels"].items()]
    lines = [" | ".join(cells) for cells in (HEADS, ["---"] * len(HEADS), *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def main() -> int:
    """Writes ``OUT.json`` and ``OUT.md``; returns 1 where a kernel is wrong or there was no time for all."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.kernels")
    parser.add_argument("--out", type=Path, help="files' name without ending; nothing is timed without it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--budget", type=float, help="seconds of calls for each time (default: 0.3, on a CPU few calls)"
    )
    parser.add_argument("--deadline", type=float, default=420.0, help="seconds after which nothing more is timed")
    parser.add_argument("--only", default="", help="part of the kernels' names")
    parser.add_argument("--addresses", default="not checked", help="what is known of them, kept beside the figures")
    options = parser.parse_args()
    start, device = time.perf_counter(), torch.device(options.device)
    budget = options.budget if options.budget is not None else 0.3 if device.type == "cuda" else 0.0
    machine = describe_machine(device) if options.out else {}
    found: dict[str, Any] = {"machine": machine, "addresses": options.addresses, "kernels": {}}
    for case in all_cases():
        for precision in case.precisions:
            name = f"{case.name}/{precision}"
            if options.only not in name:
                continue
            one: dict[str, Any] = {"error": error(case, precision, device), "limit": LIMITS[precision]}
            found["kernels"][name] = one
            if one["error"] > one["limit"]:
                one["failure"] = "wrong"
            elif time.perf_counter() - start > options.deadline:
                one["failure"] = "no time left"
            elif options.out:
                sizes = CONVNET if device.type == "cuda" else SMALL
                try:
                    one.update(measured(case, precision, sizes, device, budget))
                except torch.OutOfMemoryError:
                    one["failure"] = "no memory left"
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # maps of one case are no size that another's would fit into
            if options.out:
                write_whole(options.out.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    failures = [f"{name}: {one['failure']}" for name, one in found["kernels"].items() if "failure" in one]
    if options.out:
        write_whole(options.out.with_suffix(".md"), as_markdown(found).encode())
        print(as_markdown(found), end="")
    print(f"{len(found['kernels']) - len(failures)} kernels are right", *failures, sep="\n", file=sys.stderr)
    return int(bool(failures) or not found["kernels"])


if __name__ == "__main__":
    sys.exit(main())
