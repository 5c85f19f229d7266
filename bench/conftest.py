"""The options of ``pytest bench``, what it records of the machine, and the table that it ends with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.cases import Case
from bench.machine import MACHINE, describe_machine
from bench.table import as_lines, rows_of
from bench.workloads import chosen_cases
from fastdistill.loop.environment import prepare_process

_FOUND = pytest.StashKey[list[dict[str, Any]]]()
_BEGIN = pytest.StashKey[float]()
_LATE = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("fastdistill")
    group.addoption("--set", default="full", choices=("short", "full"), help="short is what CI runs (default: full)")
    group.addoption(
        "--only", nargs="+", default=[], help="parts of the names of what is run, any of them (default: all)"
    )
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the steps run (default: cpu)")
    group.addoption("--threads", type=int, default=0, help="CPU threads (default: one for each core that is allowed)")
    group.addoption("--budget", type=float, default=2.0, help="seconds of timed rounds per benchmark (default: 2)")
    group.addoption("--deadline", type=float, default=0, help="seconds after which no benchmark begins (default: none)")
    group.addoption("--memory", action="store_true", help="measure peak memory too; on a CPU in a process for each")


def pytest_configure(config: pytest.Config) -> None:
    """Pins the threads and measures the machine before anything else runs."""
    if config.option.collectonly:
        return
    if config.option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("expected a CUDA device for --device cuda, found none: use --device cpu")
    threads = config.option.threads or len(os.sched_getaffinity(0))
    prepare_process(threads)
    config.option.benchmark_quiet = True  # its table knows no ratios
    described = describe_machine(torch.device(config.option.device))
    config.stash[MACHINE] = {**described, "set": config.option.set}
    config.stash[_FOUND], config.stash[_LATE] = [], []
    config.stash[_BEGIN] = time.monotonic()


def selected(config: pytest.Config) -> list[Case]:
    """The cases that the options choose."""
    option = config.option
    found = chosen_cases(option.set, option.device, option.only)
    # where there may not be time for all, there is first for a few students of everything, and last for compilation
    order = (lambda case: (case.compiled, case.students)) if option.deadline else lambda case: 0
    return sorted(found, key=order)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for every case that is chosen."""
    if "case" in metafunc.fixturenames:
        found = selected(metafunc.config)
        metafunc.parametrize("case", found, ids=[case.name for case in found])


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every benchmark begins in time, compiles for itself, and leaves no memory to the next one."""
    deadline, case = request.config.option.deadline, request.node.callspec.params["case"]
    if deadline and time.monotonic() - request.config.stash[_BEGIN] > deadline:
        request.config.stash[_LATE].append(case.name)
        pytest.skip(f"not measured: past the deadline of {deadline:.0f} s")
    # each instance of the compiled primitive has shapes of its own for the one code object of its class
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the steps run."""
    return torch.device(request.config.option.device)


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Takes what the last table shows."""
    found: list[dict[str, Any]] = request.config.stash[_FOUND]
    return found


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Adds versions, hardware, threads and peaks; the machine's name is nobody's business."""
    machine_info.pop("node", None)
    machine_info["fastdistill"] = config.stash[MACHINE]


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Adds what there was no time for; leaves out every single time, of which the statistics say enough."""
    output_json["not_measured"] = config.stash[_LATE]
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        entry.pop("params", None)  # the case as a Python object, with addresses of memory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One table of everything that was measured."""
    found = config.stash.get(_FOUND, [])
    if found:
        terminalreporter.section("benchmarks")
        for line in as_lines(rows_of(found, config.stash[MACHINE])):
            terminalreporter.write_line(line)
        for name in config.stash[_LATE]:
            terminalreporter.write_line(f"not measured for want of time: {name}")
