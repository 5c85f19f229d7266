"""Compiles every kernel for GPUs that are not there, and holds what comes out to a committed budget.

``python -m fastdistill_kernels.aot`` prints registers, spills, shared memory and tensor-core instructions of every
launch on every target, and ends with 3 where one exceeds ``kernels/budgets/triton-VERSION.json``, 4 where there is no
budget for this version of triton, 5 where it took more seconds than ``--limit`` allows, 0 otherwise. ``--write`` makes
the budget from what is found; ``--only WORD...`` takes the launches whose names contain one of the words. It needs a
process of its own: an interpreted kernel cannot be compiled. What triton compiled before is taken from its cache: only
with an empty ``TRITON_CACHE_DIR`` do the seconds say what everything takes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from fastdistill_kernels.gpu.launching import Capability, Launch, interpreted

FAMILIES = (
    "match",
    "convolution",
    "convolution_weight",
    "linear",
    "norm_act_pool",
    "first_block",
    "first_block_variants",
    "softmax_xent",
    "solvers",
    "inner_steps",
    "inner_adjoints",
    "dsa",
    "philox",
)
TARGETS = ("cuda-8.0", "cuda-9.0", "cuda-10.0", "gfx942")
# the instruction of the matrix units, and who must use it: a product in bfloat16 or TF32
_INSTRUCTIONS = {"cuda-8.0": "mma.sync", "cuda-9.0": "wgmma", "cuda-10.0": "tcgen05.mma", "gfx942": "v_mfma"}
_PRODUCTS = ("convolution", "linear", "first_block")
_LEAST_ROWS = 64  # that wgmma and tcgen05.mma take; products of fewer are the older instruction's
_WITH_STACK = ("philox/normal/",)  # CUDA's cosine in double precision keeps a table on the stack, which is no spill
_BUDGETS = Path(__file__).parents[1] / "budgets"
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
_LARGEST_I32 = 2**31 - 1
_ALIGNMENT = 16


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one compiled launch takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's local memory on CUDA; on AMD spilled registers of either kind, and bytes of a
            thread's scratch memory.
        shared: bytes of shared memory of a program.
        matrix: whether the matrix units' instruction of this target shows.
    """

    registers: int
    spilled: int
    shared: int
    matrix: bool


def target(name: str) -> tuple[GPUTarget, Capability]:
    """Triton's target and what `torch.cuda.get_device_capability` says there."""
    if name == "gfx942":
        return GPUTarget("hip", name, 64), (9, 4)
    major, minor = name.removeprefix("cuda-").split(".")
    return GPUTarget("cuda", int(major) * 10 + int(minor), 32), (int(major), int(minor))


def source(launch: Launch) -> ASTSource:
    """A launch as the compiler wants it, specialised as a run of it is: by sizes of one and multiples of sixteen."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    given = launch.arguments | launch.constants
    for index, name in enumerate(launch.kernel.arg_names):
        value = given[name]
        special = name not in launch.constants and not launch.kernel.params[index].do_not_specialize
        if name in launch.constants or value is None or (special and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = _type(value)
        if special and (isinstance(value, Tensor) or (isinstance(value, int) and value % _ALIGNMENT == 0)):
            attributes[(index,)] = [["tt.divisibility", _ALIGNMENT]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) <= _LARGEST_I32 else "i64"


def compile_for(launch: Launch, name: str) -> Resources:
    """Compiles a launch for a target and reads what it takes."""
    compiled = triton.compile(source(launch), target=target(name)[0], options=launch.options)
    if name == "gfx942":
        text = compiled.asm["amdgcn"]
        registers, spilled = _amd_usage(text)
    else:
        text = compiled.asm["ptx"]
        registers, spilled = _cuda_usage(compiled.asm["cubin"])
    return Resources(
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        matrix=any(instruction in text for instruction in _instructions(launch, name)),
    )


def _instructions(launch: Launch, name: str) -> list[str]:
    """The matrix units' instructions that will do for a launch on a target."""
    sides = (launch.constants[side] for side in ("BM", "BLOCK", "COLUMNS") if side in launch.constants)
    rows = next(sides, _LEAST_ROWS)
    few = rows < _LEAST_ROWS and name != "gfx942"
    return [_INSTRUCTIONS[name], *([_INSTRUCTIONS["cuda-8.0"]] if few else [])]


def _amd_usage(text: str) -> tuple[int, int]:
    """Registers and what does not fit them, from the metadata of an assembled kernel."""
    # a name that this version of the compiler does not write counts as nothing, but for the registers themselves
    vector, *spilled = (
        [int(count) for count in re.findall(rf"\.{key}:\s+(\d+)", text)]
        for key in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    )
    return max(vector), sum(max(counts, default=0) for counts in spilled)


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def launches(family: str, name: str) -> dict[str, list[Launch]]:
    """The launches of a family on a target, by name."""
    found: dict[str, list[Launch]] = importlib.import_module(f"fastdistill_kernels.gpu.{family}").variants(
        target(name)[1]
    )
    return found


def _work(job: tuple[str, str, str, int]) -> tuple[str, str, Resources | str]:
    family, name, variant, index = job
    label = f"{variant}/{index}"
    try:
        return label, name, compile_for(launches(family, name)[variant][index], name)
    except Exception as error:  # one that does not compile is a finding, and the others are still wanted
        return label, name, f"{type(error).__name__}: {str(error)[:2000]}"


