"""The command line: verbs only, every verb one call into the package. Nothing here imports torch until a verb runs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fastdistill.comparison_config import ARMS
from fastdistill.config import StudentConfig, preset_path, presets
from fastdistill.failures import RunFailed, Stopped
from fastdistill.options import (
    parse_baseline,
    parse_compare,
    parse_evaluate,
    parse_experts,
    parse_export,
    parse_profile,
    parse_run,
    parse_sample,
    plain_parser,
    report_parser,
)

DONE, FAILED, USAGE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
_ADVICE = {
    errno.ENOSPC: "free some space and repeat the command",
    errno.EDQUOT: "free some space and repeat the command",
    errno.EFBIG: "raise the limit on file sizes and repeat the command",
    errno.EACCES: "check the permissions",
    errno.EROFS: "choose an --output that can be written",
}
_USAGE = """fastdistill VERB ...

Distils a training set into a handful of synthetic images.

  fastdistill run [PRESET] [options]       distil and judge; repeat the command to go on after a stop
  fastdistill evaluate RUN [options]       train fresh students on a run's images and test them
  fastdistill export RUN --to FORM         write a run's images for other programs: safetensors, png, pt, hf
  fastdistill report RUN...                write one page about a run, or comparing several
  fastdistill compare FILE [options]       distil arms at equal time or steps, one table of tests they have not seen
  fastdistill sample RUN --num_images N    draw labelled images from the generator of a finished run
  fastdistill experts [PRESET] [options]   train experts for trajectory matching
  fastdistill baseline [PRESET] [options]  judge coresets and other baselines: what distilled images have to beat
  fastdistill bench [options]              in a checkout: benchmarks, and whether anything has become worse
  fastdistill profile [PRESET] [options]   measure the phases of a step and throughput against students
  fastdistill presets                      list the presets
  fastdistill env                          describe this machine, for reports

