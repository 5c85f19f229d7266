"""One self-contained HTML page about a run, made from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdistill.files import write_whole
from fastdistill.report import facts
from fastdistill.report.cells import Cell, Column, Table, figure, words
from fastdistill.report.curves import curves
from fastdistill.report.evaluations import accuracy, evaluations_table
from fastdistill.report.folder import RunFolder, flat, part, read_run
from fastdistill.report.formats import MISSING, count, duration, megabytes, operations, rate
from fastdistill.report.metrics import number
from fastdistill.report.render import refuse_folder, render


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run; it needs no network to be read.

    Only ``config.yaml`` has to be there. What other files would tell is shown as not measured without them, and a file
    that is damaged is named on the page.

    Args:
        folder: of a run, finished or not.
        output: the page; ``report.html`` in the folder when not given.

    Returns:
        The page's path.

    Raises:
        ValueError: if the folder has no ``config.yaml``, or ``output`` is a folder.
    """
    path = folder / "report.html" if output is None else output
    refuse_folder(path)
    run = read_run(folder)
    page = render(
        "run.html",
        title=run.name,
        summary=_summary(run),
        remarks=run.remarks,
        arms=_arms(run),
        evaluations=evaluations_table([(run.name, run)]),
        protocol=facts.protocol(run),
        architecture=facts.architecture(run),
        images=run.images,
        images_step=run.images_step,
        curves=run.curves or (curves(run.metrics, run.name, arms=run.arms) if run.metrics else b""),
        performance=_performance(run),
        config=run.config_text,
        environment=list(flat(run.environment)),
        missing=MISSING,
    )
    write_whole(path, page)
    return path


def _summary(run: RunFolder) -> list[str]:
    config, steps = run.config, facts.steps(run)

    def counted(key: str, one: str, many: str) -> str:
        return f"{config.get(key, '?')} {one if config.get(key) == 1 else many}"

    return [
        str(part(config, "data").get("source", "?")),
        counted("ipc", "image per class", "images per class"),
        counted("students", "student a step", "students a step"),
        counted("runs", "run", "runs"),
        f"{'?' if steps is None else f'{steps:.0f}'} steps",
        f"seed {config.get('seed', '?')}",
    ]


def _arms(run: RunFolder) -> Table:
    numeric = ("accuracy (%)", "", "students", "images", "epochs", "time")
    return Table(
        label="Test accuracy",
        columns=(Column(name="students trained on", numeric=False), *(Column(name=name) for name in numeric)),
        rows=[_arm(arm) for arm in run.arms],
    )


def _arm(arm: Mapping[str, Any]) -> tuple[Cell, ...]:
    seconds, steps = number(arm.get("seconds")), number(arm.get("steps"))
    return (
        words(str(arm.get("arm", "?"))),
        accuracy(arm.get("mean"), arm.get("std"), look="strong"),
        Cell(
            text="",
            share=min(1.0, max(0.0, number(arm.get("mean")) or 0.0)),
            reference=not facts.is_distilled(arm),
        ),
        *(figure(number(arm.get(key)), count) for key in ("students", "images")),
        figure(number(arm.get("epochs")), count) if not steps else figure(steps, lambda steps: f"{count(steps)} steps"),
        # the last images were also the selected ones, so their students are not trained again
        Cell(text="the same images", key="0") if seconds == 0 else figure(seconds, duration),
    )


def _performance(run: RunFolder) -> list[tuple[str, str]]:
    """Named figures of time and memory."""
    students, compiling = facts.students_per_second(run), facts.compiling_seconds(run)
    return [
        ("distillation", duration(facts.seconds(run))),
        *([("of that, the first compiled step, compilation with it", duration(compiling))] if compiling else []),
        ("one step", duration(facts.step_seconds(run))),
        ("students per second", MISSING if students is None else f"{students:.1f}"),
        ("operations of a step, predicted", operations(facts.step_flops(run))),
        ("operations of the first step, counted", operations(facts.counted_flops(run))),
        ("operations per second", rate(facts.flops_per_second(run))),
        ("peak memory, distilling", megabytes(facts.peak_mb(run))),
        ("peak memory, predicted", megabytes(facts.predicted_peak_mb(run))),
        ("peak memory, with evaluation", megabytes(number(run.results.get("peak_mb")))),
        ("hardware", facts.hardware(run)),
    ]
