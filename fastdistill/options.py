"""The words of the command line: the parsers of the verbs. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import SUPPRESS, Namespace

from fastdistill.baseline_config import BaselineConfig
from fastdistill.checks import at_least, one_of
from fastdistill.comparison_config import comparisons
from fastdistill.config import DEVICES, RunConfig, StudentConfig, preset_path
from fastdistill.experts_config import ExpertsConfig
from fastdistill.method_configs import METHODS
from fastdistill.parser import Parser, Terse, check_keys, keys, read_options
from fastdistill.profile_config import OUTPUT, ProfileConfig

DEFAULT_PRESET = "dc/digits-1"
_ONLY_ASKED = ("initialization", "pretrained")
_BEGINNINGS = ("student.initialization", "student.pretrained")


def run_parser(preset: str | None, kind: str = "matching") -> Parser:
    """The parser of ``run`` for a kind of method: defaults < preset < ``--config`` file < flags."""
    parser = Parser(
        prog="fastdistill run",
        usage="fastdistill run [PRESET] [--config FILE] [--name value ...]",
        description=f"Distil and judge. PRESET is one that `fastdistill presets` lists, {DEFAULT_PRESET} by default.",
        default_config_files=[] if preset is None else [str(preset_path(preset))],
    )
    parser.add_argument("--config", action="config", help="a YAML file of options; keys it does not know are errors")
    parser.add_class_arguments(RunConfig, as_group=False, skip={"method"})
    parser.add_class_arguments(METHODS[kind], "method")
    return parser


def parse_run(words: Sequence[str]) -> RunConfig:
    """The configuration of ``run``'s arguments.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, for wrong arguments.
    """
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    files = list(_files(words))
    if preset is None and not files:
        preset = DEFAULT_PRESET
    try:
        for file in files:
            check_file(Path(file))
        parser = run_parser(preset, _kind(preset, files, words))
        parsed = parser.instantiate(parser.parse(words))
        return RunConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(RunConfig)})
    except ValueError as error:
        hint = f"; for a configuration file use --config {preset}" if preset and Path(preset).is_file() else ""
        print(f"fastdistill run: {error}{hint}", file=sys.stderr)
        raise SystemExit(2) from None


def profile_parser(preset: str | None, kind: str = "matching") -> Parser:
    """The parser of ``profile``: that of ``run`` with what is measured."""
    parser = run_parser(preset, kind)
    parser.prog = "fastdistill profile"
    parser.usage = "fastdistill profile [PRESET] [--config FILE] [--name value ...]"
    parser.description = f"Measure a run's steps; no images are kept. PRESET as of run, {DEFAULT_PRESET} by default."
    parser.add_class_arguments(ProfileConfig, as_group=False, skip={"run"})
    parser.set_defaults(output=OUTPUT)
    return parser


def parse_profile(words: Sequence[str]) -> ProfileConfig:
    """The configuration of ``profile``'s arguments; raises as `parse_run` does."""
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    files = list(_files(words))
    if preset is None and not files:
        preset = DEFAULT_PRESET
    own = [field.name for field in dataclasses.fields(ProfileConfig) if field.name != "run"]
    with _usage("profile"):
        for file in files:
            check_file(Path(file), [*_keys_of_runs(), *own], "fastdistill profile --print_config")
        parser = profile_parser(preset, _kind(preset, files, words))
        parsed = parser.instantiate(parser.parse(words))
        run = RunConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(RunConfig)})
        return ProfileConfig(run=run, **{name: parsed[name] for name in own})


def run_of(values: Mapping[str, Any], where: str) -> RunConfig:
    """The configuration of a run from nested options, as a file of them has.

    Args:
        values: the options; the rest is the default.
        where: they stand, for complaints.

    Raises:
        ValueError: for keys that no run has, or values that cannot be.
        SystemExit: with code 2, after one sentence on stderr, for values of another type.
    """
    check_keys(values, where, _keys_of_runs(), "fastdistill run --print_config")
    parser = run_parser(None, _kind_of(values, "matching"))
    parser.where = f" in {where}"
    parsed = parser.instantiate(parser.parse_object(dict(values)))
    return RunConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(RunConfig)})


def evaluate_parser() -> Parser:
    """The parser of ``evaluate``."""
    parser = Parser(prog="fastdistill evaluate", description="Train fresh students on a run's images.")
    parser.add_argument("run", type=str, help="run folder, or its distilled.safetensors")
    parser.add_argument("--students", type=int, default=20, help="fresh students (per run)")
    parser.add_argument("--protocol", type=str, default="", help="dc, dsa, default or own; the run's by default")
    parser.add_argument("--epochs", type=int, default=0, help="epochs; the protocol's by default")
    parser.add_argument("--images", type=str, default="last", help="last, or best on validation")
    parser.add_argument("--test_images", type=int, default=0, help="of the test set, evenly spread; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--random_real", type=bool, default=True, help="judge as many random real images too")
    _add_data(parser)
    for field in dataclasses.fields(StudentConfig):
        help_text = "fresh unless told" if field.name in _ONLY_ASKED else "of the student; the run's by default"
        parser.add_argument(f"--{field.name}", type=type(field.default), help=help_text)
    return parser


