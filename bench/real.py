"""Seconds of distillation to the published accuracy: gradient matching on MNIST, 10 images (Zhao et al. 2021: 91.7 %).

The clock runs during outer steps alone. It stands while fresh networks are trained on the images and tested, by the
published protocol on the whole test set: the goal is a figure of that set, and nothing is selected by it but the end.

Run ``python -m bench.real --root data --out bench/results/cpu/real``; ``--source digits`` tries it without any files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdistill.config import RunConfig, StudentConfig
from fastdistill.data.sources import RealData, load_source
from fastdistill.evaluation.evaluate import Evaluation, evaluate_students
from fastdistill.evaluation.protocols import protocol
from fastdistill.files import write_whole
from fastdistill.loop.descents import make_descent
from fastdistill.loop.environment import describe_environment
from fastdistill.loop.outer import outer_step
from fastdistill.loop.peaks import synchronize
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import matching_recipe
from fastdistill.students.ensemble import student_module
from fastdistill.students.training import image_fetch

GOAL = 0.917


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a distillation stands.

    Attributes:
        step: outer steps done.
        seconds: that they took.
        images: ``[C, M, D, H, W]``.
    """

    step: int
    seconds: float
    images: Tensor


def distilled(config: RunConfig, data: RealData, every: int) -> Iterator[Point]:
    """The images after every so many steps, and how long the steps took."""
    plan = make_plan(config, data.train.shape, data.train.num_classes)
    device = torch.device(plan.device)
    train = data.train.to(device)
    method, descent = make_method(config, plan, train), make_descent(config.method)
    state = initial_state(config, plan, train)
    seconds = 0.0
    while state.step < config.method.steps:
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(min(every, config.method.steps - state.step)):
            state, _ = outer_step(method, descent, state)
        synchronize(device)
        seconds += time.perf_counter() - begin
        yield Point(step=state.step, seconds=seconds, images=state.images[0])


def accuracy(
    student: StudentConfig, images: Tensor, data: RealData, *, source: str, networks: int, epochs: int
) -> Evaluation:
    """Test accuracy of fresh networks by the protocol of gradient matching; ``epochs`` 0 are the published ones."""
    classes, count = images.shape[:2]
    labels = torch.arange(classes, device=images.device).repeat_interleave(count)
    judged = protocol("dc", dataset=source, architecture=student.architecture, norm=student.norm)
    return evaluate_students(
        student_module(student, data.train.shape, classes),
        image_fetch(images.flatten(0, 1), labels),
        len(labels),
        data.test.to(images.device),
        judged.with_epochs(epochs) if epochs else judged,
        students=torch.arange(networks, device=images.device),
        seed=0,
    )


def measure(
    config: RunConfig, data: RealData, *, every: int, goal: float, networks: int, epochs: int
) -> Iterator[dict[str, Any]]:
    """Distils until the goal or the last step; yields what is known after every test."""
    rows: list[dict[str, Any]] = []
    for point in distilled(config, data, every):
        found = accuracy(
            config.student, point.images, data, source=config.data.source, networks=networks, epochs=epochs
        )
        rows.append(
            {
                "step": point.step,
                "seconds": point.seconds,
                "accuracy_mean": found.mean,
                "accuracy_std": found.std,
                "test_s": found.seconds,
            }
        )
        print(f"step {point.step}, {point.seconds:.1f} s of distillation: {found}", flush=True)
        reached = point.seconds if found.mean >= goal else None
        yield {"rows": rows, "goal": goal, "reached_s": reached, "networks": networks, "epochs": epochs}
        if reached is not None:
            return


def as_markdown(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = ["| step | seconds of distillation | test accuracy | seconds of testing |", "| ---: | ---: | ---: | ---: |"]
    for row in found["rows"]:
        mean, std = 100 * row["accuracy_mean"], 100 * row["accuracy_std"]
        lines.append(f"| {row['step']} | {row['seconds']:.1f} | {mean:.2f} ± {std:.2f} % | {row['test_s']:.1f} |")
    goal = f"{100 * found['goal']:.1f} %"
    reached = found["reached_s"]
    ending = f"{goal} was not reached." if reached is None else f"{goal} was reached after {reached:.1f} s."
    return "\n".join([*lines, "", ending]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="path of the results without .json and .md")
    parser.add_argument("--root", default="data", help="folder of MNIST in torchvision's layout")
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--students", type=int, default=1, help="that every step takes the mean gradient of")
    parser.add_argument("--real_batch", type=int, default=32, help="real images a class; the paper's are 256")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000, help="at most")
    parser.add_argument("--every", type=int, default=50, help="steps between tests")
    parser.add_argument("--networks", type=int, default=20, help="of a test")
    parser.add_argument("--epochs", type=int, default=0, help="of a test; 0 for the protocol's")
    parser.add_argument("--goal", type=float, default=GOAL)
    options = parser.parse_args(arguments)
    data = load_source(options.source, root=options.root)
    config = RunConfig(
        ipc=1,
        students=options.students,
        student=StudentConfig(width=options.width),
        method=matching_recipe("dc", 1, real_batch=options.real_batch, steps=options.steps),
        device=options.device,
    )
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "benchmark": "seconds of distillation to the published accuracy, see bench/real.py",
        "options": {name: value for name, value in vars(options).items() if name not in ("out", "root")},
        "environment": describe_environment(),
    }
    for found in measure(
        config, data, every=options.every, goal=options.goal, networks=options.networks, epochs=options.epochs
    ):  # whoever stops it keeps what is there
        write_whole(out.with_suffix(".json"), (json.dumps({**about, **found}, indent=1) + "\n").encode())
        write_whole(out.with_suffix(".md"), as_markdown(found).encode())


if __name__ == "__main__":
    main()
