"""The one table of a run of ``pytest bench``: what every step took, asked for and reached."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cases import COMPILED

HEADS = (
    "benchmark",
    "step ms",
    "× naive",
    "students/s",
    "images/s",
    "GFLOP",
    "GFLOP/s",
    "% of matmul",
    "GB/s",
    "% of copy",
    "% floor",
    "calls",
    "held MB",
    "÷ naive",
    "peak MB",
    "÷ naive",
    "first s",
)
Found = Mapping[str, Any]


def load(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What pytest-benchmark wrote: every case's figures, and the machine's.

    Raises:
        ValueError: for a file that is none of ``pytest bench --benchmark-json``.
    """
    try:
        content = json.loads(path.read_text())
        found = [
            {
                **entry["extra_info"],
                "median_s": entry["stats"]["median"],
                "min_s": entry["stats"]["min"],
                "rounds": entry["stats"]["rounds"],
            }
            for entry in content["benchmarks"]
        ]
        return found, content["machine_info"]["fastdistill"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected results that pytest bench --benchmark-json wrote in {path}, got {type(error).__name__}: {error}"
        ) from None


def rows_of(found: Sequence[Found], machine: Found) -> list[list[str]]:
    """The cells of every case, in the order of ``HEADS``; empty where there is nothing to say.

    ``% floor`` is the share of the roofline floor: what operators would take, each by itself, at the machine's peaks.
    ``÷ naive`` is of memory for each student against the textbook's for its one; calls are operators called.
    """
    by_name = {entry["case"]: entry for entry in found}
    return [_row(entry, by_name, machine["peaks"]) for entry in found]


def _row(entry: Found, by_name: Mapping[str, Found], peaks: Found) -> list[str]:
    seconds, students, counters = entry["median_s"], entry["students"], entry["counters"]
    naive, known = by_name.get(yardstick_of(entry), {}), entry["engine"] not in COMPILED
    flops, traffic = counters["flops"] / seconds, counters["traffic"] / seconds
    peak = peaks.get(f"matmul_{entry['precision']}_flops_per_s", peaks["matmul_float32_flops_per_s"])
    held, memory = counters["peak_bytes"], entry.get("peak_memory")
    return [
        entry["case"],
        _figure(1e3 * seconds),
        _figure(entry["speedup"]) if "speedup" in entry else "",
        _figure(students / seconds),
        _figure(students * entry["images"] / seconds) if entry["images"] else "",
        _figure(counters["flops"] / 1e9) if flops else "",
        _figure(flops / 1e9) if flops else "",
        f"{100 * flops / peak:.0f}" if flops else "",
        _figure(traffic / 1e9) if known else "",
        f"{100 * traffic / peaks['copy_bytes_per_s']:.0f}" if known else "",
        f"{100 * entry['floor_s'] / seconds:.0f}" if known else "",
        str(counters["dispatches"]) if known else f"{counters['graphs']} graphs",
        _figure(held / 1e6) if known else "",
        _ratio(held / students, naive.get("counters", {}).get("peak_bytes")) if known else "",
        _figure(memory / 1e6) if memory else "",
        _ratio(memory / students, naive.get("peak_memory")) if memory else "",
        _figure(entry["first_s"]) if "first_s" in entry else "",
    ]


def yardstick_of(entry: Found) -> str:
    """The name of the textbook's case of a case's problem and precision."""
    group, problem, *_ = entry["case"].split("/")
    precision = "" if entry["precision"] == "float32" else f"-{entry['precision']}"
    return f"{group}/{problem}/naive{precision}/S1"


def _ratio(ours: float, theirs: float | None) -> str:
    return _figure(ours / theirs) if theirs else ""


def _figure(value: float) -> str:
    """Three figures, never in powers of ten."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"


def as_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned, for a terminal too."""
    table = [list(HEADS), *map(list, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADS))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(table[0]), f"| {' | '.join(rule)} |", *map(line, table[1:])]


def main() -> None:
    """Prints the table of a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    print("\n".join(as_lines(rows_of(*load(path)))))
    late = json.loads(path.read_text()).get("not_measured", [])
    if late:
        print(f"\nNot measured for want of time: {', '.join(late)}.")


if __name__ == "__main__":
    main()