def export_parser() -> Parser:
    """The parser of ``export``."""
    parser = Parser(prog="fastdistill export", description="Write a run's images for other programs.")
    parser.add_argument("run", type=str, help="run folder, or one of its files of images")
    parser.add_argument("--to", type=str, required=True, help="safetensors, png, pt or hf")
    parser.add_argument("--output", type=str, default="", help="folder to create; exports/TO in the run by default")
    parser.add_argument("--images", type=str, default="last", help="last, or best on validation")
    parser.add_argument(
        "--students", type=int, default=5, help="fresh students (per run) that measure what 8 bits lose; 0 for none"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    _add_data(parser)
    return parser


def sample_parser() -> Parser:
    """The parser of ``sample``."""
    parser = Parser(prog="fastdistill sample", description="Draw labelled images from a finished run's generator.")
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--num_images", type=int, required=True, help="how many of each run, class after class")
    parser.add_argument("--seed", type=int, default=0, help="of noise beyond that which was trained on")
    parser.add_argument("--output", type=str, default="", help="folder to create; samples/N-SEED in the run by default")
    return parser


def parse_sample(words: Sequence[str]) -> Namespace:
    """The options of ``sample``; raises as `parse_evaluate` does."""
    options = sample_parser().parse(words)
    with _usage("sample"):
        at_least(1, num_images=options.num_images)
        at_least(0, seed=options.seed)
    return options


def compare_parser() -> Parser:
    """The parser of ``compare``."""
    parser = Parser(
        prog="fastdistill compare",
        description="Distil several arms at equal time or equal steps and put them to the same tests.",
    )
    parser.add_argument("file", type=str, help="a YAML file, or one that comes along: " + ", ".join(comparisons()))
    parser.add_argument("--name", type=str, default="", help="folder of the comparison; the file's by default")
    parser.add_argument("--output", type=str, default="comparisons", help="folder of comparisons")
    parser.add_argument("--seconds", type=float, default=0.0, help="of distilling each arm; the file's by default")
    parser.add_argument("--steps", type=int, default=0, help="of each arm; the file's by default")
    parser.add_argument("--seed", type=int, default=-1, help="of every draw; the file's by default")
    parser.add_argument("--device", type=str, default="", help="auto, cpu or cuda; the file's by default")
    parser.add_argument("--data.root", type=str, default="", help="folder of torchvision's sets; the file's by default")
    return parser


def parse_compare(words: Sequence[str]) -> Namespace:
    """The options of ``compare``; raises as `parse_evaluate` does."""
    options = compare_parser().parse(words)
    with _usage("compare"):
        at_least(0, seconds=options.seconds, steps=options.steps)
        at_least(-1, seed=options.seed)
        if options.device:
            one_of("device", options.device, DEVICES)
        if options.seconds and options.steps:
            raise ValueError("expected seconds or steps, got both: arms are given equal time or equal steps")
    return options


def report_parser() -> Parser:
    """The parser of ``report``."""
    parser = Parser(prog="fastdistill report", description="Write one page about a run, or comparing several.")
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--output", type=str, default="", help="the page; report.html in the run, comparison.html for several"
    )
    return parser


def parse_evaluate(words: Sequence[str]) -> Namespace:
    """The options of ``evaluate``.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, for wrong arguments.
    """
    options = evaluate_parser().parse(words)
    with _usage("evaluate"):
        one_of("images", options.images, ("last", "best"))
        one_of("device", options.device, DEVICES)
        if options.protocol:
            one_of("protocol", options.protocol, ("dc", "dsa", "default", "own"))
        at_least(1, students=options.students)
        at_least(0, epochs=options.epochs, seed=options.seed, test_images=options.test_images)
        given = {field.name: options.get(field.name) for field in dataclasses.fields(StudentConfig)}
        StudentConfig(**{name: value for name, value in given.items() if value is not None})
    return options


def parse_export(words: Sequence[str]) -> Namespace:
    """The options of ``export``; raises as `parse_evaluate` does."""
    options = export_parser().parse(words)
    with _usage("export"):
        one_of("to", options.to, ("safetensors", "png", "pt", "hf"))
        one_of("images", options.images, ("last", "best"))
        one_of("device", options.device, DEVICES)
        at_least(0, students=options.students)
    return options


