"""The tables that runs and baselines end with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdistill.report.formats import operations, rate
from fastdistill.talkative import PatientConsole


def show_results(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the arms of a finished run, with time and memory, on stdout.

    Args:
        results: the content of ``results.json``.
        folder: the run folder.
    """
    console = _console()
    console.print(_arms(results))
    step = "" if results["step_s"] is None else f" of {1000 * results['step_s']:.0f} ms"
    flops = ""
    if "step_flops" in results:  # a run that an older version finished has none
        counted = operations(results.get("counted_flops"))
        predicted, speed = operations(results["step_flops"]), rate(results["flops_per_s"])
        flops = f"\n{counted} in the first step, predicted {predicted} a step, {speed}"
    compiling = ""
    if results.get("compiling_step_s"):
        compiling = f", {results['compiling_step_s']:.1f} s of it the first compiled step, compilation with it"
    console.print(
        f"distilled in {results['distill_s']:.1f} s ({results['steps']} steps{step}){compiling}\n"
        f"peak memory {results['peak_mb']:.0f} MB, predicted {results['predicted_peak_mb']:.0f} MB{flops}",
        highlight=False,
    )
    console.print(f"everything is in {folder}/ — open report.html", highlight=False, soft_wrap=True, markup=False)


def show_baselines(results: Mapping[str, Any], folder: Path) -> None:
    """Prints judged baselines on stdout.

    Args:
        results: the content of their ``results.json``.
        folder: where it is.
    """
    console = _console()
    console.print(_arms(results))
    console.print(f"everything is in {folder}/", highlight=False, soft_wrap=True, markup=False)


def _console() -> PatientConsole:
    return PatientConsole(width=None if Console().is_terminal else 110)


def _arms(results: Mapping[str, Any]) -> Table:
    table = Table(
        title=Text(f"{results['name']}: test accuracy, {results['architecture']}, protocol {results['protocol']}"),
        title_justify="left",
    )
    table.add_column("trained on")
    for column in ("images", "accuracy", "students", "epochs", "time"):
        table.add_column(column, justify="right")
    for arm in results["arms"]:
        table.add_row(
            arm["arm"],
            str(arm["images"]),
            f"{100 * arm['mean']:.1f} ± {100 * arm['std']:.1f} %",
            str(arm["students"]),
            f"{arm['steps']} steps" if arm.get("steps") else str(arm["epochs"]),
            f"{arm['seconds']:.1f} s" if arm["seconds"] else "the same images",
        )
    return table
