"""Memory and time of gradients through a training, exact by the adjoint, against the textbook's graph of all steps.

Two methods: ``dd``, the loss of a real batch after the training (Wang et al. 2018) against
`bench.naive.unrolled.hypergradient`, and ``mtt``, the distance to an expert's weights (Cazenavette et al. 2022) against
`bench.naive.trajectory.mtt`. One student trains on all synthetic images in each of ``T`` steps of plain SGD; both sides
give the derivative in the images and the learning rates, in float32.

Peak memory is that of a fresh process, less what it held before the computation began. The textbook is measured only
where its graph fits and drawn out as a line from there. Times are of one process, interleaved.

Run ``python -m bench.unrolled --out bench/results/cpu/unrolled``; ``--parts memory`` or ``time`` measures only that,
cells of memory that the file has already are kept unless ``--anew``; ``--workload quick`` is small and tests it all.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bench.naive.convnet import ConvNet
from bench.naive.trajectory import mtt
from bench.naive.unrolled import Training, Weights, hypergradient, inverse_softplus
from bench.peak import peak_beyond
from bench.problems import PRIMITIVES
from bench.timing import interleaved, paired_ratio
from fastdistill.config import StudentConfig
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.inner import SGD
from fastdistill.derivatives.plan import forward_cost
from fastdistill.derivatives.trajectory import Steps, Trajectory, trajectory_bytes
from fastdistill.derivatives.unroll import adjoint, unroll
from fastdistill.loop.environment import describe_environment
from fastdistill.loop.peaks import matmul_flops
from fastdistill.students.ensemble import student_module

CPU = torch.device("cpu")
METHODS, PROGRAMS, PARTS = ("dd", "mtt"), ("engine", "textbook"), ("memory", "time")
_RATE = 0.01
Found = tuple[Tensor, dict[str, Tensor]]
_TIMED = tuple(name for name in PRIMITIVES if name != "dual-auto")  # a training's gradient is float32


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes, and the numbers of steps ``T`` that are measured.

    Attributes:
        width: of the ConvNet.
        depth: of the ConvNet.
        side: ``H`` and ``W``; images have three channels.
        per_class: synthetic images of each class.
        classes: how many.
        real: images of the real batch of ``dd``.
        engine: ``T`` of the engine's memory; the last shows whether it is flat.
        textbook: ``T`` of the textbook's memory, which its line goes through.
        compared: ``T`` of the time, and of the memory that is compared as measured.
        extrapolated: ``T`` of the memory that is compared with the textbook's line.
    """

    width: int
    depth: int
    side: int
    per_class: int
    classes: int = 10
    real: int
    engine: tuple[int, ...]
    textbook: tuple[int, ...]
    compared: int
    extrapolated: int


FULL = Workload(
    width=128,
    depth=3,
    side=32,
    per_class=10,
    real=256,
    engine=(1, 2, 5, 10, 20, 50, 100),
    textbook=(1, 2, 5, 10),
    compared=10,
    extrapolated=50,
)
QUICK = Workload(
    width=32, depth=2, side=16, per_class=4, real=40, engine=(10, 20), textbook=(5, 10), compared=10, extrapolated=20
)
# the setting of trajectory matching on CIFAR-100 with 10 images a class: 1000 images in each of 20 steps; a GPU's
CIFAR100 = Workload(
    width=128,
    depth=3,
    side=32,
    per_class=10,
    classes=100,
    real=256,
    engine=(2, 20, 40),
    textbook=(1, 2),
    compared=2,
    extrapolated=20,
)
WORKLOADS = {"full": FULL, "quick": QUICK, "cifar100": CIFAR100}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What both sides are given.

    Attributes:
        net: the textbook's ConvNet.
        weights: the student's initial weights by the textbook's names.
        target: for ``mtt``, the expert's later weights.
        images: synthetic images ``[N, D, H, W]``.
        labels: their classes ``[N]``.
        real_images: ``[B, D, H, W]``.
        real_labels: ``[B]``.
        steps: ``T``.
    """

    net: nn.Module
    weights: Weights
    target: Weights
    images: Tensor
    labels: Tensor
    real_images: Tensor
    real_labels: Tensor
    steps: int

    @property
    def rho(self) -> Tensor:
        """What the learning rates are the softplus of, ``[T]``."""
        return self.images.new_full((self.steps,), inverse_softplus(_RATE))


def make_problem(
    sizes: Workload, steps: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Problem:
    """Random images and weights: neither memory nor time depends on what they are."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(count, 3, sizes.side, sizes.side, generator=generator, dtype=dtype)
        return drawn.to(device), torch.arange(count, device=device) % sizes.classes

    net = ConvNet(3, sizes.classes, width=sizes.width, depth=sizes.depth, image_size=sizes.side).to(dtype)
    weights, target = {}, {}
    for name, parameter in net.named_parameters():
        weights[name] = 0.05 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        target[name] = weights[name] + 0.005 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    weights, target = ({name: value.to(device) for name, value in part.items()} for part in (weights, target))
    synthetic, labels = images(sizes.classes * sizes.per_class)
    real_images, real_labels = images(sizes.real)
    return Problem(
        net=net.to(device),
        weights=weights,
        target=target,
        images=synthetic,
        labels=labels,
        real_images=real_images,
        real_labels=real_labels,
        steps=steps,
    )