@contextmanager
def _usage(verb: str) -> Iterator[None]:
    """Makes wrong values wrong usage."""
    try:
        yield
    except ValueError as error:
        print(f"fastdistill {verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _terse_parser(verb: str, description: str, settings: type) -> Parser:
    """The parser of a verb whose options are the fields of one class of settings, with help of one screen."""
    parser = Parser(
        prog=f"fastdistill {verb}",
        usage=f"fastdistill {verb} [PRESET] [--config FILE] [--name value ...]",
        description=description,
        formatter_class=Terse,
    )
    parser.add_argument("--config", action="config", help="a YAML file of these options")
    parser.add_class_arguments(settings, as_group=False)
    for action in parser._actions:
        if action.dest in ("data", "student", *_BEGINNINGS):
            action.help = SUPPRESS
        elif action.dest == "print_config":
            action.help = "print these options as such a file"
    return parser


def _lent(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run's preset lends of its data and student, by dotted name, and all that it says."""
    values = yaml.safe_load(preset_path(preset).read_text(encoding="utf-8"))
    lent = {f"{group}.{name}": value for group in ("data", "student") for name, value in values[group].items()}
    # students begin with weights of their own, whatever the preset's do
    return {name: lent[name] for name in lent if name not in _BEGINNINGS}, values


def experts_parser(preset: str | None) -> Parser:
    """The parser of ``experts``: defaults < data and student of a run's preset < ``--config`` file < flags."""
    parser = _terse_parser(
        "experts",
        "Train experts for trajectory matching. PRESET, a run's, lends its data and its student.",
        ExpertsConfig,
    )
    if preset is not None:
        parser.set_defaults(_lent(preset)[0])
    return parser


def parse_experts(words: Sequence[str]) -> ExpertsConfig:
    """The configuration of ``experts``'s arguments; raises as `parse_run` does."""
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    with _usage("experts"):
        for file in _files(words):
            check_file(Path(file), dict(keys(ExpertsConfig().as_dict())), "fastdistill experts --print_config")
        parser = experts_parser(preset)
        parsed = parser.instantiate(parser.parse(words))
        return ExpertsConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(ExpertsConfig)})


def baseline_parser(preset: str | None) -> Parser:
    """The parser of ``baseline``: defaults < what a run's preset lends < ``--config`` file < flags."""
    parser = _terse_parser(
        "baseline",
        "Judge real images instead of distilled ones. PRESET lends its data, student, ipc and protocol.",
        BaselineConfig,
    )
    if preset is not None:
        lent, values = _lent(preset)
        lent["ipc"] = values["ipc"]
        # real images have no steps of their own
        if values["evaluation"]["protocol"] != "own":
            lent["protocol"] = values["evaluation"]["protocol"]
        parser.set_defaults(lent)
    return parser


def parse_baseline(words: Sequence[str]) -> BaselineConfig:
    """The configuration of ``baseline``'s arguments; raises as `parse_run` does."""
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    with _usage("baseline"):
        for file in _files(words):
            check_file(Path(file), dict(keys(BaselineConfig().as_dict())), "fastdistill baseline --print_config")
        parser = baseline_parser(preset)
        parsed = parser.instantiate(parser.parse(words))
        return BaselineConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(BaselineConfig)})


def plain_parser(verb: str, description: str) -> Parser:
    """The parser of a verb without options."""
    return Parser(prog=f"fastdistill {verb}", description=description)


def _add_data(parser: Parser) -> None:
    parser.add_argument("--data.source", type=str, default="", help="where the test set is; the run's by default")
    parser.add_argument("--data.root", type=str, default="", help="folder of torchvision's sets; the run's by default")


def _files(words: Sequence[str]) -> Iterator[str]:
    """The configuration files that the words name."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word == "--config" and following:
            yield following
        elif word.startswith("--config="):
            yield word.partition("=")[2]


def check_file(path: Path, valid: Iterable[str] = (), lister: str = "fastdistill run --print_config") -> None:
    """Refuses a configuration file that cannot be read, is no mapping or has a key that no configuration has.

    Args:
        path: the file.
        valid: the keys there are; those of a run by default.
        lister: the command that lists them.

    Raises:
        ValueError: saying which.
    """
    check_keys(read_options(path), str(path), list(valid) or _keys_of_runs(), lister)


def _kind(preset: str | None, files: Sequence[str], words: Sequence[str]) -> str:
    """The kind of method that is asked for: by the last flag, else the last file that says it, else the preset.

    It decides which options there are, so it is needed before anything is parsed.

    Raises:
        ValueError: for an unknown kind; names the nearest one.
    """
    kind = "matching"
    for file in [*([str(preset_path(preset))] if preset else []), *files]:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        kind = _kind_of(content, kind)
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word.partition("=")[0] == "--method.kind":
            kind = word.partition("=")[2] or following
    one_of("method.kind", kind, tuple(METHODS))
    return kind


def _kind_of(values: Mapping[str, Any], kind: str) -> str:
    """The kind of method that options name, or else that one."""
    given = values.get("method")
    found = str(given.get("kind", kind)) if isinstance(given, Mapping) else kind
    one_of("method.kind", found, tuple(METHODS))
    return found


def _keys_of_runs() -> list[str]:
    return list(dict.fromkeys(name for kind in METHODS for name, _ in keys(_defaults(kind))))


def _defaults(kind: str) -> dict[str, Any]:
    return {**RunConfig().as_dict(), "method": dataclasses.asdict(METHODS[kind]())}
