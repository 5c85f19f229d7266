"""Makes ``docs/results.md`` from the committed run folders, ``bench/results/*/*``.

Everything on the page is read from the runs' own files, except for the published figures in ``docs/published.yaml``.
Where a run's settings differ is found against the preset of its cell, which has the published recipe.

Run ``python docs/make_results.py``; with ``--check`` it writes nothing and exits with 1 where the page is out of date.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastdistill.comparison_config import ARMS
from fastdistill.config import StudentConfig, preset_path, presets
from fastdistill.generator_config import GeneratorConfig
from fastdistill.method_configs import METHODS
from fastdistill.report import facts
from fastdistill.report.comparison import SIZE_PLOT, TIME_PLOT, markdown, read_comparison_folder
from fastdistill.report.folder import RunFolder, part, read_run
from fastdistill.report.formats import duration

HERE = Path(__file__).parent
PAGE, TEMPLATE, PUBLISHED = HERE / "results.md", "results.md.j2", HERE / "published.yaml"
RESULTS = HERE.parent / "bench" / "results"
_BUDGET = "-cpu"  # ends the names of presets with fewer steps than published
_PLACES = ("experts", "pretrained")  # settings that say where a user's files lie
Cell = tuple[str, str, int, str]  # method, data set, images per class, initialisation


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset, with its defaults filled in.

    Attributes:
        name: such as ``dc/mnist-1``.
        cell: what it is for.
        settings: what a run can differ in, nested as in a configuration.
    """

    name: str
    cell: Cell
    settings: dict[str, Any]


def data_set_name(source: str) -> str:
    """The name of a data set that comes by name, or of the folder or archive that it is in, wherever that lies."""
    return Path(source.rpartition(":")[2]).stem


def read_preset(name: str) -> Preset:
    """Reads one that comes with the package."""
    values = yaml.safe_load(preset_path(name).read_text(encoding="utf-8"))
    method, student = part(values, "method"), StudentConfig(**part(values, "student"))
    settings = {
        "students": values.get("students", 1),
        "student": asdict(student),
        "method": asdict(METHODS[method.get("kind", "matching")](**method)),
        "generator": asdict(GeneratorConfig(**part(values, "generator"))),
    }
    cell = (name.partition("/")[0], data_set_name(values["data"]["source"]), values["ipc"], student.initialization)
    return Preset(name=name, cell=cell, settings=settings)


