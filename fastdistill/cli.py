"""The command line: verbs only, every verb one call into the package. Nothing here imports torch until a verb runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from fastdistill.config import RunConfig, StudentConfig, preset_path, presets

DEFAULT_PRESET = "dc/digits-1"
_USAGE = """fastdistill VERB ...

Distils a training set into a handful of synthetic images.

  fastdistill run [PRESET] [options]       distil and judge; repeat the command to go on after a stop
  fastdistill evaluate RUN [options]       train fresh students on a run's images and test them
  fastdistill presets                      list the presets
  fastdistill env                          describe this machine, for reports

`fastdistill VERB --help` lists the options of a verb.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else 2
    verbs = {"run": _run, "evaluate": _evaluate, "presets": _presets, "env": _env}
    if words[0] == "--version":
        from fastdistill import __version__

        print(f"fastdistill {__version__}")
        return 0
    if words[0] not in verbs:
        print(f"fastdistill: expected a verb among {', '.join(verbs)}, got {words[0]!r}: try --help", file=sys.stderr)
        return 2
    try:
        return verbs[words[0]](words[1:])
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stdout = None
        return 0
    except ValueError as error:
        print(f"fastdistill: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fastdistill: could not read or write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except SystemExit as stop:  # jsonargparse has said what is wrong with the arguments
        return int(stop.code or 0)


def run_parser(preset: str | None) -> ArgumentParser:
    """The parser of ``run``: defaults < preset < ``--config`` file < flags."""
    parser = ArgumentParser(
        prog="fastdistill run",
        usage="fastdistill run [PRESET] [--config FILE] [--name value ...]",
        description=f"Distil and judge. PRESET is one that `fastdistill presets` lists, {DEFAULT_PRESET} by default.",
        default_config_files=[] if preset is None else [str(preset_path(preset))],
    )
    parser.add_argument("--config", action="config", help="a YAML file of options; keys it does not know are errors")
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def parse_run(words: Sequence[str]) -> RunConfig:
    """The configuration of ``run``'s arguments.

    Raises:
        SystemExit: with code 2, after a message on stderr, for wrong arguments.
    """
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    if preset is None and not any(word.startswith("--config") for word in words):
        preset = DEFAULT_PRESET
    try:
        parser = run_parser(preset)
        parsed = parser.instantiate(parser.parse_args(words))
        return RunConfig(**{field.name: parsed[field.name] for field in dataclasses.fields(RunConfig)})
    except ValueError as error:
        hint = f"; for a configuration file use --config {preset}" if preset and Path(preset).is_file() else ""
        print(f"fastdistill run: {error}{hint}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(words: list[str]) -> int:
    config = parse_run(words)
    from fastdistill.loop.run import run
    from fastdistill.progress import Talkative
    from fastdistill.report.table import show_results

    result = run(config, progress=Talkative())
    assert result is not None
    show_results(result.table, result.folder)
    return 0


def evaluate_parser() -> ArgumentParser:
    """The parser of ``evaluate``."""
    parser = ArgumentParser(prog="fastdistill evaluate", description="Train fresh students on a run's images.")
    parser.add_argument("run", type=str, help="run folder, or its distilled.safetensors")
    parser.add_argument("--students", type=int, default=20, help="fresh students (per run)")
    parser.add_argument("--protocol", type=str, default="", help="dc, dsa or default; the run's by default")
    parser.add_argument("--epochs", type=int, default=0, help="epochs; the protocol's by default")
    parser.add_argument("--images", type=str, default="last", help="last, or best on validation")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--data.source", type=str, default="", help="where the test set is; the run's by default")
    parser.add_argument("--data.root", type=str, default="", help="folder of torchvision's sets; the run's by default")
    for field in dataclasses.fields(StudentConfig):
        if field.name in ("initialization", "pretrained"):
            continue  # fresh students are what an evaluation means
        parser.add_argument(f"--{field.name}", type=type(field.default), help="of the student; the run's by default")
    return parser


def _evaluate(words: list[str]) -> int:
    options: Namespace = evaluate_parser().parse_args(words)
    from fastdistill.loop.evaluation import evaluate_run
    from fastdistill.progress import Talkative

    student = {
        field.name: options[field.name]
        for field in dataclasses.fields(StudentConfig)
        if field.name in options and options[field.name] is not None
    }
    evaluation, line = evaluate_run(
        Path(options.run),
        student=student,
        students=options.students,
        protocol=options.protocol or None,
        epochs=options.epochs or None,
        images=options.images,
        seed=options.seed,
        device=options.device,
        source=options["data.source"] or None,
        root=options["data.root"] or None,
        progress=Talkative(),
    )
    print(f"{line['architecture']}: {evaluation}")
    return 0


def _presets(words: list[str]) -> int:
    ArgumentParser(prog="fastdistill presets", description="List the presets.").parse_args(words)
    for name in presets():
        values = yaml.safe_load(preset_path(name).read_text())
        student = "-".join(str(values["student"][field]) for field in ("architecture", "depth", "width"))
        print(
            f"{name:<22}{values['data']['source']}, {values['ipc']} a class, {values['method']['steps']} steps, "
            f"{student}, protocol {values['evaluation']['protocol']}"
        )
    return 0


def _env(words: list[str]) -> int:
    ArgumentParser(prog="fastdistill env", description="Describe this machine.").parse_args(words)
    from fastdistill.loop.environment import describe_environment

    description: dict[str, Any] = describe_environment()
    print(json.dumps(description, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
