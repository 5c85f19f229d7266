"""Reading a comparison from its file. Nothing here imports torch.

::

    seconds: 120               # of distilling every arm; or steps: 300; or neither, and every arm has its own
    base: {...}                # options of `fastdistill run` that all arms share
    arms:
      matching-generator: {preset: dc/mnist-1, generator: {...}}   # options of its own; of a preset below base
    tests:
      lenet: {student: {architecture: lenet}, students: 5, epochs: 100}
    pretraining: {networks: 5, epochs: 2}
    baselines: {baselines: [random_real, herding]}                 # options of `fastdistill baseline`
"""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastdistill.baseline_config import BaselineConfig
from fastdistill.comparison_config import (
    ARMS,
    COMPARISONS,
    ComparisonConfig,
    PretrainingConfig,
    TestConfig,
    comparisons,
    judged_alike,
    pretrained_folder,
    with_defaults,
)
from fastdistill.config import RunConfig, StudentConfig, preset_path
from fastdistill.options import run_of
from fastdistill.parser import read_options

_Settings = TypeVar("_Settings", TestConfig, PretrainingConfig, BaselineConfig)
_KEYS = ("name", "seconds", "steps", "images", "base", "arms", "tests", "pretraining", "baselines")
_OWN = ("name", "output")  # of a run, which the comparison says


def read_comparison(
    file: str,
    *,
    output: str = "comparisons",
    name: str = "",
    seconds: float = 0.0,
    steps: int = 0,
    **changes: Any,
) -> ComparisonConfig:
    """Reads a comparison.

    Args:
        file: path of a YAML file, or the name of one that comes with the package.
        output: folder of comparisons.
        name: of the folder below it; by default the file's ``name``, or what the file is called.
        seconds: in place of the file's ``seconds`` or ``steps``.
        steps: the same.
        **changes: options that win over those of all arms, nested as in the file.

    Raises:
        ValueError: for a file that is no comparison, in one sentence that says where.
        SystemExit: with code 2, after one sentence on stderr, for values of another type.
    """
    path = COMPARISONS / f"{file}.yaml" if file in comparisons() else Path(file)
    if not path.exists():
        near = difflib.get_close_matches(file, comparisons(), n=1)
        hint = f"did you mean {near[0]}" if near else f"{', '.join(comparisons())} come along"
        raise ValueError(f"expected a YAML file or the name of a comparison, got {file!r}: {hint}")
    values = read_options(path)
    for key in values:
        _known(str(key), _KEYS, str(path))
    name = name or str(values.get("name", path.stem))
    if seconds or steps:
        values["seconds"], values["steps"] = seconds, steps
    budget = {key: values[key] for key in ("seconds", "steps") if values.get(key)}
    if len(budget) > 1:
        raise ValueError(f"expected seconds or steps in {path}, got both: arms are given equal time or equal steps")
    base, pretrained = _mapping(values, "base", path), str(pretrained_folder(output, name))
    arms: dict[str, RunConfig] = {}
    for arm in _mapping(values, "arms", path):
        own = dict(_mapping(values["arms"], arm, path))
        preset = own.pop("preset", None)
        below = {} if preset is None else yaml.safe_load(preset_path(str(preset)).read_text(encoding="utf-8"))
        options = with_defaults(with_defaults(with_defaults(below, base), own), changes)
        if stated := [key for key in _OWN if key in {**base, **own}]:
            raise ValueError(
                f"expected no {stated[0]} of the arm {arm} in {path}, got one: the comparison names its runs"
            )
        options |= {
            "name": arm,
            "output": str(Path(output) / name / ARMS),
            **({"seconds": budget["seconds"]} if "seconds" in budget else {}),
        }
        if "steps" in budget:
            options["method"] = {**_mapping(options, "method", path), "steps": budget["steps"]}
        options["student"] = _pretrained(_mapping(options, "student", path), pretrained)
        read = run_of(options, f"the arm {arm} of {path}")
        if any(judged_alike(before, read) for before in arms.values()):  # random real images are judged once
            read = dataclasses.replace(read, evaluation=dataclasses.replace(read.evaluation, random_real=False))
        arms[arm] = read
    tests = {
        test: _test(_mapping(values["tests"], test, path), test, path, pretrained)
        for test in _mapping(values, "tests", path)
    }
    return ComparisonConfig(
        name=name,
        output=output,
        arms=arms,
        tests=tests,
        images=str(values.get("images", "last")),
        pretraining=_built(PretrainingConfig, _mapping(values, "pretraining", path), f"pretraining in {path}"),
        baselines=_baselines(_mapping(values, "baselines", path), arms, Path(output) / name, path)
        if "baselines" in values
        else None,
    )


def _test(values: Mapping[str, Any], name: str, path: Path, pretrained: str) -> TestConfig:
    student = _pretrained(_mapping(values, "student", path), pretrained)
    for key in student:
        _known(
            key,
            tuple(field.name for field in dataclasses.fields(StudentConfig)),
            f"student of the test {name} in {path}",
        )
    return _built(TestConfig, {**values, "student": student}, f"the test {name} in {path}")


def _baselines(values: Mapping[str, Any], arms: Mapping[str, RunConfig], folder: Path, path: Path) -> BaselineConfig:
    if not arms:
        raise ValueError(f"expected arms beside the baselines in {path}, got none: use fastdistill baseline")
    first = next(iter(arms.values()))
    shared = {
        "name": "baselines",
        "output": str(folder),
        "ipc": first.ipc,
        "protocol": "default" if first.evaluation.protocol == "own" else first.evaluation.protocol,
        "seed": first.seed,
        "data": first.data,
        "student": dataclasses.replace(first.student, initialization="fresh", pretrained=""),
        "device": first.device,
        "threads": first.threads,
    }
    if taken := [key for key in values if key in shared]:
        raise ValueError(
            f"expected no {taken[0]} of the baselines in {path}, got one: the first arm's are used for all"
        )
    given = {**values, **({"baselines": tuple(values["baselines"])} if values.get("baselines") else {})}
    if given.get("against"):  # the name of an arm
        _known(str(given["against"]), tuple(arms), f"against of the baselines in {path}")
        given["against"] = str(folder / ARMS / given["against"])
    return _built(BaselineConfig, {**shared, **given}, f"baselines in {path}")


def _pretrained(student: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A student's options, its weights from the comparison's own networks where nothing else is said."""
    own = student.get("initialization") == "pretrained" and not student.get("pretrained")
    return {**student, "pretrained": folder} if own else dict(student)


def _mapping(values: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = values.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(
            f"expected a mapping below {key} in {path}, got {reprlib.repr(found)}: write lines of `name: value`"
        )
    return {str(name): value for name, value in found.items()}


def _known(key: str, valid: tuple[str, ...], where: str) -> None:
    if key not in valid:
        near = difflib.get_close_matches(key, valid, n=1)
        hint = f"did you mean {near[0]!r}" if near else "leave it out"
        raise ValueError(f"expected one of {', '.join(valid)} in {where}, got {key!r}: {hint}")


def _built(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    """A frozen dataclass of flat options."""
    valid = tuple(field.name for field in dataclasses.fields(kind))
    for key in values:
        _known(key, valid, where)
    for field in dataclasses.fields(kind):
        default = field.default
        if field.name in values and type(default) in (int, str) and type(values[field.name]) is not type(default):
            raise ValueError(
                f"expected {field.name} of {where} as {type(default).__name__}, got "
                f"{reprlib.repr(values[field.name])}: correct it"
            )
    return kind(**values)