def differences(run: Mapping[str, Any], preset: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings of a run and of a preset where they are not the same, by dotted name.

    What one of them lacks (a run may be older than a setting) and where files lie are none.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(run.keys() & preset.keys()):
        if isinstance(preset[key], Mapping):
            found |= differences(part(run, key), preset[key], f"{above}{key}.")
        elif run[key] != preset[key] and key not in _PLACES:
            found[above + key] = (run[key], preset[key])
    return found


def identify(run: RunFolder, known: Sequence[Preset]) -> tuple[Cell, Preset | None]:
    """The cell of a run, and the preset with the cell's recipe.

    The method is that of the preset with the nearest settings of method and generator, since several share one kind.
    """
    method, student = part(run.config, "method"), part(run.config, "student")
    kind = method.get("kind", "matching")
    place = (data_set_name(facts.data_set(run)), run.config.get("ipc", 0), student.get("initialization", "fresh"))

    generator = {**asdict(GeneratorConfig()), **part(run.config, "generator")}

    def distance(preset: Preset) -> tuple[int, int]:
        elsewhere = sum(own != other for own, other in zip(place, preset.cell[1:], strict=True))
        settings = preset.settings
        apart = len(differences(method, settings["method"])) + len(differences(generator, settings["generator"]))
        return apart, elsewhere

    alike = [preset for preset in known if preset.settings["method"]["kind"] == kind]
    cell = (min(alike, key=distance).cell[0] if alike else str(kind), *place)
    same = [preset for preset in alike if preset.cell == cell]
    recipes = [preset for preset in same if not preset.name.endswith(_BUDGET)] or same
    return cell, min(recipes, key=distance, default=None)


def published_figures(entries: Sequence[Mapping[str, Any]]) -> dict[Cell, tuple[str, str]]:
    """Accuracy and its source with the protocol, by cell; the first entry of a cell wins."""
    found: dict[Cell, tuple[str, str]] = {}
    for entry in entries:
        for data_set, figures in entry["accuracy"].items():
            for ipc, accuracy in figures.items():
                cell = (entry["method"], data_set, ipc, entry["initialisation"])
                found.setdefault(cell, (str(accuracy), f"{entry['source']}: {entry['protocol']}"))
    return found


def accuracy(arm: Mapping[str, Any]) -> str:
    """Mean ± standard deviation in per cent."""
    return f"{100 * arm['mean']:.1f} ± {100 * arm['std']:.1f}" if arm else "not measured"


def machine(run: RunFolder) -> str:
    """What the run was computed on."""
    plan = part(run.results, "plan")
    threads = f", {plan.get('threads', '?')} threads" if plan.get("device", "cpu") == "cpu" else ""
    return facts.hardware(run) + threads


def comparison(run: RunFolder, recipe: Preset | None) -> tuple[str, str]:
    """How the run's settings stand to a preset: in two words, and in full."""
    if recipe is None:
        return "no preset", "No preset of this cell to compare with."
    changed = differences(run.config, recipe.settings)
    if not changed:
        return f"as `{recipe.name}`", f"Settings as in `{recipe.name}`."
    listed = ", ".join(f"`{name}` {own} instead of {other}" for name, (own, other) in changed.items())
    return f"{len(changed)} differ", f"Settings that differ from `{recipe.name}`: {listed}."


def about_comparison(path: Path, results: Path, folder: Path) -> dict[str, Any]:
    """What the page shows of a comparison: its name and place, table, plots, and the images of its arms."""
    link, found = Path(os.path.relpath(path, folder)).as_posix(), read_comparison_folder(path)
    arms = [row.name for row in found.rows if row.run is not None and (path / ARMS / row.name / "images.png").is_file()]
    environment = json.loads((path / "environment.json").read_bytes())
    return {
        "name": found.name,
        "link": f"[{path.relative_to(results).as_posix()}]({link})",
        "table": markdown(found),
        "plots": [f"{link}/{name}" for name in (TIME_PLOT, SIZE_PLOT) if (path / name).is_file()],
        "arms": [(name, f"{link}/{ARMS}/{name}/images.png") for name in arms],
        "commit": environment.get("git_commit", "unknown"),
        "machine": environment.get("gpu", {}).get("name") or f"{environment['cpu']}, {environment['threads']} threads",
    }


def make_page(results: Path, published: Path, folder: Path) -> str:
    """The page's text.

    Args:
        results: run folders by machine, ``results/*/*``.
        published: the file of published figures.
        folder: where the page will be, which its links start from.
    """
    known = [read_preset(name) for name in presets()]
    figures = published_figures(yaml.safe_load(published.read_text(encoding="utf-8")))
    folders = [path.parent for path in sorted(results.glob("*/*/config.yaml"))]
    compared = [path for path in folders if (path / ARMS).is_dir()]
    runs = {path: read_run(path) for path in folders if path not in compared}
    judged = {path: run for path, run in runs.items() if any(map(facts.is_distilled, run.arms))}
    placed = [(*identify(run, known), path, run) for path, run in judged.items()]
    rows: list[dict[str, Any]] = []
    sources: list[str] = []
    for cell, recipe, path, run in sorted(placed, key=lambda entry: (entry[0], entry[2])):
        label, link = path.relative_to(results).as_posix(), Path(os.path.relpath(path, folder)).as_posix()
        (figure, source), (short, full) = figures.get(cell, ("none", "")), comparison(run, recipe)
        if source and source not in sources:
            sources.append(source)
        last, *selected = [arm for arm in run.arms if facts.is_distilled(arm)]
        cells = {
            "run": f"[{label}]({link})",
            **dict(zip(("method", "data set", "images per class", "initialisation"), cell, strict=True)),
            "student": facts.architecture(run),
            "protocol": facts.protocol(run),
            "networks": last["students"],
            "distilled": accuracy(last) + "".join(f" (best {accuracy(arm)})" for arm in selected),
            "random real": accuracy(facts.reference(run, facts.RANDOM)),
            "whole set": accuracy(facts.reference(run, facts.WHOLE)),
            "published": f"{figure} [{sources.index(source) + 1}]" if source else figure,
            "settings": short,
            "time to distil": duration(facts.seconds(run)),
            "machine": machine(run),
        }
        picture = f"{link}/images.png" if (path / "images.png").is_file() else ""
        student = facts.architecture(run)
        if student.startswith("convnet"):  # the others have layers of their own, whatever the configuration says
            student += f": {facts.layers(run)}"
        about = {"picture": picture, "settings": full, "student": student, "remarks": run.remarks}
        rows.append({"cells": cells, "commit": run.environment.get("git_commit", "unknown"), **about})
    # Markdown, not HTML: nothing is to be escaped
    pages = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    left = [path.relative_to(results).as_posix() for path in runs if path not in judged]
    comparisons = [about_comparison(path, results, folder) for path in compared]
    page = pages.get_template(TEMPLATE).render(rows=rows, sources=sources, left=left, comparisons=comparisons)
    return page.rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page, or says that it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page would change")
    options = parser.parse_args(arguments)
    text = make_page(RESULTS, PUBLISHED, HERE)
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("expected docs/results.md to follow from bench/results, got another: run python docs/make_results.py")


if __name__ == "__main__":
    main()
