"""Kernels on a device: each checked against float64, then timed: ``python -m bench.gpu.kernels --out OUT/kernels``.

What fails its check is not timed. A time is the median of synchronised calls; beside it stand those of the reference,
eager and compiled, and of the separate library calls that one would write instead. On a CPU, where operators are their
references, it only shows that all of this runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.kernel_cases import CONVNET, SMALL, KernelCase, Operands, Sizes, all_cases, large, rounded
from bench.machine import describe_machine
from fastdistill.files import write_whole
from fastdistill.loop.peaks import synchronize
from fastdistill_kernels import reference
from fastdistill_kernels.roofline import Recorder

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}  # of the output's norm
_LEAST, _MOST = 3, 50  # timed calls
HEADS = ("kernel", "error", "ms", "GB/s", "TFLOP/s", "% of floor", "÷ reference", "÷ compiled", "÷ separate")


class Captured(TorchDispatchMode):
    """Keeps the operators that are called inside, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == "fastdistill":
            self.calls.append((func._opname, args, found))
        return found


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
    found, truth = (_tensors(called(case, given, precision)) for given in (operands, exact))
    return max(_apart([ours.cpu().double()], [theirs]) for ours, theirs in zip(found, truth, strict=True))


def _apart(found: list[Tensor], truth: list[Tensor]) -> float:
    """‖found − truth‖ / ‖truth‖ of tensors as one vector; infinite where anything is not finite."""
    pairs = list(zip(found, truth, strict=True))
    difference = sum(float(torch.linalg.vector_norm(ours.to(theirs.dtype) - theirs)) ** 2 for ours, theirs in pairs)
    scale = sum(float(torch.linalg.vector_norm(theirs)) ** 2 for theirs in truth)
    return (difference / max(scale, 1e-60)) ** 0.5 if difference < float("inf") else float("inf")


def _tensors(found: Any) -> list[Tensor]:
    return [
        leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.numel() and leaf.is_floating_point()
    ]


def seconds(compute: Callable[[], Any], device: torch.device, budget: float) -> float:
    """Median of synchronised calls within a budget of seconds, after two that warm up."""
    for _ in range(2):
        compute()
    synchronize(device)
    taken: list[float] = []
    while len(taken) < _LEAST or (sum(taken) < budget and len(taken) < _MOST):
        start = time.perf_counter()
        compute()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return median(taken)


def measured(case: KernelCase, precision: str, sizes: Sizes, device: torch.device, budget: float) -> dict[str, Any]:
    """Seconds of a case and of what it is compared with, and what it asks of the machine."""
    operands = large(case, sizes, precision, device)
    captured, recorder = Captured(), Recorder()
    with captured:
        called(case, operands, precision)
    with recorder:
        called(case, operands, precision)
    found: dict[str, Any] = {
        "flops": sum(call.cost.flops for call in recorder.calls),
        "bytes": sum(call.cost.bytes for call in recorder.calls),
        "seconds": seconds(lambda: called(case, operands, precision), device, budget),
    }
    functions = [(reference_of(name), arguments) for name, arguments, _ in captured.calls]
    with _products(precision):  # the same at this size, where addresses are long, though not against float64
        pairs = [
            (call[2], function(*arguments))
            for call, (function, arguments) in zip(captured.calls, functions, strict=True)
        ]
    found["apart"] = max(_apart(*map(_tensors, pair)) for pair in pairs)
    if found["apart"] > 2 * LIMITS[precision]:
        return {"apart": found["apart"], "failure": "unlike its reference at full size"}
    captured.calls.clear()
    del pairs
    others: dict[str, Callable[[], Any]] = {
        "reference": lambda: [function(*arguments) for function, arguments in functions]
    }
    if device.type == "cuda":
        compiled = [(torch.compile(function, dynamic=False), arguments) for function, arguments in functions]
        others["compiled"] = lambda: [function(*arguments) for function, arguments in compiled]
    if case.separate is not None:
        separate = case.separate
        others["separate"] = lambda: separate(*operands)
    for name, compute in others.items():
        with _products(precision):
            try:
                found[name] = seconds(compute, device, budget)
            except Exception as failure:  # it is only compared with: what it cannot do is part of the result
                found[name] = f"{type(failure).__name__}: {str(failure)[:200]}"
        torch._dynamo.reset()
    return found


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
    if "seconds" not in found:
        return [name, f"{found['error']:.1e}", found.get("failure", "not measured"), *[""] * (len(HEADS) - 3)]
    took, precision = found["seconds"], name.rsplit("/", 1)[1]
    floor = max(found["bytes"] / peaks["copy_bytes_per_s"], found["flops"] / _peak(peaks, precision))
    others = [found.get(other) for other in ("reference", "compiled", "separate")]
    ratios = [f"{value / took:.2f}" if isinstance(value, float) else ("fails" if value else "") for value in others]
    figures = (f"{took * 1e3:.3f}", f"{found['bytes'] / took / 1e9:.0f}", f"{found['flops'] / took / 1e12:.2f}")
    return [name, f"{found['error']:.1e}", *figures, f"{100 * floor / took:.0f}", *ratios]


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
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of calls for each time")
    parser.add_argument("--deadline", type=float, default=420.0, help="seconds after which nothing more is timed")
    parser.add_argument("--only", default="", help="part of the kernels' names")
    options = parser.parse_args()
    start, device = time.perf_counter(), torch.device(options.device)
    found: dict[str, Any] = {"machine": describe_machine(device) if options.out else {}, "kernels": {}}
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
                    one.update(measured(case, precision, sizes, device, options.budget))
                except torch.OutOfMemoryError:
                    one["failure"] = "no memory left"
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