def jobs(words: Sequence[str]) -> list[tuple[str, str, str, int]]:
    """Every (family, target, variant, launch) whose variant's name contains one of the words; all without words."""
    return [
        (family, name, variant, index)
        for family in FAMILIES
        for name in TARGETS
        for variant, found in launches(family, name).items()
        if not words or any(word in variant for word in words)
        for index in range(len(found))
    ]


def complaints(found: dict[str, dict[str, Resources]], budget: dict[str, Any], *, whole: bool) -> list[str]:
    """Where compiled launches exceed a budget or lack the matrix units, one sentence each.

    Args:
        found: by launch and target.
        budget: the same as committed.
        whole: all launches were compiled, so that one which only the budget knows is gone.
    """
    sentences = []
    for label, targets in found.items():
        for name, resources in targets.items():
            committed = budget.get(label, {}).get(name)
            if committed is None:
                sentences.append(f"{label} on {name} has no budget: write one")
                continue
            for key in ("registers", "spilled", "shared"):
                if getattr(resources, key) > committed[key]:
                    sentences.append(
                        f"{label} on {name} may take {committed[key]} of {key}, takes {getattr(resources, key)}: "
                        "make it leaner, or write a new budget and say why"
                    )
            if committed["matrix"] and not resources.matrix:
                sentences.append(f"{label} on {name} showed {_INSTRUCTIONS[name]} and does no more: choose other tiles")
    if whole:
        sentences += [f"{label} has a budget and is gone: write a new one" for label in budget.keys() - found.keys()]
    return sentences + faults(found)


def faults(found: dict[str, dict[str, Resources]]) -> list[str]:
    """What no budget may allow: spilled registers, and products that the matrix units do not compute."""
    sentences = []
    for label, targets in found.items():
        family, narrow = label.split("/")[0], {"bf16", "tf32"} & set(label.split("/"))
        for name, resources in targets.items():
            if resources.spilled and not label.startswith(_WITH_STACK):
                sentences.append(f"{label} on {name} spills {resources.spilled}: choose smaller tiles or more warps")
            if family in _PRODUCTS and narrow and not resources.matrix:
                sentences.append(f"{label} on {name} shows no {_INSTRUCTIONS[name]}: choose tiles that its units take")
    return sentences


def compiled(words: Sequence[str] = (), workers: int = 2) -> tuple[dict[str, dict[str, Resources]], list[str]]:
    """Compiles all launches: what they take, and what did not compile."""
    found: dict[str, dict[str, Resources]] = {}
    broken = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for label, name, result in pool.map(_work, jobs(words)):
            if isinstance(result, str):
                broken.append(f"{label} on {name} does not compile: {result}")
            else:
                found.setdefault(label, {})[name] = result
    return found, broken


def as_table(found: dict[str, dict[str, Resources]]) -> str:
    """For people: ``registers/spilled/shared KiB``, with a star where the matrix units show."""
    width = max(map(len, found), default=0)
    lines = ["".ljust(width) + "".join(name.rjust(16) for name in TARGETS)]
    for label, targets in found.items():
        cells = [_cell(targets.get(name)) for name in TARGETS]
        lines.append(label.ljust(width) + "".join(cell.rjust(16) for cell in cells))
    return "\n".join(lines)


def _cell(found: Resources | None) -> str:
    if found is None:
        return "-"
    return f"{found.registers}/{found.spilled}/{found.shared / 1024:.0f}" + ("*" if found.matrix else "")


def overdue(seconds: float, limit: float | None) -> list[str]:
    """The sentence about a run that took longer than it may, or nothing."""
    if limit is None or seconds <= limit:
        return []
    return [
        f"expected a run of at most {limit:g} s, got {seconds:.0f} s: take out launches that others stand for, or "
        "raise --limit"
    ]


def main(words: Iterable[str] | None = None) -> int:
    """The command; its exit codes are in the module's text."""
    parser = argparse.ArgumentParser(prog="python -m fastdistill_kernels.aot", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="launches whose names contain one")
    parser.add_argument("--write", action="store_true", help="make the budget from what is found")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="that the run may take, compiling included")
    options, begin = parser.parse_args(None if words is None else list(words)), time.monotonic()
    if options.only and options.write:
        parser.error("expected --write alone, got --only too: leave --only out, a budget is made from every launch")
    if interpreted():
        parser.error("expected kernels that can be compiled, got interpreted ones: unset TRITON_INTERPRET")
    found, broken = compiled(options.only, options.workers)
    seconds = time.monotonic() - begin
    print(as_table(found))
    print(f"{sum(map(len, found.values()))} compiled in {seconds:.0f} s")
    path = _BUDGETS / f"triton-{triton.__version__}.json"
    if options.write:
        sentences = broken + faults(found)
        if not sentences:
            _BUDGETS.mkdir(exist_ok=True)
            plain = {label: {name: asdict(one) for name, one in targets.items()} for label, targets in found.items()}
            path.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
    elif path.exists():
        sentences = broken + complaints(found, json.loads(path.read_text()), whole=not options.only)
    else:
        known = ", ".join(sorted(file.stem for file in _BUDGETS.glob("*.json"))) or "none"
        print("\n".join(broken + faults(found)), file=sys.stderr)
        print(
            f"expected a budget for triton {triton.__version__}, got {known}: write one with --write", file=sys.stderr
        )
        return 4
    late = overdue(seconds, options.limit)
    print("\n".join(sentences + late), file=sys.stderr)
    return 3 if sentences else 5 if late else 0


if __name__ == "__main__":
    sys.exit(main())
