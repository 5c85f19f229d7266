"""What safety costs: saving a checkpoint, the non-finite guard's share of a step, starting the program and a run.

Run ``python -m bench.reliability --out bench/results/cpu/reliability.json`` beside nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.problems import DIGITS, MNIST, Problem, engine_step
from bench.timing import interleaved, write_results
from fastdistill.config import RunConfig
from fastdistill.loop.checkpoint import save_checkpoint
from fastdistill.loop.guard import Guard
from fastdistill.loop.outer import State, Step
from fastdistill.loop.plan import make_plan
from fastdistill.method_configs import matching_recipe

FIRST_STEPS = "first steps of fastdistill run"
_STATE_BYTES = 12_000_000  # 500 CIFAR images with their momentum


def save_seconds(folder: Path, repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds, by a clock, of durable saves of a 12 MB state, hashing included."""
    images = torch.randn(1, 10, 50, 3, 32, _STATE_BYTES // (2 * 4 * 10 * 50 * 3 * 32))
    plan = make_plan(RunConfig(device="cpu"), (3, 32, 32), 10)
    seconds = []
    for step in range(repeats):
        state = State(step=step, learned={"images": images}, moments={"images.velocity": images})
        begin = clock()
        save_checkpoint(folder, state, None, plan, config_hash="", data_hash="", elapsed_s=0.0)
        seconds.append(clock() - begin)
    return seconds


def guarding(students: int, images: torch.Tensor) -> Callable[[], object]:
    """The operations that the guard adds to a step, on tensors of the step's shapes, and its look.

    They repeat what `methods.matching` and `loop.outer` do for it; nothing of it can be switched off there.
    """
    cotangent = torch.randn(students, *images.shape[1:])
    loss, velocity = torch.randn(students), torch.randn_like(images)
    guard = Guard(None, print)  # type: ignore[arg-type]  # nothing is located when everything is finite
    before = State(step=0, learned={"images": images}, moments={"images.velocity": velocity})

    def operations() -> None:
        finite = loss.isfinite() & cotangent.flatten(1).sum(1).isfinite()
        shown = torch.where(finite.view(-1, *[1] * (cotangent.ndim - 1)), cotangent, 0)
        count = finite.view(-1, students).sum(1).clamp(min=1).view(-1, *[1] * (images.ndim - 1))
        gradient = shown.sum(0, keepdim=True) / count
        sound = (students - finite.sum() <= 0.25 * students) & gradient.sum().isfinite()
        torch.where(sound, images, before.images)
        torch.where(sound, velocity, before.moments["images.velocity"])
        mean = torch.where(finite, loss, 0).sum() / finite.sum()
        (torch.where(finite, loss - mean, 0).square().sum() / finite.sum()).sqrt()
        guard.watch(before, Step(values={}, finite=finite, sound=sound))

    return operations


def small_step(problem: Problem, students: int) -> Callable[[], object]:
    """A step of gradient matching with few real images, of which the guard takes the largest share."""
    recipe = matching_recipe("dc", 1, real_batch=32, outer_loop=1)
    return engine_step(problem, recipe, torch.device("cpu"), students=students)


def start_seconds(code: list[str], repeats: int) -> list[float]:
    """Wall-clock seconds of fresh Python processes."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


def first_steps_seconds(options: Sequence[str], repeats: int, patience: float = 120.0) -> list[float]:
    """Wall-clock seconds from the start of ``fastdistill run`` until its first steps stand in its metrics.

    Args:
        options: of the run.
        repeats: runs, each in a new process and a new folder, and stopped as soon as that is known.
        patience: seconds after which a run is given up.

    Raises:
        RuntimeError: with what a run said that had no steps in time.
    """
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+") as said:
            begin, metrics = time.perf_counter(), Path(folder) / "first" / "metrics.jsonl"
            command = [sys.executable, "-m", "fastdistill", "run", *options, "--output", folder, "--name", "first"]
            with subprocess.Popen(command, stdout=said, stderr=said) as run:
                going = True
                while not (found := metrics.exists() and metrics.stat().st_size > 0) and going:
                    time.sleep(0.01)
                    going = run.poll() is None and time.perf_counter() - begin < patience
                seconds.append(time.perf_counter() - begin)
                run.kill()
            said.seek(0)
            if not found:
                raise RuntimeError(
                    f"expected a run with steps within {patience:.0f} s, got {said.read().strip() or 'nothing'}: "
                    "run it by itself"
                )
    return seconds


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    cpu, rows = torch.device("cpu"), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(dir=Path(options.out).parent) as folder:
        rows.append({"what": "save 12 MB durably", "seconds": save_seconds(Path(folder), options.repeats)})
    for problem, students in ((DIGITS, 1), (DIGITS, 8), (MNIST, 1)):
        guard = guarding(students, torch.randn(1, 10, 1, *problem.shape))
        calls = {"step": small_step(problem, students), "guard": guard}
        found = interleaved(calls, device=cpu, repeats=options.repeats)
        share = median(found["guard"]) / median(found["step"])
        rows.append({"what": f"guard, {problem.name}, S = {students}", "share_of_step": share, **found})
    starts = {
        "fastdistill --help": ["-m", "fastdistill", "--help"],
        "fastdistill run --help": ["-m", "fastdistill", "run", "--help"],
        "import fastdistill": ["-c", "import fastdistill"],
        "import torch": ["-c", "import torch"],
        "import torch, fastdistill.distill": ["-c", "import torch, fastdistill; fastdistill.distill"],
        "python": ["-c", ""],
    }
    rows += [{"what": name, "seconds": start_seconds(code, options.repeats)} for name, code in starts.items()]
    rows.append({"what": FIRST_STEPS, "seconds": first_steps_seconds(("--device", "cpu"), options.repeats)})
    for row in rows:
        if "seconds" in row:
            row["median_s"] = median(row["seconds"])
        print({key: value for key, value in row.items() if not isinstance(value, list)})
    write_results(options.out, "reliability", rows, cpu)


if __name__ == "__main__":
    main()