def textbook(problem: Problem, method: str) -> Callable[[], Found]:
    """Value and gradients through a graph of all steps."""
    training = Training(net=problem.net, batches=[slice(None)] * problem.steps)
    start, images, labels = problem.weights, problem.images, problem.labels
    if method == "mtt":
        return lambda: mtt(training, start, problem.target, images, labels, images.new_tensor(_RATE))
    real = (problem.real_images, problem.real_labels)
    return lambda: hypergradient(training, start, images, labels, problem.rho, *real)


class Engine:
    """Value and gradients by `derivatives.unroll`, with the textbook's names.

    Args:
        problem: see `Problem`.
        sizes: its sizes.
        method: dd or mtt.
        primitive: one of `bench.problems.PRIMITIVES`.
    """

    def __init__(self, problem: Problem, sizes: Workload, method: str, primitive: str = "functional") -> None:
        self._problem, shape = problem, (3, sizes.side, sizes.side)
        module = student_module(StudentConfig(width=sizes.width, depth=sizes.depth), shape, sizes.classes)
        cost, chosen = forward_cost(module, shape), PRIMITIVES[primitive]

        def planned(images: Tensor) -> Functional:
            return chosen.make(module, chosen.batching(cost, images.device, students=1, groups=1, images=len(images)))

        self.synthetic, self.real = planned(problem.images), planned(problem.real_images)
        self._run = {"dd": self._unrolled, "mtt": self._trajectory}[method]

    def __call__(self) -> Found:
        """The value, and its gradients by name."""
        return self._run()

    def _flat(self, weights: Weights) -> Tensor:
        """Weights ``[1, P]``; both networks have the same tensors in the same order."""
        layout = self.synthetic.layout
        return layout.flatten(dict(zip(layout.shapes, weights.values(), strict=True)))[None]

    def _trained(self, rates: Tensor) -> tuple[Trajectory, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """The student after training at rates ``[T]``, and what the derivative in its weights means for the rest."""
        problem = self._problem
        steps = Steps(optimizer=SGD(), rates=rates[:, None])

        def batch(number: int) -> tuple[Tensor, Tensor]:
            return problem.images, problem.labels

        trajectory = unroll(self.synthetic, self._flat(problem.weights), {}, batch, steps)

        def back(start: Tensor) -> tuple[Tensor, Tensor]:
            images = torch.zeros_like(problem.images)

            def pull(number: int, cotangent: Tensor, labels: Tensor | None) -> None:
                images.add_(cotangent[0])

            slopes = adjoint(self.synthetic, trajectory, batch, start, pull)
            return images, slopes.rates[:, 0]

        return trajectory, back

    def _unrolled(self) -> Found:
        rho, real = self._problem.rho, (self._problem.real_images[None], self._problem.real_labels[None])
        trajectory, back = self._trained(softplus(rho))
        outer = self.real.value_and_gradient(trajectory.weights, {}, *real)
        images, rates = back(outer.gradient[:, 0])
        return outer.loss[0, 0], {"images": images, "rho": rates * rho.sigmoid()}

    def _trajectory(self) -> Found:
        target, start = self._flat(self._problem.target), self._flat(self._problem.weights)
        trajectory, back = self._trained(target.new_full((self._problem.steps,), _RATE))
        away, scale = trajectory.weights - target, (start - target).square().sum()
        images, rates = back(2 * away / scale)
        return away.square().sum() / scale, {"images": images, "step_size": rates.sum()}


def measure_memory(
    sizes: Workload, method: str, program: str, steps: int, device: torch.device = CPU
) -> dict[str, Any]:
    """Peak memory of one computation in this process, which should be fresh, in bytes."""
    problem = make_problem(sizes, steps, device=device)
    call = textbook(problem, method) if program == "textbook" else Engine(problem, sizes, method)
    found: list[Tensor] = []
    peak = peak_beyond(lambda: found.append(call()[0]), device)
    row: dict[str, Any] = {"method": method, "program": program, "steps": steps, "value": float(found[0]), "peak": peak}
    if isinstance(call, Engine):
        size = call.synthetic.layout.size
        row |= {"plan": asdict(call.synthetic.batching), "stored": trajectory_bytes(SGD(), steps, 1, size)}
    return row


def measure_time(
    sizes: Workload, method: str, primitives: Sequence[str], repeats: int, device: torch.device = CPU
) -> dict[str, Any]:
    """Seconds of both sides, of the engine also by other primitives, and how many times the textbook's."""
    problem = make_problem(sizes, sizes.compared, device=device)
    calls: dict[str, Callable[[], Any]] = {"textbook": textbook(problem, method)}
    calls["engine"] = chosen = Engine(problem, sizes, method)
    calls |= {f"engine, {name}": Engine(problem, sizes, method, name) for name in primitives}
    seconds = interleaved(calls, device=device, repeats=repeats)
    return {
        "method": method,
        "steps": sizes.compared,
        "repeats": repeats,
        "plan": asdict(chosen.synthetic.batching),
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "all_seconds": seconds,
        "times_faster": {name: paired_ratio(seconds["textbook"], taken) for name, taken in seconds.items()},
    }


def judged(sizes: Workload, content: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured beside what is aimed at, for every method that has all cells."""
    found: list[dict[str, Any]] = []
    times = {row["method"]: row for row in content.get("time", {}).get("rows", [])}
    for method in METHODS:

        def enter(what: str, value: float, goal: str, method: str = method) -> None:
            found.append({"method": method, "what": what, "found": value, "goal": goal})

        rows = [row for row in content.get("memory", {}).get("rows", []) if row["method"] == method]
        engine = {row["steps"]: row for row in rows if row["program"] == "engine"}
        graph = {row["steps"]: row["peak"] for row in rows if row["program"] == "textbook"}
        if set(sizes.engine) <= set(engine) and set(sizes.textbook) <= set(graph):
            few, most = engine[sizes.compared], engine[sizes.engine[-1]]
            grown, stored = most["peak"] - few["peak"], most["stored"] - few["stored"]
            lengths = f"T = {sizes.compared} to {sizes.engine[-1]}"
            enter(f"MB that the peak grows from {lengths}, less the stored weights", (grown - stored) / 1e6, "about 0")
            ratio = graph[sizes.compared] / few["peak"]
            enter(f"textbook's peak over the engine's, T = {sizes.compared}", ratio, "at least 3")
            slope, level = np.polyfit(list(graph), list(graph.values()), 1)
            drawn = float(slope * sizes.extrapolated + level)
            what = f"textbook's extrapolated peak, {drawn / 1e6:.0f} MB, over the engine's, T = {sizes.extrapolated}"
            enter(what, drawn / engine[sizes.extrapolated]["peak"], "at least 15")
        if method in times:
            ratio = max(times[method]["times_faster"].values())
            enter(f"times faster than the textbook, T = {sizes.compared}", ratio, "at least 1.6")
    return found


def as_markdown(sizes: Workload, content: dict[str, Any]) -> str:
    """Tables of the goals, of memory in MB (10^6 bytes) and of time."""
    lines = ["| method | what | found | goal |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['method']} | {row['what']} | {row['found']:.2f} | {row['goal']} |" for row in content["goals"]]
    peaks = {(row["method"], row["program"], row["steps"]): row for row in content.get("memory", {}).get("rows", [])}
    if peaks:
        lengths = sorted({steps for *_, steps in peaks})
        lines += ["", f"| peak memory, MB | {' | '.join(f'T = {steps}' for steps in lengths)} |"]
        lines.append("| --- |" + " --- |" * len(lengths))
        for method in dict.fromkeys(method for method, *_ in peaks):
            for program, key in (("engine", "peak"), ("engine", "stored"), ("textbook", "peak")):
                cells = [peaks.get((method, program, steps), {}).get(key) for steps in lengths]
                name = "of that, stored weights" if key == "stored" else program
                shown = ["" if cell is None else f"{cell / 1e6:.0f}" for cell in cells]
                lines.append(f"| {method}, {name} | {' | '.join(shown)} |")
    if "time" in content:
        lines += ["", f"| time, T = {sizes.compared} | s | times the textbook's speed |", "| --- | --- | --- |"]
        for row in content["time"]["rows"]:
            for name, seconds in row["seconds"].items():
                lines.append(f"| {row['method']}, {name} | {seconds:.2f} | {row['times_faster'][name]:.2f} |")
    return "\n".join(lines) + "\n"


def write(out: Path, sizes: Workload, content: dict[str, Any]) -> None:
    """Writes the figures and their tables."""
    content["goals"] = judged(sizes, content)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    out.with_suffix(".md").write_text(as_markdown(sizes, content))


def in_fresh_process(sizes: Workload, method: str, program: str, steps: int, device: str) -> dict[str, Any] | None:
    """`measure_memory` in a process of its own; None for what does not fit."""
    cell = json.dumps({"sizes": asdict(sizes), "method": method, "program": program, "steps": steps})
    command = [sys.executable, "-m", "bench.unrolled", "--out", "-", "--device", device, "--child", cell]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL or "OutOfMemoryError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"expected a figure for {cell}, got {done.stderr}: look at the last line")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes; every cell of memory as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="path of the results without .json and .md")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--anew", action="store_true", help="measure cells of memory that are there already")
    parser.add_argument(
        "--primitives",
        nargs="*",
        choices=_TIMED,
        default=["dual", "dual-compiled"],
        help="timed besides",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.child:
        cell = json.loads(options.child)
        print(json.dumps(measure_memory(Workload(**cell.pop("sizes")), **cell, device=device)))
        return
    sizes, out = WORKLOADS[options.workload], Path(options.out)
    file = out.with_suffix(".json")
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= {"benchmark": "gradients through a training, see bench/unrolled.py", "workload": asdict(sizes)}
    if "memory" in options.parts:
        memory = content.setdefault("memory", {"rows": []})
        memory["environment"] = describe_environment()
        for method, program in product(options.methods, PROGRAMS):
            for steps in sizes.engine if program == "engine" else sizes.textbook:
                cell = (method, program, steps)
                others = [row for row in memory["rows"] if (row["method"], row["program"], row["steps"]) != cell]
                if options.anew or len(others) == len(memory["rows"]):
                    row = in_fresh_process(sizes, *cell, options.device)
                    print(row or f"{cell} does not fit", flush=True)
                    memory["rows"] = [*others, row] if row else others
                    write(out, sizes, content)
    if "time" in options.parts:
        kept = [row for row in content.get("time", {}).get("rows", []) if row["method"] not in options.methods]
        time = content["time"] = {"rows": kept, "environment": describe_environment()}
        time["matmul_2048_float32_gflops"] = round(matmul_flops(device) / 1e9, 1)
        for method in options.methods:
            kept.append(measure_time(sizes, method, options.primitives, options.repeats, device))
            print(kept[-1], flush=True)
            write(out, sizes, content)


if __name__ == "__main__":
    main()
