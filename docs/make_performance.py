"""Makes ``docs/performance.md`` and its plots from the committed results, ``bench/results/*/*.json``.

Every figure on the page is read from those files, except for the goals in `docs.performance_goals`. What was not
measured is said to be so.

Run ``python -m docs.make_performance``; with ``--check`` it writes nothing and exits with 1 where the page or the
figures behind a plot are out of date.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from docs import performance_tables as tables
from docs.measurements import CPU, Machine, Step, read_machine
from docs.performance_goals import GOALS
from docs.performance_plots import DIGEST, Plot, plots_of

HERE = Path(__file__).parent
PAGE, TEMPLATE, FIGURES = HERE / "performance.md", "performance.md.j2", HERE / "figures"
RESULTS = HERE.parent / "bench" / "results"


def about_machine(machine: Machine, figures: str) -> dict[str, Any]:
    """What the page shows of a machine; None where something was not measured."""
    groups: dict[str, list[Step]] = {}
    problems = list(dict.fromkeys(step.problem for step in machine.steps))
    order = {precision: place for place, precision in enumerate(("float32", "tf32", "bf16"))}
    for step in sorted(machine.steps, key=lambda step: (problems.index(step.problem), order[step.precision])):
        groups.setdefault(step.group, []).append(step)
    plots = {kind: f"![{plot.text}]({figures}/{plot.name})" for kind, plot in plots_of(machine).items()}
    return {
        "name": machine.name,
        "hardware": machine.hardware,
        "plots": plots,
        "groups": {group: tables.step_rows(steps) for group, steps in groups.items()},
        "compiled": [step for step in machine.steps if step.compiled],
        "speedups_said": tables.speedups_said(machine.steps),
        "bounds": tables.bound_rows(machine.steps),
        "bounds_said": tables.bounds_said(machine.steps),
        "trainings": [
            {
                "file": file,
                "kind": file.removesuffix(".json"),
                "sizes": sizes,
                "methods": [(one.method, tables.training_rows(one), tables.training_said(one)) for one in trainings],
            }
            for file, (sizes, trainings) in machine.trainings.items()
        ],
        "memory": tables.memory_rows(machine) if machine.memory else None,
        "unmeasured": [row["preset"] for row in machine.memory if "measured" not in row],
        "earlier": tables.earlier_rows(machine) if machine.earlier else None,
        "earlier_commit": next((one.commit for one in machine.sources if one.name.endswith("/step.json")), ""),
        "real": tables.real_said(machine) if machine.real else None,
    }


def make_page(results: Path, folder: Path) -> tuple[str, list[Plot]]:
    """The page's text and its plots, which lie in ``figures`` beside it.

    Args:
        results: folders by machine; what is not called cpu is a GPU.
        folder: where the page will be, which its links start from.
    """
    places = sorted((path for path in results.iterdir() if path.is_dir()), key=lambda path: (path.name != CPU, path))
    machines = [read_machine(path) for path in places]
    goals = [goal.cells({machine.name: machine for machine in machines}) for goal in GOALS]
    link = Path(os.path.relpath(results, folder)).as_posix()
    pages = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML: nothing is to be escaped
    )
    page = pages.get_template(TEMPLATE).render(
        goals=(("what", "on", "goal", "found", "reached"), goals),
        sources=tables.source_rows(machines, link),
        machines=[about_machine(machine, "figures") for machine in machines],
        results=link,
        said=tables.said,
    )
    return page.rstrip() + "\n", [plot for machine in machines for plot in plots_of(machine).values()]


def is_drawn(plot: Plot, figures: Path) -> bool:
    """Whether a plot's file has the figures of today; how they are drawn does not count."""
    path = figures / plot.name
    if not path.is_file():
        return False
    with Image.open(path) as picture:
        return bool(picture.info.get(DIGEST) == plot.digest)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page and its plots, or says that they are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page would change")
    options = parser.parse_args(arguments)
    text, plots = make_page(RESULTS, HERE)
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        FIGURES.mkdir(exist_ok=True)
        for path in {*FIGURES.glob("performance-*.png")} - {FIGURES / plot.name for plot in plots}:
            path.unlink()
        for plot in plots:
            (FIGURES / plot.name).write_bytes(plot.png())
        return
    old = [plot.name for plot in plots if not is_drawn(plot, FIGURES)]
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text or old:
        sys.exit(
            "expected docs/performance.md and its plots to follow from bench/results, got others: run python -m "
            "docs.make_performance"
        )


if __name__ == "__main__":
    main()
