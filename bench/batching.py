"""Measures the rule of `fastdistill.derivatives.plan.choose_batching` for torch.func: one program or a loop over pairs.

Run ``python -m bench.batching --device cpu --out bench/results/cpu/batching.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.problems import by_functional
from bench.timing import interleaved, write_results
from fastdistill.derivatives.functional import Functional
from fastdistill.derivatives.plan import Batching, Path, choose_batching, forward_cost
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import initial_weights

# (width, channels, height) of the student; (students, groups, images a pair)
STUDENTS = ((16, 1, 8), (32, 1, 8), (64, 1, 28), (128, 1, 28))
SHAPES = ((1, 10, 1), (8, 10, 1), (8, 1, 10), (8, 10, 10), (1, 10, 64))
_LIMIT_BYTES = {"cpu": 4e9, "cuda": 4e10}


def measure(
    width: int, channels: int, height: int, shape: tuple[int, int, int], device: torch.device
) -> dict[str, Any]:
    """Seconds of a gradient and of ``K v`` by every candidate batching, and what the rule chooses."""
    students, groups, images = shape
    module = build_student("convnet", channels=channels, height=height, width=height, num_classes=10, net_width=width)
    cost = by_functional(forward_cost(module, (channels, height, height)))
    indices = torch.arange(students, device=device)
    weights = initial_weights(module, "default", seed=0, step=0, students=indices)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(students, groups, images, channels, height, height, generator=generator, device=device)
    y = torch.randint(0, 10, (students, groups, images), generator=generator, device=device)
    v = torch.randn(students, groups, weights.shape[1], generator=generator, device=device)
    chosen = choose_batching(cost, device, students=students, groups=groups, images=images)
    candidates = {"chosen": chosen, "loop": Batching(path=Path.LOOP, piece=images, students=1)}
    if device.type == "cpu" and images > 8:
        candidates["loop, pieces of 8"] = Batching(path=Path.LOOP, piece=8, students=1)
    for some in {1, students}:
        if 4 * 3 * some * groups * images * cost.activations < _LIMIT_BYTES[device.type]:
            candidates[f"vmap, {some} students"] = Batching(path=Path.VMAP, piece=images, students=some)
    row: dict[str, Any] = {
        "width": width,
        "image": [channels, height, height],
        "students": students,
        "groups": groups,
        "images": images,
        "mflops": cost.flops / 1e6,
        "rule": asdict(chosen),
    }
    for kind in ("gradient", "Kv") if images <= 10 else ("gradient",):
        calls: dict[str, Callable[[], object]] = {}
        for name, batching in candidates.items():
            primitive = Functional(module, batching)
            if kind == "gradient":
                calls[name] = partial(primitive.value_and_gradient, weights, {}, x, y)
            else:
                calls[name] = partial(primitive.products, weights, {}, x, y, v, wanted=("images",))
        seconds = interleaved(calls, device=device, repeats=3)
        row[kind] = {name: round(1e3 * median(values), 2) for name, values in seconds.items()}
    return row


def main() -> None:
    """Measures the whole grid and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for student in STUDENTS:
        for shape in SHAPES:
            rows.append(measure(*student, shape, device))
            print(rows[-1], flush=True)
            write_results(options.out, "batching: milliseconds", rows, device)  # a stopped run keeps what it has


if __name__ == "__main__":
    main()
