"""The wall-clock tier on times that are known, and on two revisions of a checkout with a slowdown planted in one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.versus import Comparison, alternate, worktree
from bench.worker import environment

ROOT = Path(__file__).parent.parent.parent
NAME = "references/match-mse-digits/functional/S16"


def of(base, head):
    return Comparison(name="n", base=tuple(base), head=tuple(head))


def test_rounds_alternate_who_is_first():
    calls = []

    def timer(name, seconds):
        def call():
            calls.append(name)
            return seconds

        return call

    found = alternate("n", timer("base", 2.0), timer("head", 3.0), 4)
    assert calls == ["head", "base", "base", "head", "head", "base", "base", "head"]
    assert (found.base, found.head) == ((2.0,) * 4, (3.0,) * 4)
    assert found.ratio == found.ratio_of_fastest == 1.5


def test_slower_needs_the_median_and_the_fastest_round():
    assert of([1, 1, 1], [1.2, 1.3, 1.2]).slower(0.1)
    # a drift of the machine that hits both
    assert not of([1, 2, 4], [1.05, 2.1, 4.2]).slower(0.1)
    # one quiet round shows that head can be as fast
    assert not of([1, 1, 1], [1.5, 1.5, 1.0]).slower(0.1)
    # one slow round of base's
    assert not of([5, 1, 1], [1, 1, 1]).faster(0.1)
    assert of([1.2, 1.3, 1.2], [1, 1, 1]).faster(0.1)
    assert of([1, 1, 1], [1.3, 1.3, 1.3]).line(0.1).endswith("ratio 1.300 (fastest 1.300): slower")
    assert of([1, 1, 1], [1, 1, 1]).line(0.1).endswith("as before")


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A repository of its own with this tree's sources."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
    for name in ("fastdistill", "kernels", "bench"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "base")
    return root


def bench(checkout, *words):
    command = [sys.executable, "-m", "bench", "--threads", "1", *words]
    return subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=240)


def planted(checkout):
    path = checkout / "kernels" / "fastdistill_kernels" / "match.py"
    source = path.read_text()
    place = "    if a.shape != b.shape"
    assert source.count(place) == 1
    path.write_text(source.replace(place, f"    import time\n\n    time.sleep(0.03)\n{place}"))
    return path, source


def test_a_planted_slowdown_fails_and_nothing_planted_passes(checkout):
    """30 ms in a step of one and a half, or of nine where a neighbour takes the core."""
    same = bench(checkout, "--base", "HEAD", "--only", NAME, "--rounds", "5", "--tolerance", "0.7")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "1 benchmarks against HEAD, 5 rounds each, tolerance 70 %: 0 slower" in same.stdout
    path, source = planted(checkout)
    try:
        slow = bench(checkout, "--base", "HEAD", "--only", NAME, "--rounds", "5", "--tolerance", "0.7")
    finally:
        path.write_text(source)
    assert slow.returncode == 3, slow.stdout + slow.stderr
    assert f"{NAME}: " in slow.stdout
    assert ": slower" in slow.stdout
    assert git(checkout, "worktree", "list").count("\n") == 1  # nothing of the comparison is left


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_comparison_leaves_nothing_behind(checkout, sent):
    command = [sys.executable, "-m", "fastdistill", "bench", "--base", "HEAD", "--only", NAME, "--rounds", "100000"]
    process = subprocess.Popen(
        command, cwd=checkout, env=environment(checkout), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while git(checkout, "worktree", "list").count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    os.killpg(process.pid, sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    assert said == ("fastdistill: interrupted\n" if sent is signal.SIGINT else "")
    assert git(checkout, "worktree", "list").count("\n") == 1


def test_a_worker_that_dies_is_said_in_one_sentence(checkout):
    path = checkout / "bench" / "worker.py"
    source = path.read_text()
    path.write_text(source.replace("    prepare_process(options.threads)", "    sys.exit(7)"))
    try:
        dead = bench(checkout, "--base", "HEAD", "--only", NAME)
    finally:
        path.write_text(source)
    assert dead.returncode == 1
    assert "expected an answer to make of references/match-mse-digits/functional/S16, got the end" in dead.stderr


def test_a_planted_slowdown_falls_below_the_bound_of_its_speed_up(checkout):
    path, source = planted(checkout)
    try:
        slow = bench(checkout, "--compare", "bench/baseline.json", "--only", "match-mse-digits", "--budget", "0.1")
    finally:
        path.write_text(source)
    assert slow.returncode == 3, slow.stdout + slow.stderr
    assert f"{NAME}: expected at least " in slow.stdout
    assert "times the textbook's speed, got " in slow.stdout
    assert "2 benchmarks, 1 differences from bench/baseline.json" in slow.stdout


def test_a_benchmark_that_the_revision_lacks_is_named(checkout):
    path = checkout / "bench" / "workloads" / "references.py"
    source = path.read_text()
    path.write_text(source.replace('"match-{kind}-', '"pair-{kind}-'))
    try:
        new = bench(checkout, "--base", "HEAD", "--only", "pair-mse-digits/functional", "--rounds", "1")
    finally:
        path.write_text(source)
    assert new.returncode == 4
    assert "references/pair-mse-digits/functional/S16: not in HEAD" in new.stdout
    assert "expected a benchmark that HEAD has too, got none" in new.stderr


@pytest.mark.parametrize("revision", ["nothing", "--help"])
def test_a_revision_that_is_none_is_no_baseline(checkout, revision):
    with (
        pytest.raises(FileNotFoundError, match="expected a revision of this checkout, got"),
        worktree(checkout, revision),
    ):
        raise AssertionError("entered")


def test_a_revision_without_benchmarks_is_no_baseline(checkout):
    git(checkout, "switch", "-q", "--orphan", "bare")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "empty")
    git(checkout, "switch", "-q", "main")
    found = bench(checkout, "--base", "bare", "--only", NAME)
    assert found.returncode == 4
    assert "expected a revision with bench/worker.py, got 'bare' without" in found.stderr
