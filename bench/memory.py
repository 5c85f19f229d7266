"""Predicted against measured peak memory of every preset, each in a process of its own.

A run is shortened in time, never in size: two outer steps (one with 100 classes), one epoch of every training, two
batches an epoch and one block of test images in an evaluation, shown to two students where they are tested one by one.
Images are those of the data set where its files are under ``--root`` in torchvision's layout; else random bytes, as
many and as large as the data set's.

Run ``python -m bench.memory --root data --out bench/results/cpu/memory``; ``--only dc/mnist-1 ...`` measures some
presets anew, ``--again`` none: it predicts again for the processes that were measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import fastdistill.evaluation.arms
import fastdistill.evaluation.evaluate
from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig, preset_path, presets
from fastdistill.data.random_images import SHAPES, random_data
from fastdistill.data.sources import load_source
from fastdistill.derivatives import plan as batching_plan
from fastdistill.loop.environment import (
    describe_environment,
    memory_limit,
)
from fastdistill.loop.memory import Forecast, forecast, forecast_here
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import run
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import METHODS, MatchingConfig, MethodConfig

_BATCHES, _BLOCKS, _TESTED = 2, 1, 2
_FITS = 16e9
CPU = torch.device("cpu")


def preset_config(name: str) -> RunConfig:
    """A preset on the CPU."""
    values = yaml.safe_load(preset_path(name).read_text())
    method = METHODS[values.get("method", {}).get("kind", "matching")]
    nested = {"data": DataConfig, "student": StudentConfig, "method": method, "evaluation": EvaluationConfig}
    parts: dict[str, Any] = {key: make(**values.get(key, {})) for key, make in nested.items()}
    return RunConfig(**{**values, **parts, "device": "cpu"})


def shortened_method(method: MethodConfig, steps: int) -> MethodConfig:
    """The same method with few steps."""
    if isinstance(method, MatchingConfig):
        return replace(method, steps=steps, inner_loop=min(method.inner_loop, 1))
    return replace(method, steps=steps)


def shortened(config: RunConfig, output: str) -> RunConfig:
    """The same run with few steps; nothing gets smaller."""
    steps = 1 if config.data.source == "cifar100" else 2
    evaluation = config.evaluation
    return replace(
        config,
        output=output,
        method=shortened_method(config.method, steps),
        evaluation=replace(
            evaluation,
            validation_every=min(evaluation.validation_every, steps),
            validation_epochs=1,
            whole_epochs=min(evaluation.whole_epochs, 1),
        ),
        checkpoint_every=1,
        log_every=1,
        picture_every=min(config.picture_every, steps),
    )


def shorten_evaluation() -> None:
    """Lets evaluation train for one epoch of two batches and test on one block."""
    arms: Any = fastdistill.evaluation.arms
    evaluate: Any = fastdistill.evaluation.evaluate
    protocol, train, correct = arms.protocol, evaluate.train_students, evaluate.count_correct
    blocks = [0]

    def one_epoch(*names: Any, **options: Any) -> Any:
        found = protocol(*names, **options)
        return found if found.steps else found.with_epochs(1)

    def few_batches(
        primitive: Any, weights: Any, buffers: Any, fetch: Any, count: int, training: Any, **options: Any
    ) -> Any:
        blocks[0] = 0
        few = min(count, _BATCHES * training.batch)
        return train(primitive, weights, buffers, fetch, few, replace(training, epochs=1), **options)

    def few_blocks(primitive: Any, weights: Tensor, buffers: Any, images: Tensor, labels: Tensor) -> Tensor:
        blocks[0] += 1
        found = torch.zeros(weights.shape[0], dtype=torch.int64)
        if blocks[0] <= _BLOCKS:
            # a loop over students holds the same for every one of them
            some = slice(_TESTED if primitive.batching.path is batching_plan.Path.LOOP else None)
            few = {name: tensor[some] for name, tensor in buffers.items()}
            found[some] = correct(primitive, weights[some], few, images, labels)
        return found

    arms.protocol, evaluate.train_students, evaluate.count_correct = one_epoch, few_batches, few_blocks


def as_values(found: Forecast) -> dict[str, Any]:
    """A forecast as plain values."""
    return {**asdict(found), "distilling": found.distilling, "peak": found.peak}


def measure(name: str, root: str) -> dict[str, Any]:
    """Forecasts a preset in this process, runs it shortened and reads the peaks."""
    config = preset_config(name)
    source, real = config.data.source, True
    if source in SHAPES:
        try:
            data = load_source(source, root=root)
        except ValueError:
            data, real = random_data(source), False
    else:
        data = load_source(source)
    sizes = Sizes.of(data)
    plan = make_plan(config, sizes.shape, len(sizes.classes), sizes=sizes)
    predicted = as_values(forecast_here(config, plan, sizes))
    row = {
        "preset": name,
        "images": "real" if real else "random bytes",
        "threads": torch.get_num_threads(),
        "train": sizes.classes,
        "test": sizes.test,
        "shape": sizes.shape,
        "predicted": predicted,
    }
    if predicted["peak"] > _FITS:
        return row
    shorten_evaluation()
    with tempfile.TemporaryDirectory() as folder:
        result = run(shortened(config, folder), data)
    assert result is not None
    found = {"distilling": result.table["distill_peak_mb"] * 1e6, "peak": result.table["peak_mb"] * 1e6}
    return {**row, "measured": found}


def predicted_again(row: dict[str, Any]) -> dict[str, Any]:
    """A measured preset with the forecast of today, for the process that was measured."""
    sizes = Sizes(shape=tuple(row["shape"]), classes=tuple(row["train"]), test=row["test"])
    before = row["predicted"]
    config = preset_config(row["preset"])
    plan = make_plan(config, sizes.shape, len(sizes.classes), sizes=sizes)
    found = forecast(config, plan, sizes, resident=before["present"], reached=before["reached"])
    return {**row, "predicted": as_values(found)}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of predicted and measured peaks in MB (10^6 bytes)."""
    lines = [
        "| preset | images | distilling: predicted | measured | ratio | whole run: predicted | measured | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: str(row["preset"])):
        cells = [row["preset"], row["images"]]
        for phase in ("distilling", "peak"):
            predicted = row["predicted"][phase]
            if "measured" in row:
                measured = row["measured"][phase]
                cells += [f"{predicted / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{predicted / measured:.2f}"]
            else:
                cells += [f"{predicted / 1e6:.0f}", "does not fit", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the figures and their table."""
    content = {
        "benchmark": "peak memory of a process, bytes; runs shortened in time but not in size, see bench/memory.py",
        "memory": memory_limit(CPU),
        "environment": describe_environment(),
        "rows": sorted(rows, key=lambda row: str(row["preset"])),
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    out.with_suffix(".md").write_text(as_markdown(rows))


def main() -> None:
    """Measures presets one after the other, each in a fresh process, and keeps what is there already of others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data")
    parser.add_argument("--out", required=True, help="path of the results without .json and .md")
    parser.add_argument("--only", nargs="*", default=list(presets()))
    parser.add_argument("--again", action="store_true", help="measure nothing, predict again for what was measured")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a preset")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.only[0], options.root)))
        return
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".json")
    rows = {row["preset"]: row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}
    if options.again:
        write(out, [predicted_again(row) for row in rows.values()])
        return
    for name in options.only:
        command = [sys.executable, "-m", "bench.memory", "--child", "--only", name, "--root", options.root]
        done = subprocess.run([*command, "--out", "-"], capture_output=True, text=True, timeout=options.limit)
        if done.returncode:
            print(f"{name} failed: {done.stderr}", file=sys.stderr)
            continue
        row = rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, row["predicted"]["peak"], row.get("measured"), flush=True)
        write(out, list(rows.values()))


if __name__ == "__main__":
    main()
