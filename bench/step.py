"""Time of one gradient-matching step against the textbook, per student, in one process.

Run ``python -m bench.step --device cpu --out bench/results/cpu/step.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.naive.convnet import ConvNet
from bench.naive.matching import dc_step, image_optimizer
from bench.timing import interleaved, paired_ratio, write_results
from fastdistill.config import RunConfig, StudentConfig
from fastdistill.data.arrays import from_arrays
from fastdistill.data.store import ImageStore
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import matching_recipe

# name: (width, channels, height, real images per class, images per class)
WORKLOADS = {
    "mnist-1": (128, 1, 28, 256, 1),
    "mnist-1, 32 real": (128, 1, 28, 32, 1),
    "mnist-10": (128, 1, 28, 256, 10),
    "cifar10-1": (128, 3, 32, 256, 1),
    "digits-1, width 16": (16, 1, 8, 32, 1),
    "digits-1, width 32": (32, 1, 8, 32, 1),
}


def random_store(channels: int, height: int, per_class: int) -> ImageStore:
    """Random bytes in the shape of a data set: time does not depend on what is on the images."""
    generator = torch.Generator().manual_seed(0)
    shape = (10 * per_class, channels, height, height)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return from_arrays(images, torch.arange(10).repeat_interleave(per_class))


def engine_step(store: ImageStore, workload: str, students: int, device: torch.device) -> tuple[Callable[[], Any], Any]:
    """The engine's outer step with fresh students, and its plan."""
    width, _, _, real, ipc = WORKLOADS[workload]
    config = RunConfig(
        ipc=ipc,
        students=students,
        student=StudentConfig(width=width),
        method=matching_recipe("dc", ipc, real_batch=real, outer_loop=1),
        device=device.type,
    )
    plan = make_plan(config, store.shape, store.num_classes)
    state = initial_state(config, plan, store)
    method = make_method(config, plan, store)
    descent = make_descent(config.method)
    return lambda: outer_step(method, descent, state), plan.as_dict()


def naive_step(store: ImageStore, workload: str, device: torch.device) -> Callable[[], Tensor]:
    """The textbook's outer step for one student: a fresh network, real batches by random index, one image update."""
    width, channels, height, real, ipc = WORKLOADS[workload]
    generator = torch.Generator(device).manual_seed(0)
    synthetic = torch.randn(10, ipc, channels, height, height, generator=generator, device=device).requires_grad_()
    optimizer = image_optimizer(synthetic)

    def step() -> Tensor:
        network = ConvNet(channels, 10, width=width, image_size=height).to(device)
        batches = []
        for label in range(10):
            members = store.class_indices(label)
            chosen = members[torch.randperm(len(members), generator=generator, device=device)[:real]]
            batches.append(store.batch(chosen))
        return dc_step(network, batches, synthetic, optimizer)

    return step


def main() -> None:
    """Measures the chosen workloads and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--workloads", nargs="+", default=["mnist-1", "digits-1, width 16", "digits-1, width 32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    for workload in options.workloads:
        store = random_store(*WORKLOADS[workload][1:3], per_class=max(256, WORKLOADS[workload][3])).to(device)
        calls: dict[str, Callable[[], Any]] = {"naive, 1 student": naive_step(store, workload, device)}
        plans = {}
        for students in options.students:
            calls[f"engine, {students} students"], plans[students] = engine_step(store, workload, students, device)
        seconds = interleaved(calls, device=device, repeats=options.repeats)
        naive = seconds["naive, 1 student"]
        row: dict[str, Any] = {"workload": workload, "repeats": options.repeats, "naive_s": median(naive)}
        for students in options.students:
            taken = seconds[f"engine, {students} students"]
            row[f"S={students}"] = {
                "step_s": median(taken),
                "per_student_s": median(taken) / students,
                "times_faster_per_student": students * paired_ratio(naive, taken),
                "plan": plans[students],
            }
        rows.append(row)
        print(row, flush=True)
    write_results(options.out, "one DC step, fresh students, against bench/naive", rows, device)


if __name__ == "__main__":
    main()
