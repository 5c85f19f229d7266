"""A process that measures cases it is told on its standard input, one JSON line each, answered by one JSON line.

Two of them, one for each of two commits, are asked in turn by `bench.versus`; one that is asked for memory ends after
it. ``{"make": NAME}`` builds a case and runs it once, ``{"time": NAME}`` answers the seconds of one step, ``{"memory":
NAME}`` the peak bytes of two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.cases import Case, Step, computing
from bench.peak import peak_beyond
from bench.workloads import all_cases
from fastdistill.loop.environment import prepare_process
from fastdistill.loop.peaks import synchronize

_LEAST_S = 0.02  # of a round: shorter ones measure the clock and the scheduler


class Worker:
    """Holds the case that was made last.

    Args:
        device: where its cases run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cases = device, all_cases()
        self._made: tuple[Case, Step] | None = None

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        """The answer to one request."""
        ((verb, name),) = request.items()
        if name not in self._cases:
            return {"missing": name}
        case = self._cases[name]
        if verb == "memory":
            return {"bytes": self._memory(case)}
        if verb == "make":
            self._made = None
            step = case.make(self._device)
            self._made = case, step
            return {"seconds": self._seconds(case, step)}
        assert self._made is not None and self._made[0] is case, "make a case before it is timed"
        return {"seconds": self._seconds(*self._made, least=_LEAST_S)}

    def _seconds(self, case: Case, step: Step, least: float = 0.0) -> float:
        """Of one step; of a short one the mean of as many as take the least time."""
        with computing(case.precision, self._device):
            synchronize(self._device)
            begin, steps = time.perf_counter(), 0
            while not steps or time.perf_counter() - begin < least:
                step()
                synchronize(self._device)
                steps += 1
            return (time.perf_counter() - begin) / steps

    def _memory(self, case: Case) -> int:
        """Most bytes of two steps beyond what is held before them; on the CPU those of this whole process."""
        step = case.make(self._device)

        def twice() -> None:
            for _ in range(2):
                self._seconds(case, step)

        return peak_beyond(twice, self._device)


def start(root: Path, *, device: str, threads: int) -> subprocess.Popen[str]:
    """A worker on the source tree below ``root``, whom signals to this process's group do not reach."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.worker", "--device", device, "--threads", str(threads)],
        cwd=root,
        env=environment(root),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def environment(root: Path) -> dict[str, str]:
    """That of a process on the source tree below ``root``, whatever is installed and whatever test asks for it."""
    # pytest-benchmark measures nothing in what it takes for one of several test processes
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**others, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "kernels")))}


def ask(worker: subprocess.Popen[str], verb: str, name: str) -> dict[str, Any]:
    """One request to a worker, and its answer.

    Raises:
        RuntimeError: where it has died.
    """
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(json.dumps({verb: name}) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(
            f"expected an answer to {verb} of {name}, got the end of the process (exit code {worker.wait()}): see its "
            "message above"
        )
    found: dict[str, Any] = json.loads(line)
    return found


def peak_bytes(name: str, *, root: Path, device: str, threads: int) -> int:
    """Peak memory of a case in a fresh process."""
    with start(root, device=device, threads=threads) as worker:
        return int(ask(worker, "memory", name)["bytes"])


def main() -> None:
    """Answers until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    prepare_process(options.threads)
    worker = Worker(torch.device(options.device))
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
