"""The wall-clock tier: two commits side by side on one machine, in rounds that alternate.

Each commit's own benchmarks run in a process of their own, the other one's in a throw-away worktree. Every round asks
both, in turns who is first, so that drift of the machine hits both alike. A benchmark has moved where the median over
rounds of the ratio within a round and the ratio of the fastest rounds both say so, by more than the tolerance.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.worker import ask, start

Timer = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Seconds of one benchmark at two commits, round by round.

    Attributes:
        name: of the benchmark.
        base: seconds at the other commit.
        head: seconds here.
    """

    name: str
    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over rounds of head's seconds in base's; above 1 is slower."""
        return median(head / base for head, base in zip(self.head, self.base, strict=True))

    @property
    def ratio_of_fastest(self) -> float:
        """The same of the fastest rounds."""
        return min(self.head) / min(self.base)

    def slower(self, tolerance: float) -> bool:
        """Whether it has become slower beyond noise."""
        return min(self.ratio, self.ratio_of_fastest) > 1 + tolerance

    def faster(self, tolerance: float) -> bool:
        """Whether it has become faster beyond noise."""
        return max(self.ratio, self.ratio_of_fastest) < 1 / (1 + tolerance)

    def line(self, tolerance: float) -> str:
        """For people."""
        verdict = "slower" if self.slower(tolerance) else "faster" if self.faster(tolerance) else "as before"
        return (
            f"{self.name}: {1e3 * median(self.base):.2f} ms before, {1e3 * median(self.head):.2f} ms now, "
            f"ratio {self.ratio:.3f} (fastest {self.ratio_of_fastest:.3f}): {verdict}"
        )


def alternate(name: str, base: Timer, head: Timer, rounds: int) -> Comparison:
    """Times both in turns."""
    taken: dict[Timer, list[float]] = {base: [], head: []}
    for number in range(rounds):
        for timer in (base, head) if number % 2 else (head, base):
            taken[timer].append(timer())
    return Comparison(name=name, base=tuple(taken[base]), head=tuple(taken[head]))


@contextlib.contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """A revision of a checkout in a folder that is gone afterwards.

    Raises:
        FileNotFoundError: for a revision that git does not know, or one without benchmarks that can be asked.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        subprocess.run(["git", "-C", str(root), "worktree", "prune"], capture_output=True)  # of one that was killed
        command = ["git", "-C", str(root), "worktree", "add", "--detach", str(path), "--end-of-options", revision]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise FileNotFoundError(f"expected a revision of this checkout, got {revision!r}: {made.stderr.strip()}")
        try:
            if not (path / "bench" / "worker.py").exists():
                raise FileNotFoundError(
                    f"expected a revision with bench/worker.py, got {revision!r} without: choose a later one"
                )
            yield path
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(path)], capture_output=True)


def compare(
    root: Path, revision: str, names: Sequence[str], *, device: str, threads: int, rounds: int
) -> Iterator[Comparison | str]:
    """Times benchmarks at a revision and as they are now, and yields each as soon as it is done.

    A benchmark that the revision does not have comes as its name alone.

    Args:
        root: of this checkout.
        revision: what to compare with.
        names: of the benchmarks.
        device: cpu or cuda.
        threads: CPU threads.
        rounds: of each.

    Raises:
        FileNotFoundError: see `worktree`.
        RuntimeError: where one of the two processes dies.
    """
    with (
        worktree(root, revision) as path,
        _worker(path, device, threads) as base,
        _worker(root, device, threads) as head,
    ):
        for name in names:
            if "missing" in ask(base, "make", name):
                yield name
                continue
            ask(head, "make", name)
            before, now = partial(_seconds, base, name), partial(_seconds, head, name)
            for timer in (before, now):  # once more: the first step does what later ones need not
                timer()
            yield alternate(name, before, now, rounds)


@contextlib.contextmanager
def _worker(root: Path, device: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    """A worker that is gone afterwards, whatever happens."""
    process = start(root, device=device, threads=threads)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _seconds(worker: subprocess.Popen[str], name: str) -> float:
    return float(ask(worker, "time", name)["seconds"])
