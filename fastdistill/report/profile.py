"""What a profile ends with: its tables on the terminal, its plot and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fastdistill.files import write_whole
from fastdistill.report.cells import Cell, Column, Table, figure, words
from fastdistill.report.folder import flat
from fastdistill.report.formats import count, duration, operations, rate
from fastdistill.report.render import render
from fastdistill.talkative import PatientConsole

PROFILE, TRACE, PLOT, PAGE = "profile.json", "trace.json.gz", "throughput.png", "report.html"
_LINE, _BEST = "#0072B2", "#D55E00"  # blue and vermillion of Okabe and Ito
_PHASES = ("time", "share", "operations", "bytes", "launches", "peak memory", "bound", "floor / time")
_STUDENTS = ("a step", "students/s", "images/s", "measured", "predicted", "predicted / measured", "in all")
Values = Mapping[str, Any]


def write_profile_report(folder: Path, profile: Values) -> None:
    """Writes the plot and the page of a profile.

    Args:
        folder: its.
        profile: the content of its ``profile.json``.
    """
    picture = throughput_plot(profile["throughput"], title(profile))
    if picture:
        write_whole(folder / PLOT, picture)
    write_whole(folder / PAGE, profile_page(profile, picture))


def profile_page(profile: Values, picture: bytes) -> bytes:
    """The page of a profile; it needs no network to be read.

    Args:
        profile: the content of ``profile.json``.
        picture: its plot; empty for none.
    """
    throughput = profile["throughput"]
    return render(
        "profile.html",
        title=f"{profile['name']}: profile",
        summary=summary(profile),
        phases=phases_table(profile["phases"]),
        times=times(profile),
        steps=steps_said(profile),
        several=len(profile["steps"]) > 1,
        machine=machine(profile),
        throughput=throughput_table(throughput),
        best=best_said(throughput),
        base=size(throughput["base_bytes"]),
        plot=picture,
        on_cuda=profile["plan"]["device"] == "cuda",
        config=yaml.safe_dump(profile["config"], sort_keys=False),
        environment=list(flat(profile["environment"])),
    )


def title(profile: Values) -> str:
    """What was measured where, in few words."""
    return f"{profile['name']} on {hardware(profile)}"


def hardware(profile: Values) -> str:
    """What it was measured on."""
    environment = profile["environment"]
    device = environment["gpu"]["name"] if profile["plan"]["device"] == "cuda" else environment["cpu"]
    threads = f", {_number(profile['plan']['threads'], 'thread')}" if profile["plan"]["device"] == "cpu" else ""
    return f"{device}{threads}"


def summary(profile: Values) -> list[str]:
    """What was measured."""
    config = profile["config"]
    images = f"{config['data']['source']}{', random images' if profile['images'] != 'real' else ''}"
    found = [images, f"{_number(config['ipc'], 'image')} per class", f"{_number(config['students'], 'student')} a step"]
    student = config["student"]
    network = [str(student[key]) for key in ("architecture", "depth", "width")]
    found += [_number(config["runs"], "run"), f"method {config['method']['kind']}"]
    found += [
        "-".join(network if network[0] == "convnet" else network[:1]),
        profile["plan"]["dtype"],
        hardware(profile),
    ]
    return found + ([f"experts: {profile['experts']}"] if profile["experts"] else [])


def times(profile: Values) -> list[tuple[str, str]]:
    """Named figures of a step."""
    return [
        ("one step", duration(profile["seconds"])),
        ("one step, recorded", duration(profile["profiled_seconds"])),
        ("operations of a step, counted", operations(profile["flops"])),
        ("operations of a step, predicted", operations(profile["predicted_flops"])),
        ("operations per second", rate(profile["flops"] / profile["seconds"])),
        ("share of the machine's rate", _percent(profile["flops"] / profile["seconds"] / profile["peaks"]["flops"])),
    ]


def machine(profile: Values) -> str:
    """The peaks that phases are held against, as a sentence."""
    peaks, plan = profile["peaks"], profile["plan"]
    dtype = "TF32" if plan["device"] == "cuda" and plan["dtype"] == "float32" and plan["tf32"] else plan["dtype"]
    return (
        f"Measured in this process: a {dtype} matrix product computes {rate(peaks['flops'])}, "
        f"a copy moves {peaks['bandwidth'] / 1e9:.3g} GB/s, a tiny operator takes {1e6 * peaks['launch']:.2g} µs."
    )


def steps_said(profile: Values) -> str:
    """Which steps the phases are means of, as a sentence."""
    steps = profile["steps"]
    numbers = ", ".join(str(step["number"]) for step in steps)
    if len(steps) == 1:
        return f"Step {numbers} of the run was recorded."
    return f"Steps {numbers} of the run were recorded; each counts by how many of the run's steps are of its kind."


def best_said(throughput: Values) -> str:
    """The best number of students and why there are no more, as sentences."""
    ended = f"The sweep ended {throughput['ended']}."
    best = next((row for row in throughput["rows"] if row["students"] == throughput["best"]), None)
    if best is None:
        return ended
    reached = f"{_three(best['students_per_s'])} students/s"
    return f"Best: S = {best['students']}, {reached}: the fewest students that reach the most, within 2 %. {ended}"


def phases_table(phases: Sequence[Values]) -> Table:
    """The phases of a step, a row each."""
    columns = [Column(name="phase", numeric=False), *(Column(name=name, numeric=name != "bound") for name in _PHASES)]
    return Table(label="Phases of a step", columns=tuple(columns), rows=[_phase(phase) for phase in phases])


def _phase(phase: Values) -> tuple[Cell, ...]:
    bound = phase["bound"]
    return (
        words(phase["name"], look="whole"),
        figure(phase["seconds"], _short),
        figure(phase["share"], _percent, look="strong"),
        figure(phase["flops"], _operations),
        figure(phase["traffic"], size),
        figure(phase["launches"], count),
        figure(phase["peak_bytes"], size),
        words(bound),
        figure(phase["of_floor"], _percent) if bound else Cell(text=""),
    )


def throughput_table(throughput: Values) -> Table:
    """Throughput by the number of students, a row each."""
    columns = tuple(Column(name=name) for name in ("students S", *_STUDENTS))
    rows: list[tuple[Cell, ...]] = []
    for row in throughput["rows"]:
        look = "strong" if row["students"] == throughput["best"] else ""
        ratio = row["predicted_bytes"] / row["measured_bytes"] if row["measured_bytes"] else None
        rows.append(
            (
                Cell(text=_students(row, throughput), key=repr(row["students"]), look=look),
                figure(row["seconds"], duration, look=look),
                figure(row["students_per_s"], _three, look=look),
                figure(row["images_per_s"], count, look=look),
                figure(row["measured_bytes"], size, look=look),
                figure(row["predicted_bytes"], size, look=look),
                figure(ratio, lambda ratio: f"{ratio:.2f}", look=look),
                figure(row["peak_bytes"], size, look=look),
            )
        )
    return Table(label="Throughput by number of students", columns=columns, rows=rows)


def _students(row: Values, throughput: Values) -> str:
    return f"{row['students']} (best)" if row["students"] == throughput["best"] else str(row["students"])


def throughput_plot(throughput: Values, title: str) -> bytes:
    """Students per second and seconds a step against the number of students, as a PNG file; empty without rows."""
    from matplotlib.figure import Figure  # takes most of a second, and only a plot needs it
    from matplotlib.ticker import NullLocator

    rows = throughput["rows"]
    if not rows:
        return b""
    students, rates = [row["students"] for row in rows], [row["students_per_s"] for row in rows]
    best = next(row for row in rows if row["students"] == throughput["best"])
    drawing = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    left, right = drawing.subplots(1, 2)
    drawing.suptitle(title, parse_math=False)
    left.plot(students, rates, color=_LINE, marker="o")
    ideal = [rates[0] * number / students[0] for number in students]
    left.plot(students, ideal, color="0.6", linestyle=":", label="as if more took no longer")
    left.legend(loc="lower right")
    left.plot(best["students"], best["students_per_s"], color=_BEST, marker="o", markersize=10)
    left.set_ylim(0, 1.25 * max(rates))
    left.annotate(
        f"best S = {best['students']}: {best['students_per_s']:.3g} students/s",
        (best["students"], best["students_per_s"]),
        xytext=(0, 12),
        textcoords="offset points",
        color=_BEST,
        ha="right" if best["students"] > students[len(students) // 2] else "left",
    )
    left.set(ylabel="students per second")
    right.plot(students, [row["measured_bytes"] / 1e6 for row in rows], color=_LINE, marker="o", label="measured")
    right.plot(students, [row["predicted_bytes"] / 1e6 for row in rows], color=_BEST, linestyle="--", label="predicted")
    right.set_ylim(0, 1.15 * max(row[key] / 1e6 for row in rows for key in ("measured_bytes", "predicted_bytes")))
    right.set(ylabel="peak memory beyond the base (MB)")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(students, [str(number) for number in students])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="students S")
        axes.grid(alpha=0.3)
    content = BytesIO()
    drawing.savefig(content, format="png")
    return content.getvalue()


def show_profile(profile: Values, folder: Path) -> None:
    """Prints the tables of a profile on stdout.

    Args:
        profile: the content of its ``profile.json``.
        folder: where it is.
    """
    console = PatientConsole(width=None if Console().is_terminal else 118)
    console.print(_as_rich(phases_table(profile["phases"]), f"{title(profile)}: phases of a step"))
    console.print(
        f"one step {duration(profile['seconds'])}, {duration(profile['profiled_seconds'])} while recorded\n"
        f"{machine(profile)}",
        highlight=False,
    )
    console.print(_as_rich(throughput_table(profile["throughput"]), "throughput against students"))
    console.print(best_said(profile["throughput"]), highlight=False)
    console.print(f"everything is in {folder}/ — open report.html", highlight=False, soft_wrap=True, markup=False)


def _as_rich(table: Table, title: str) -> RichTable:
    found = RichTable(title=Text(title), title_justify="left")
    for number, column in enumerate(table.columns):
        found.add_column(column.name, justify="right" if column.numeric else "left", no_wrap=number == 0)
    for row in table.rows:
        found.add_row(*(Text(cell.text) for cell in row))
    return found


def size(value: float) -> str:
    """Bytes for people."""
    scale, unit = next(
        ((10**power, unit) for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")) if value >= 10**power), (1, "B")
    )
    return f"{value / scale:.3g} {unit}"


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 1e-3 or not seconds else f"{1e6 * seconds:.3g} µs"


def _operations(value: float) -> str:
    return operations(value) if value else "0"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else count(value)


def _number(value: int, noun: str) -> str:
    return f"{value} {noun}{'s' * (value != 1)}"
