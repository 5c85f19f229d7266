"""Reading back what a run folder's ``config.yaml`` says, as far as judging its images needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.causes import cause_of
from fastdistill.method_configs import METHODS
from fastdistill.report.folder import plain_yaml
from fastdistill.synthetic.description import DAMAGE, of_kind

_Part = TypeVar("_Part", StudentConfig, DataConfig, EvaluationConfig)
# what decides a judgement: a file without one of these would be judged as another run
_STUDENT = ("architecture", "depth", "width", "norm", "activation", "pooling", "weights")
_DATA, _EVALUATION = ("source", "root", "validation_fraction"), ("protocol",)


def read_configuration(folder: Path) -> RunConfig:
    """The seed, the student, the data and the evaluation of a run, and its method if that learns steps of its own.

    The numbers of runs and students are read as well. The rest is the default.

    Raises:
        ValueError: naming the file, when it is missing, damaged or no run's configuration.
    """
    path = folder / "config.yaml"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"expected config.yaml beside the images in {folder}, found none: name a run folder"
        ) from error
    try:
        values = of_kind(dict, plain_yaml(content.decode("utf-8")))
        seed, student = of_kind(int, _given(values, "seed")), _part(StudentConfig, values, "student", _STUDENT)
        counts: dict[str, Any] = {name: of_kind(int, _given(values, name)) for name in ("runs", "students")}
        return RunConfig(
            seed=seed,
            student=student,
            data=_part(DataConfig, values, "data", _DATA),
            evaluation=_part(EvaluationConfig, values, "evaluation", _EVALUATION),
            **_method(values),
            **counts,
        )
    except (yaml.YAMLError, *DAMAGE) as error:
        raise ValueError(
            f"expected the configuration of a run in {path}, got another file ({cause_of(error)}): name a run folder, "
            "or restore the file"
        ) from error


def _method(values: Mapping[str, Any]) -> dict[str, Any]:
    """A method that the protocol ``own`` belongs to, with the images per class that its batches divide."""
    given = of_kind(dict, values.get("method", {}))
    kind = given.get("kind", "matching")
    if kind == "matching":
        return {}
    return {"method": METHODS[kind](**given), "ipc": of_kind(int, _given(values, "ipc"))}


def _part(kind: type[_Part], values: Mapping[str, Any], name: str, needed: tuple[str, ...]) -> _Part:
    given = of_kind(dict, _given(values, name))
    for key in needed:
        _given(given, key, f"{name}.")
    for field in fields(kind):
        if field.name in given and not (isinstance(field.default, float) and type(given[field.name]) is int):
            of_kind(type(field.default), given[field.name])
    return kind(**given)


def _given(values: Mapping[str, Any], key: str, above: str = "") -> Any:
    if key not in values:
        raise LookupError(f"it has no {above}{key}")
    return values[key]
