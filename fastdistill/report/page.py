"""One self-contained HTML page about a run, made from the files in its folder."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import yaml

from fastdistill.files import write_whole
from fastdistill.report.figures import read_metrics, series

MISSING = "not measured"


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` into a run folder; needs no network to be read.

    Only ``config.yaml`` has to be there. What other files would tell is shown as not measured without them.

    Args:
        folder: of a run, finished or not.

    Returns:
        The page's path.

    Raises:
        ValueError: if the folder has no ``config.yaml``.
    """
    text = _text(folder / "config.yaml")
    if not text:
        raise ValueError(f"expected the folder of a run, got {folder} without a config.yaml: give runs/NAME")
    config = yaml.safe_load(text)
    results, environment = _json(folder / "results.json"), _json(folder / "environment.json")
    metrics = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    page = _template().render(
        title=str(config.get("name", folder.name)),
        summary=_summary(config),
        finished=bool(results),
        last_step=max((record["step"] for record in metrics), default=None),
        steps=config.get("method", {}).get("steps"),
        arms=[_arm(arm) for arm in results.get("arms", [])],
        protocol=results.get("protocol", config.get("evaluation", {}).get("protocol", MISSING)),
        architecture=results.get("architecture", config.get("student", {}).get("architecture", MISSING)),
        images=_embedded(folder / "images.png"),
        curves=_embedded(folder / "curves.png"),
        performance=_performance(results, metrics, environment),
        config=text,
        environment=list(_flat(environment)),
        missing=MISSING,
    )
    write_whole(folder / "report.html", page.encode())
    return folder / "report.html"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("run.html")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    return dict(json.loads(text)) if text else {}


def _embedded(path: Path) -> str:
    """A PNG file as a data URI; empty when there is none."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""


def _summary(config: Mapping[str, Any]) -> list[str]:
    def counted(key: str, one: str, many: str) -> str:
        return f"{config.get(key, '?')} {one if config.get(key) == 1 else many}"

    return [
        str(config.get("data", {}).get("source", "?")),
        counted("ipc", "image per class", "images per class"),
        counted("students", "student a step", "students a step"),
        counted("runs", "run", "runs"),
        f"{config.get('method', {}).get('steps', '?')} steps",
        f"seed {config.get('seed', '?')}",
    ]


def _arm(arm: Mapping[str, Any]) -> dict[str, str]:
    name, mean = str(arm.get("arm", "?")), _percent(arm.get("mean"))
    return {
        "name": name,
        "kind": "distilled" if name.startswith("distilled") else "reference",
        "mean": mean or MISSING,
        "std": _percent(arm.get("std")) if mean else "",
        "bar": mean or "0",
        **{key: _count(arm.get(key)) for key in ("students", "images", "epochs")},
        "time": _duration(arm.get("seconds")),
    }


def _percent(share: float | None) -> str:
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _performance(
    results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Named figures of time and memory; an unfinished run's come from its metrics."""

    def recorded(key: str) -> list[float]:
        return [value for value in series(metrics, key)[1].tolist() if math.isfinite(value)]

    step, peak, elapsed = recorded("perf/step_s"), recorded("mem/peak_mb"), recorded("time_s")
    rate = recorded("perf/students_per_s")
    return [
        ("distillation", _duration(results.get("distill_s", elapsed[-1] if elapsed else None))),
        ("one step", _duration(results.get("step_s", median(step) if step else None))),
        ("students per second", f"{median(rate):.1f}" if rate else MISSING),
        ("peak memory, distilling", _megabytes(results.get("distill_peak_mb", max(peak, default=None)))),
        ("peak memory, with evaluation", _megabytes(results.get("peak_mb"))),
        ("hardware", _hardware(results, environment)),
    ]


def _hardware(results: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    gpu = environment.get("gpu")
    if gpu and results.get("plan", {}).get("device") != "cpu":
        return str(gpu["name"] if isinstance(gpu, Mapping) else gpu)
    return str(environment.get("cpu", MISSING))


def _megabytes(value: float | None) -> str:
    return MISSING if value is None else f"{_count(value)} MB"


def _duration(seconds: float | None) -> str:
    """A time in the unit a reader would say it in."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", shown
