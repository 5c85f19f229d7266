"""The tables and sentences of ``docs/performance.md``: what was measured, as cells of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from docs.measurements import FUNCTIONAL, TEXTBOOK, Machine, Step, Training, usual_precision
from fastdistill.report.formats import duration, rate

_NAMES = {TEXTBOOK: "textbook"}
_MOST_OF_IT = 0.5  # of the time: less explains little
_STEP_HEADS = ("problem", "engine", "S", "step", "× textbook", "students/s", "GFLOP/s", "GB/s", "memory")
_BOUND_HEADS = ("workload", "engine", "S", "step", "compute", "memory", "overhead", "largest", "explains")
Row = Sequence[str]
Rows = tuple[Row, Sequence[Row]]  # heads, and what is below them


def figure(value: float) -> str:
    """Three figures, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def said(seconds: float) -> str:
    """A time of a step; empty for none."""
    if not seconds:
        return ""
    return f"{figure(seconds)} s" if seconds >= 1 else f"{figure(1e3 * seconds)} ms"


def engine_of(step: Step) -> str:
    """The engine, and the precision where it is not float32."""
    name = _NAMES.get(step.engine, step.engine)
    return name if step.precision == "float32" else f"{name}, {step.precision}"


def step_rows(steps: Sequence[Step]) -> Rows:
    """Heads and rows of the cases of one workload; a column that nothing is known for is left out."""
    rows = []
    for step in steps:
        flops, traffic = step.flops / step.seconds, step.traffic / step.seconds
        size = step.peak or (None if step.compiled else step.held)
        memory = f"{figure(size / 1e6)} MB" if size else ""
        if step.memory_ratio and step.engine != TEXTBOOK:
            memory += f" ({figure(step.memory_ratio)}×)"
        rows.append(
            (
                step.problem,
                engine_of(step),
                str(step.students),
                said(step.seconds),
                f"{step.speedup:.2f}" if step.speedup else "",
                figure(step.students / step.seconds),
                f"{figure(flops / 1e9)} ({100 * flops / step.peaks.flops:.0f} %)" if step.flops else "",
                "" if step.compiled else f"{figure(traffic / 1e9)} ({100 * traffic / step.peaks.bandwidth:.0f} %)",
                memory,
            )
        )
    kept = [column for column in range(len(_STEP_HEADS)) if any(row[column] for row in rows)]
    return [_STEP_HEADS[column] for column in kept], [[row[column] for column in kept] for row in rows]


def fastest_students(steps: Sequence[Step]) -> list[Step]:
    """Of every workload the engine's case with the most students a second."""
    best: dict[str, Step] = {}
    for step in steps:
        if step.engine != TEXTBOOK:
            other = best.get(step.workload, step)
            best[step.workload] = max(other, step, key=lambda one: one.students / one.seconds)
    return list(best.values())


def bound_rows(steps: Sequence[Step]) -> Rows:
    """The three floors of every workload: the textbook, the engine with one student, and its fastest case."""
    rows = []
    for best in fastest_students(steps):
        beside = [
            step
            for step in steps
            if (step.workload, step.precision, step.students) == (best.workload, best.precision, 1)
            and step.engine in (TEXTBOOK, FUNCTIONAL)
        ]
        for step in [*(one for one in beside if one != best), best]:
            bound, share = step.bound
            floors = [said(step.floors.get(name, 0)) for name in _BOUND_HEADS[4:7]]
            rows.append(
                [
                    *(step.workload, engine_of(step), str(step.students), said(step.seconds), *floors),
                    *((bound, f"{100 * share:.0f} %") if share else ("none", "")),
                ]
            )
    return _BOUND_HEADS, rows


def bounds_said(steps: Sequence[Step]) -> str:
    """Which floor explains most of the time of how many workloads, each at its fastest, as a sentence."""
    best = fastest_students(steps)
    found: dict[str, list[str]] = {}
    for step in best:
        bound, share = step.bound
        found.setdefault(bound if share >= _MOST_OF_IT else "", []).append(f"`{step.workload}`")
    names = {
        "compute": "operations explain most of the time",
        "memory": "bytes explain most of the time",
        "overhead": "the cost of so many operators explains most of the time",
        "": "no floor explains half of the time",
    }
    parts = [
        f"{words} of {len(found[name])} ({', '.join(found[name])})" for name, words in names.items() if name in found
    ]
    return f"Of {len(best)} workloads, each at its fastest: {'; '.join(parts)}."


