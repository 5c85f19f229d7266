"""What ``fastdistill bench`` does in a checkout: measure, and hold the figures against committed ones or a revision."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench import gate
from bench.table import load
from bench.versus import compare
from bench.worker import environment
from bench.workloads import chosen_cases

ROOT = Path(__file__).parent.parent


def main(words: list[str] | None = None) -> int:
    """Measures, compares and says what has changed.

    Returns:
        The exit code: 0 nothing is worse, 1 a benchmark failed, 2 wrong usage, 3 something is worse, 4 nothing to
        compare with, 130 interrupted.
    """
    options = _parse(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and so leave nothing behind
    try:
        return _against_revision(options) if options.base else _against_baseline(options)
    except FileNotFoundError as error:
        return _complain(str(error), gate.NO_BASELINE)
    except (ValueError, RuntimeError) as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fastdistill bench",
        description="Benchmarks against the textbook. Without --compare, --base or --update they are only shown.",
        epilog="Exit codes: 0 nothing is worse, 1 a benchmark failed, 2 wrong usage, 3 something is worse, 4 nothing "
        "to compare with.",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--compare", metavar="BASELINE", help="hold counters and speed-ups against committed figures")
    one.add_argument("--base", metavar="REV", help="hold times against a revision, in rounds that alternate")
    one.add_argument("--update", metavar="BASELINE", help="write counters and new bounds into a file of figures")
    parser.add_argument("--set", default="short", choices=("short", "full"), help="short takes minutes (default)")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the benchmarks' names; not with --update")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, the steadiest)")
    parser.add_argument("--json", metavar="FILE", help="keep what pytest-benchmark writes")
    parser.add_argument("--results", metavar="FILE", help="hold what --json has kept, measure nothing")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, in fresh processes")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of rounds per benchmark (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="of --base (default: 15)")
    parser.add_argument("--tolerance", type=float, help="of --base (default: 0.1 on a CPU, 0.05 on a GPU)")
    options = parser.parse_args(words)
    if options.tolerance is None:
        options.tolerance = 0.05 if options.device == "cuda" else 0.1
    for wrong, sentence in (
        (options.threads < 1 or options.rounds < 1, "expected --threads and --rounds of at least 1"),
        (options.tolerance < 0 or options.budget <= 0, "expected a --tolerance >= 0 and a --budget above 0"),
        (options.update and options.only, "expected --update of a whole set, got --only: leave it out"),
        (
            options.results and not (options.compare or options.update),
            "expected --results with --compare or --update, got it alone: name what to hold them against",
        ),
        (
            options.device == "cuda" and not options.results and not torch.cuda.is_available(),
            "expected a CUDA device for --device cuda, found none: use --device cpu",
        ),
        (
            not chosen_cases(options.set, options.device, options.only),
            f"expected parts of the names of benchmarks in the {options.set} set, got {options.only}",
        ),
        *(
            (file and not Path(file).absolute().parent.is_dir(), f"expected a folder to write {file} into, got none")
            for file in (options.json, options.update)
        ),
    ):
        if wrong:
            parser.error(sentence)
    return options


def _against_baseline(options: argparse.Namespace) -> int:
    path = Path(options.compare or options.update or "")
    baseline = gate.Baseline()
    if options.compare or (options.update and path.exists()):
        baseline = _baseline(path)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(options.results or options.json or Path(folder) / "results.json").resolve()
        if not options.results and _measure(options, results):
            return _complain("expected every benchmark to run, got the failures above", 1)
        run = gate.Run.of(*load(results))
    if options.update:
        baseline.updated(run).write(path)
        print(f"wrote {path}")
    if not options.compare:
        return gate.DONE
    if not gate.has_exact(baseline, run):
        raise FileNotFoundError(
            f"expected counters of {run.which} under torch {run.torch} in {path}, got none: add them with --update"
        )
    if options.only:  # what was not chosen is not missing
        baseline = baseline.only(lambda name: any(part in name for part in options.only))
    worse = gate.exact(run, baseline) + gate.ratio(run, baseline)
    for sentence in worse:
        print(sentence)
    print(f"{len(run.found)} benchmarks, {len(worse)} differences from {path}")
    return gate.REGRESSION if worse else gate.DONE


def _baseline(path: Path) -> gate.Baseline:
    try:
        return gate.Baseline.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a file of committed figures in {path}, got none: make it with --update"
        ) from None


def _measure(options: argparse.Namespace, results: Path) -> int:
    """Runs ``pytest bench``; its table and failures go to the terminal."""
    command: list[Any] = [sys.executable, "-m", "pytest", "-q", "bench", "--set", options.set]
    command += ["--device", options.device, "--threads", options.threads, "--budget", options.budget]
    command += ["--memory"] * options.memory
    command += ["--only", *options.only] * bool(options.only)
    command += [f"--benchmark-json={results}"]
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(ROOT)).returncode


def _against_revision(options: argparse.Namespace) -> int:
    slower = faster = compared = missing = 0
    names = [case.name for case in chosen_cases(options.set, options.device, options.only)]
    for found in compare(
        ROOT, options.base, names, device=options.device, threads=options.threads, rounds=options.rounds
    ):
        if isinstance(found, str):
            missing += 1
            print(f"{found}: not in {options.base}, so there is nothing to compare it with", flush=True)
            continue
        print(found.line(options.tolerance), flush=True)
        compared += 1
        slower += found.slower(options.tolerance)
        faster += found.faster(options.tolerance)
    print(
        f"{compared} benchmarks against {options.base}, {options.rounds} rounds each, tolerance "
        f"{100 * options.tolerance:.0f} %: {slower} slower, {faster} faster, {missing} without a counterpart"
    )
    if not compared:
        return _complain(f"expected a benchmark that {options.base} has too, got none", gate.NO_BASELINE)
    return gate.REGRESSION if slower else gate.DONE


def _complain(sentence: str, code: int) -> int:
    print(f"fastdistill: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
