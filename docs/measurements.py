"""Reads what was measured into ``bench/results/*``: steps, gradients through a training, memory, real runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import COMPILED
from bench.table import load, yardstick_of
from fastdistill.loop.breakdown import floors
from fastdistill.loop.peaks import Peaks

Values = Mapping[str, Any]
TEXTBOOK, FUNCTIONAL = "naive", "functional"
CPU = "cpu"
_COMMITS = {"h200/step.json": "029fc05"}  # the file itself says none, bench/results/README.md does
_UNKNOWN = ("HEAD", "unknown")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A case of ``pytest bench``.

    Attributes:
        group: the workload.
        problem: what of it.
        engine: naive, functional, compiled, dual, dual-compiled or dual-auto.
        precision: float32, tf32 or bf16.
        students: ``S``.
        seconds: of a step, the median.
        speedup: over the textbook, per student; None of the textbook itself.
        flops: of convolutions and matrix products.
        traffic: bytes that its operators read and write, each by itself; of a compiled step, before it is compiled.
        launches: operators that compute; likewise.
        dispatches: operators called; likewise.
        held: most bytes that its tensors hold; likewise.
        peak: most bytes of memory, where that was measured.
        memory_ratio: of ``peak``, else of ``held``, for each student to the textbook's for its one; None where unknown.
        first: seconds of the first step, with compilation.
        peaks: what the machine can do at that precision.
    """

    group: str
    problem: str
    engine: str
    precision: str
    students: int
    seconds: float
    speedup: float | None
    flops: float
    traffic: float
    launches: float
    dispatches: int
    held: int
    peak: int | None
    memory_ratio: float | None
    first: float
    peaks: Peaks

    @property
    def workload(self) -> str:
        """Group and problem."""
        return f"{self.group}/{self.problem}"

    @property
    def compiled(self) -> bool:
        """Whether it is compiled code, of which only the operations are known."""
        return self.engine in COMPILED

    @property
    def floors(self) -> dict[str, float]:
        """Least seconds by what bounds them; of a compiled step that of its operations, the only ones it keeps."""
        found = floors(self.flops, self.traffic, self.launches, self.peaks)
        return {"compute": found["compute"]} if self.compiled else found

    @property
    def bound(self) -> tuple[str, float]:
        """The largest of the floors, and the share of the time that it explains."""
        name, seconds = max(self.floors.items(), key=lambda entry: entry[1])
        return name, seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of results.

    Attributes:
        name: its path below the results.
        part: of the file, where its parts were measured apart.
        hardware: what it was measured on.
        threads: of the CPU.
        torch: its version.
        commit: of the code.
        peaks: by name, as ``pytest bench`` measures them; empty in files of other scripts.
    """

    name: str
    part: str
    hardware: str
    threads: int
    torch: str
    commit: str
    peaks: Values


@dataclass(frozen=True, kw_only=True)
class Training:
    """Peak memory of gradients through a training of ``T`` steps, by method, bytes.

    Attributes:
        method: dd or mtt.
        engine: by ``T``.
        stored: of that, the stored weights, by ``T``.
        textbook: by ``T``, as far as it fits.
        seconds: of both and of variants, at ``steps``; empty where not timed.
        times_faster: than the textbook.
        steps: ``T`` of the times.
    """

    method: str
    engine: dict[int, int]
    stored: dict[int, int]
    textbook: dict[int, int]
    seconds: dict[str, float]
    times_faster: dict[str, float]
    steps: int

    def textbook_at(self, steps: int) -> float:
        """The textbook's peak: as measured, else on the line through what was; NaN for want of two points."""
        if steps in self.textbook:
            return self.textbook[steps]
        if len(self.textbook) < 2:
            return float("nan")
        slope, level = np.polyfit(list(self.textbook), list(self.textbook.values()), 1)
        return float(slope * steps + level)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that was measured on a machine; what was not is empty.

    Attributes:
        name: of its folder: cpu, or a GPU's.
        sources: all files.
        steps: cases of ``pytest bench``, in its order.
        trainings: by file, the workload's sizes and the methods.
        memory: rows of predicted and measured memory.
        earlier: the file of the first measurements of one step.
        real: the file of a timed real run.
        starts: by what was started, the median seconds.
    """

    name: str
    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
    trainings: dict[str, tuple[Values, tuple[Training, ...]]]
    memory: tuple[Values, ...]
    earlier: Values
    real: Values
    starts: dict[str, float]

    @property
    def hardware(self) -> str:
        """Of its files; empty where there are none."""
        return next((source.hardware for source in self.sources), "")


def read_machine(folder: Path) -> Machine:
    """All results of a machine's folder.

    Raises:
        ValueError: for a file that is not what its name says.
    """
    sources: list[Source] = []
    steps: dict[str, Step] = {}
    for path in sorted(path for name in ("bench*", "kernels", "steps*") for path in folder.glob(f"{name}.json")):
        found, machine = load(path)
        sources.append(source_of(path, machine["environment"], machine["threads"], machine["peaks"]))
        steps |= {entry["case"]: step for entry, step in zip(found, steps_of(found, machine["peaks"]), strict=True)}
    trainings = {}
    for path in sorted(folder.glob("unrolled*.json")):
        content = _read(path)
        parts = [part for part in ("memory", "time") if part in content]
        sources += [source_of(path, content[part]["environment"], part=part) for part in parts]
        trainings[path.name] = (content["workload"], trainings_of(content))
    names = ("memory", "step", "real", "reliability")
    memory, earlier, real, reliability = (_read(folder / f"{name}.json") for name in names)
    for name, content in (("memory", memory), ("real", real), ("reliability", reliability), ("step", earlier)):
        if content:
            threads = max((row.get("threads", 0) for row in content["rows"]), default=0)
            sources.append(source_of(folder / f"{name}.json", content["environment"], threads))
    return Machine(
        name=folder.name,
        sources=tuple(sources),
        steps=tuple(steps.values()),
        trainings=trainings,
        memory=tuple(row for row in memory.get("rows", ()) if "predicted" in row),
        earlier=earlier,
        real=real,
        starts={row["what"]: row["median_s"] for row in reliability.get("rows", ()) if "median_s" in row},
    )


def steps_of(found: list[dict[str, Any]], peaks: Values) -> list[Step]:
    """Cases of one file, whose textbook is in the same."""
    by_name = {entry["case"]: entry for entry in found}
    made = []
    for entry in found:
        counters, textbook = entry["counters"], by_name.get(yardstick_of(entry), {})
        peak, beside = entry.get("peak_memory"), textbook.get("peak_memory")
        if not peak and entry["engine"] not in COMPILED:
            ours, theirs = counters["peak_bytes"], textbook.get("counters", {}).get("peak_bytes")
        else:
            ours, theirs = peak, beside
        group, problem, *_ = entry["case"].split("/")
        matmul = peaks.get(f"matmul_{entry['precision']}_flops_per_s", peaks["matmul_float32_flops_per_s"])
        made.append(
            Step(
                group=group,
                problem=problem,
                engine=entry["engine"],
                precision=entry["precision"],
                students=entry["students"],
                seconds=entry["median_s"],
                speedup=entry.get("speedup"),
                flops=counters["flops"],
                traffic=counters["traffic"],
                launches=counters["launches"],
                dispatches=counters["dispatches"],
                held=counters["peak_bytes"],
                peak=peak,
                memory_ratio=ours / entry["students"] / theirs if ours and theirs else None,
                first=entry.get("first_s", 0.0),
                peaks=Peaks(flops=matmul, bandwidth=peaks["copy_bytes_per_s"], launch=peaks["launch_s"]),
            )
        )
    return made


def usual_precision(steps: Sequence[Step]) -> list[Step]:
    """Of every workload the cases in TF32, as torch has its convolutions on a GPU, where it was measured so."""
    tensor = {step.workload for step in steps if step.precision == "tf32"}
    return [step for step in steps if step.precision == ("tf32" if step.workload in tensor else "float32")]


def trainings_of(content: Values) -> tuple[Training, ...]:
    """Methods of a file of ``bench.unrolled``."""
    rows = content.get("memory", {}).get("rows", [])
    times = {row["method"]: row for row in content.get("time", {}).get("rows", [])}

    def by_steps(method: str, program: str, key: str) -> dict[int, int]:
        found = {row["steps"]: row[key] for row in rows if (row["method"], row["program"]) == (method, program)}
        return dict(sorted(found.items()))

    return tuple(
        Training(
            method=method,
            engine=by_steps(method, "engine", "peak"),
            stored=by_steps(method, "engine", "stored"),
            textbook=by_steps(method, "textbook", "peak"),
            seconds=times.get(method, {}).get("seconds", {}),
            times_faster=times.get(method, {}).get("times_faster", {}),
            steps=times.get(method, {}).get("steps", 0),
        )
        for method in dict.fromkeys([*(row["method"] for row in rows), *times])
    )


def source_of(path: Path, environment: Values, threads: int = 0, peaks: Values | None = None, part: str = "") -> Source:
    """What a file says of where it comes from."""
    name = f"{path.parent.name}/{path.name}"
    commit = str(environment.get("git_commit", "unknown"))
    whole, _, dirty = commit.partition("-")
    shown = whole[:7] + (f"-{dirty}" if dirty else "")
    return Source(
        name=name,
        part=part,
        hardware=environment.get("gpu", {}).get("name") or environment["cpu"],
        threads=threads or environment["threads"],
        torch=environment["packages"]["torch"],
        commit=_COMMITS.get(name, commit) if commit in _UNKNOWN else shown,
        peaks=dict(peaks or {}),
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"environment", "memory", "time"} & content.keys():
        raise ValueError(f"expected results with their environment in {path}, got others: measure them again")
    return content
