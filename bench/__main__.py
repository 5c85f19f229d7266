"""What ``fastdistill bench`` does in a checkout: measure, and hold the figures against committed ones or a revision."""

from __future__ import annotations

import argparse
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
from bench.workloads import all_cases

ROOT = Path(__file__).parent.parent


def main(words: list[str] | None = None) -> int:
    """Measures, compares and says what has changed.

    Returns:
        The exit code: 0 nothing is worse, 1 a benchmark failed, 2 wrong usage, 3 something is worse, 4 nothing to
        compare with.
    """
    options = _parse(words)
    try:
        return _against_revision(options) if options.base else _against_baseline(options)
    except FileNotFoundError as error:
        return _complain(str(error), gate.NO_BASELINE)
    except ValueError as error:
        return _complain(str(error), 1)


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
    parser.add_argument("--results", metavar="FILE", help="compare what --json has kept, measure nothing")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, in fresh processes")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of rounds per benchmark (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="of --base (default: 15)")
    parser.add_argument("--tolerance", type=float, help="of --base (default: 0.1 on a CPU, 0.05 on a GPU)")
    options = parser.parse_args(words)
    if options.update and options.only:
        parser.error("expected --update of a whole set, got --only: leave it out")
    if options.only and not _chosen(options):
        parser.error(f"expected parts of the names of benchmarks in the {options.set} set, got {options.only}")
    return options


def _chosen(options: argparse.Namespace) -> list[str]:
    return [
        name
        for name, case in all_cases().items()
        if (options.set == "full" or case.short)
        and (options.device == "cuda" or (not case.cuda and case.precision == "float32"))
        and (not options.only or any(part in name for part in options.only))
    ]


def _against_baseline(options: argparse.Namespace) -> int:
    path = Path(options.compare or options.update or "")
    baseline = gate.Baseline()
    if options.compare:
        baseline = _baseline(path)
        if not gate.has_exact(baseline, chosen=options.set, torch_version=torch.__version__):
            raise FileNotFoundError(
                f"expected counters of the {options.set} set under torch {gate.minor(torch.__version__)} in {path}, "
                "got none: add them with --update"
            )
    elif options.update and path.exists():
        baseline = gate.Baseline.read(path)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(options.results or options.json or Path(folder) / "results.json").resolve()
        if not options.results:
            code = _measure(options, results)
            if code:
                return _complain("expected every benchmark to run, got the failures above", 1)
        found, _ = load(results)
    if options.update:
        baseline.updated(found, chosen=options.set, torch_version=torch.__version__).write(path)
        print(f"wrote {path}")
        return gate.DONE
    if not options.compare:
        return gate.DONE
    if options.only:  # what was not chosen is not missing
        kept = {entry["case"] for entry in found}
        baseline = _only(baseline, options, kept)
    worse = gate.exact(found, baseline, chosen=options.set, torch_version=torch.__version__)
    worse += gate.ratio(found, baseline, chosen=options.set)
    for sentence in worse:
        print(sentence)
    print(f"{len(found)} benchmarks, {len(worse)} differences from {path}")
    return gate.REGRESSION if worse else gate.DONE


def _baseline(path: Path) -> gate.Baseline:
    try:
        return gate.Baseline.read(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a file of committed figures in {path}, got none: make it with --update"
        ) from None


def _only(baseline: gate.Baseline, options: argparse.Namespace, kept: set[str]) -> gate.Baseline:
    versions = {
        version: {
            name: counters
            for name, counters in figures.items()
            if name in kept or any(part in name for part in options.only)
        }
        for version, figures in baseline.exact[options.set].items()
    }
    return gate.Baseline(exact={options.set: versions}, ratio=baseline.ratio)


def _measure(options: argparse.Namespace, results: Path) -> int:
    """Runs ``pytest bench``; its table and failures go to the terminal."""
    command: list[Any] = [sys.executable, "-m", "pytest", "-q", "bench", "--set", options.set]
    command += ["--device", options.device, "--threads", options.threads, "--budget", options.budget]
    command += ["--memory"] * options.memory
    command += ["--only", *options.only] * bool(options.only)
    command += [f"--benchmark-json={results}"]
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(ROOT)).returncode


def _against_revision(options: argparse.Namespace) -> int:
    tolerance = options.tolerance or (0.05 if options.device == "cuda" else 0.1)
    found, missing = compare(
        ROOT,
        options.base,
        _chosen(options),
        device=options.device,
        threads=options.threads,
        rounds=options.rounds,
        say=print,
    )
    for comparison in found:
        print(comparison.line(tolerance))
    slower = [comparison.name for comparison in found if comparison.slower(tolerance)]
    faster = [comparison.name for comparison in found if comparison.faster(tolerance)]
    print(
        f"{len(found)} benchmarks against {options.base}, {options.rounds} rounds each, tolerance "
        f"{100 * tolerance:.0f} %: {len(slower)} slower, {len(faster)} faster, {len(missing)} without a counterpart"
    )
    if not found:
        return _complain(f"expected a benchmark that {options.base} has too, got none", gate.NO_BASELINE)
    return gate.REGRESSION if slower else gate.DONE


def _complain(sentence: str, code: int) -> int:
    print(f"fastdistill: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