def speedups_said(steps: Sequence[Step]) -> str:
    """What the engine gains, and where it loses, as sentences."""
    best = [step for step in fastest_students(steps) if step.speedup]
    alone = [step for step in usual_precision(steps) if step.students == 1 and step.speedup]
    slower = [step for step in alone if (step.speedup or 0) < 1]
    never = [f"`{step.workload}`" for step in best if (step.speedup or 0) < 1]
    parts = ", ".join(f"`{step.workload}` {step.speedup:.2f}× (S = {step.students})" for step in best)
    return (
        f"Each at its fastest: {parts}. Slower than the textbook are {len(slower)} of {len(alone)} cases with one "
        f"student; at its fastest {', '.join(never) if never else 'no workload'}."
    )


def training_rows(training: Training) -> Rows:
    """Memory by ``T``."""
    lengths = sorted({*training.engine, *training.textbook})
    heads = ("T", *map(str, lengths))

    def cells(name: str, figures: Mapping[int, float], form: str = "{:.0f}") -> Row:
        return [name, *(form.format(figures[length]) if length in figures else "" for length in lengths)]

    def megabytes(peaks: Mapping[int, int]) -> dict[int, float]:
        return {length: peak / 1e6 for length, peak in peaks.items()}

    rows = [
        cells("engine, MB", megabytes(training.engine)),
        cells("of that, stored weights", megabytes(training.stored)),
        cells("textbook, MB", megabytes(training.textbook)),
    ]
    drawn = {length: training.textbook_at(length) for length in lengths}
    beyond = {length: peak / 1e6 for length, peak in drawn.items() if length not in training.textbook}
    if any(map(math.isfinite, beyond.values())):
        rows.append(cells("textbook, extrapolated", beyond))
    ratios = {length: drawn[length] / peak for length, peak in training.engine.items() if math.isfinite(drawn[length])}
    return heads, [*rows, cells("textbook / engine", ratios, "{:.1f}×")]


def training_said(training: Training) -> str:
    """Times, as a sentence."""
    if not training.seconds:
        return "Time: not measured."
    others = [
        f"{name} {duration(seconds)} ({training.times_faster[name]:.2f}×)"
        for name, seconds in training.seconds.items()
        if name != "textbook"
    ]
    return f"Time at T = {training.steps}: textbook {duration(training.seconds['textbook'])}, {', '.join(others)}."


def memory_rows(machine: Machine) -> Rows:
    """Predicted over measured memory: the least, the median and the largest ratio of all presets."""
    measured = [row for row in machine.memory if "measured" in row]
    rows = []
    for name, key in (("distilling", "distilling"), ("the whole run", "peak")):
        ratios = sorted(row["predicted"][key] / row["measured"][key] for row in measured)
        if ratios:
            rows.append([name, str(len(ratios)), *(f"{part:.2f}" for part in (ratios[0], median(ratios), ratios[-1]))])
    return ("", "presets", "least", "median", "largest"), rows


def earlier_rows(machine: Machine) -> Rows:
    """The first measurements of one step: times the textbook's speed by S."""
    found = machine.earlier["rows"]
    counts = sorted({int(key[2:]) for row in found for key in row if key.startswith("S=")})
    rows = []
    for row in found:
        cells = [row.get(f"S={count}") for count in counts]
        times = [f"{cell['times_faster_per_student']:.2f}×" if cell else "" for cell in cells]
        rows.append([row["workload"], duration(row["naive_s"]), *times])
    return ("workload", "textbook", *(f"S = {count}" for count in counts)), rows


def real_said(machine: Machine) -> str:
    """The timed real run, as a sentence."""
    real = machine.real
    best = max(real["rows"], key=lambda row: row["accuracy_mean"])
    goal, reached = f"{100 * real['goal']:.1f} %", real["reached_s"]
    when = f"{goal} after {duration(reached)} of distilling" if reached is not None else f"{goal} not reached"
    spread = f"{100 * best['accuracy_mean']:.1f} ± {100 * best['accuracy_std']:.1f} %"
    return (
        f"{real['benchmark']}, {real['students']} students: {when}; the best of {len(real['rows'])} "
        f"tests was {spread} after {duration(best['seconds'])} ({best['step']} steps)."
    )


def source_rows(machines: Sequence[Machine], results: str) -> Rows:
    """What every file was measured on."""
    heads = ("file", "on", "threads", "torch", "commit", "matrix product", "copy", "tiny operator")
    rows = []
    for source in (source for machine in machines for source in machine.sources):
        file = f"[{source.name}]({results}/{source.name})" + (f", {source.part}" if source.part else "")
        cells = [file, source.hardware, str(source.threads), source.torch]
        peaks, products = source.peaks, []
        for key, value in peaks.items():
            if key.startswith("matmul_"):
                products.append(f"{key.removeprefix('matmul_').removesuffix('_flops_per_s')} {rate(value)}")
        others = ["", ""]
        if peaks:
            others = [f"{figure(peaks['copy_bytes_per_s'] / 1e9)} GB/s", f"{figure(1e6 * peaks['launch_s'])} µs"]
        rows.append([*cells, f"`{source.commit}`", ", ".join(products), *others])
    return heads, rows