`fastdistill VERB --help` lists the options of a verb. --debug shows the traceback of what went wrong.
Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped and saved: repeat the command to go on, 130 interrupted;
of bench also 3 something is worse, 4 nothing to compare with.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 75 stopped early and resumable, 130 interrupted; of bench also
        3 something is worse, 4 nothing to compare with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return DONE if words else USAGE
    verbs: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "evaluate": _evaluate,
        "export": _export,
        "report": _report,
        "sample": _sample,
        "compare": _compare,
        "experts": _experts,
        "baseline": _baseline,
        "bench": _bench,
        "profile": _profile,
        "presets": _presets,
        "env": _env,
    }
    if words[0] == "--version":
        from fastdistill import __version__

        print(f"fastdistill {__version__}")
        return DONE
    if words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        hint = f"did you mean {near[0]!r}" if near else "try --help"
        return _complain(f"expected a verb among {', '.join(verbs)}, got {words[0]!r}: {hint}", USAGE)
    try:
        return verbs[words[0]](words[1:])
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stdout = None
        return DONE
    except SystemExit as stop:  # the parser has said what is wrong with the arguments
        return int(stop.code or 0)
    except Stopped as stopped:
        return _complain(f"stopped by {stopped}: repeat the command to go on", RESUMABLE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        return _complain(_sentence(error), FAILED)


def _complain(sentence: str, code: int) -> int:
    print(f"fastdistill: {sentence}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    """What a user is told about a failure."""
    if isinstance(error, OSError) and error.strerror:
        advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
        return f"expected to read or write {error.filename or 'a file'}, got {error.strerror.lower()}: {advice}"
    if isinstance(error, ValueError | RunFailed):
        return " ".join(str(error).split())
    if _out_of_memory(error):
        return "expected enough memory, got none for this: free some, or lower --evaluation.students or --student.width"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"expected no such failure, got {text}: repeat with --debug and report it"


def _out_of_memory(error: Exception) -> bool:
    from fastdistill.loop.retry import is_out_of_memory  # what failed so has imported torch already

    return is_out_of_memory(error)


def _tell(text: str) -> None:
    """Says something from a signal handler, where a stream may be in the middle of a write."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"\nfastdistill: {text}\n".encode())


def _run(words: list[str]) -> int:
    config = parse_run(words)
    from fastdistill.loop.run import run
    from fastdistill.loop.stop import Stop
    from fastdistill.report.table import show_results
    from fastdistill.talkative import Talkative

    stop = Stop(_tell)
    with stop.on_signals():
        result = run(config, progress=Talkative(), stop=stop)
    assert result is not None
    show_results(result.table, result.folder)
    return DONE


def _evaluate(words: list[str]) -> int:
    options = parse_evaluate(words)
    from fastdistill.loop.evaluation import evaluate_run
    from fastdistill.talkative import Talkative

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
        test_images=options.test_images,
        seed=options.seed,
        device=options.device,
        source=options["data.source"] or None,
        root=options["data.root"] or None,
        random_real=options.random_real,
        progress=Talkative(),
    )
    print(f"{line['architecture']}: {evaluation}")
    if "random_real_mean" in line:
        mean, std = line["random_real_mean"], line["random_real_std"]
        print(f"random real: {100 * mean:.2f} ± {100 * std:.2f} % in the same way")
    return DONE


def _export(words: list[str]) -> int:
    options = parse_export(words)
    from fastdistill.loop.export import export_run
    from fastdistill.talkative import Talkative

    written = export_run(
        Path(options.run),
        to=options.to,
        output=Path(options.output) if options.output else None,
        images=options.images,
        students=options.students,
        device=options.device,
        source=options["data.source"] or None,
        root=options["data.root"] or None,
        progress=Talkative(),
    )
    print(written)
    return DONE


def _report(words: list[str]) -> int:
    options = report_parser().parse(words)
    from fastdistill.report.compare import write_comparison
    from fastdistill.report.comparison import write_comparison_report
    from fastdistill.report.page import write_report

    runs = [Path(run) for run in options.runs]
    if len(runs) == 1 and (runs[0] / ARMS).is_dir():
        print(write_comparison_report(runs[0]))
    elif len(runs) == 1:
        print(write_report(runs[0], Path(options.output) if options.output else None))
    else:
        print(write_comparison(runs, Path(options.output or "comparison.html")))
    return DONE


def _sample(words: list[str]) -> int:
    options = parse_sample(words)
    from fastdistill.loop.sample import sample_run

    output = Path(options.output) if options.output else None
    print(sample_run(Path(options.run), num_images=options.num_images, seed=options.seed, output=output))
    return DONE


def _compare(words: list[str]) -> int:
    options = parse_compare(words)
    from fastdistill.comparison_file import read_comparison

    changes: dict[str, Any] = {name: options[name] for name in ("device",) if options[name]}
    changes |= {"seed": options.seed} if options.seed >= 0 else {}
    changes |= {"data": {"root": options["data.root"]}} if options["data.root"] else {}
    budget = {name: options[name] for name in ("seconds", "steps") if options[name]}
    try:
        config = read_comparison(options.file, output=options.output, name=options.name, **budget, **changes)
    except ValueError as error:
        return _complain(str(error), USAGE)
    from fastdistill.loop.comparison import run_comparison
    from fastdistill.loop.stop import Stop
    from fastdistill.talkative import Talkative

    stop = Stop(_tell)
    with stop.on_signals():
        table = run_comparison(config, progress=Talkative(), stop=stop)
    print((config.folder / "table.md").read_text(encoding="utf-8"), end="")
    print(f"everything is in {config.folder}/ — open report.html")
    for name, row in table["arms"].items():
        causes = [row["failed"], *(score.get("failed", "") for score in row["tests"].values())]
        if said := next(filter(None, causes), ""):
            return _complain(f"expected every arm and test to finish, got {name} failed: {said}", FAILED)
    return DONE


def _experts(words: list[str]) -> int:
    config = parse_experts(words)
    from fastdistill.loop.experts import train_experts
    from fastdistill.loop.stop import Stop
    from fastdistill.talkative import Talkative

    stop = Stop(_tell)
    with stop.on_signals():
        print(train_experts(config, progress=Talkative(), stop=stop))
    return DONE


def _baseline(words: list[str]) -> int:
    config = parse_baseline(words)
    from fastdistill.loop.baseline import run_baselines
    from fastdistill.loop.stop import Stop
    from fastdistill.report.table import show_baselines
    from fastdistill.talkative import Talkative

    with Stop(_tell).on_signals():
        results = run_baselines(config, progress=Talkative())
    show_baselines(results, config.folder)
    return DONE


def _bench(words: list[str]) -> int:
    from fastdistill.checkout import run_bench

    run_bench(words, Path.cwd())


def _profile(words: list[str]) -> int:
    config = parse_profile(words)
    # before torch is imported: its profiler otherwise tells its own stages on stderr
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from fastdistill.loop.profile import profile
    from fastdistill.report.profile import show_profile
    from fastdistill.talkative import Talkative

    show_profile(profile(config, progress=Talkative()), config.folder)
    return DONE


def _presets(words: list[str]) -> int:
    plain_parser("presets", "List the presets.").parse(words)
    for name in presets():
        values = yaml.safe_load(preset_path(name).read_text())
        student = "-".join(
            str(values["student"][field]) for field in ("architecture", "depth", "width") if field in values["student"]
        )
        print(
            f"{name:<33}{values['data']['source']}, {values['ipc']} a class, {values['method']['steps']} steps, "
            f"{student}, protocol {values['evaluation']['protocol']}"
        )
    return DONE


def _env(words: list[str]) -> int:
    plain_parser("env", "Describe this machine.").parse(words)
    from fastdistill.derivatives.plan import unsupported
    from fastdistill.loop.environment import describe_environment
    from fastdistill.students.architectures import ARCHITECTURES, build_student

    description: dict[str, Any] = describe_environment()
    description["derivatives"] = {}
    for name in ARCHITECTURES:
        why = unsupported(build_student(name, channels=3, height=32, width=32, num_classes=10))
        description["derivatives"][name] = f"torch.func: {why}" if why else "dual layers on a CPU, torch.func elsewhere"
    print(json.dumps(description, indent=1))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
