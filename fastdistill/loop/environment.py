"""What a run was computed on: versions, hardware and the settings that decide speed and bits."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of these settings
_LARGEST_KEPT = 1 << 25  # bytes of a block, the most that glibc takes
_MOST_KEPT = 1 << 28  # bytes that are free at the end of its heap
_PACKAGES = ("fastdistill", "torch", "torchvision", "triton", "numpy", "scikit-learn", "safetensors", "jsonargparse")


def describe_environment() -> dict[str, Any]:
    """A description of machine, versions and settings, for ``environment.json`` and ``fastdistill env``."""
    description: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _commit(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        description["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        }
    return description


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10^6 bytes): of the allocator on CUDA, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would report the parent's peak where that was higher
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def memory_limit(device: torch.device) -> int:
    """Bytes this process could ever have: of the card on CUDA, else of the machine or of its control group."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _control_groups())])


def available_memory(device: torch.device) -> int:
    """Bytes this process can have beyond what it holds now, without pushing anything out to a disk."""
    if device.type == "cuda":
        # what the caching allocator holds but no tensor uses is free too
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return memory_limit(device) - round(peak_memory_mb(device) * 1e6)
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return min([int(line.split()[1]) * 1024, *(limit - used for limit, used in _control_groups())])


def resident_memory() -> int:
    """Bytes of this process that are in memory now; where that is not known, the most that ever were."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return round(peak_memory_mb(torch.device("cpu")) * 1e6)


def release_freed_memory() -> None:
    """Gives the memory of freed blocks back to the system.

    glibc keeps it for the process: reading a data set can leave the size of the data set behind, and what has been
    given back is no longer part of `resident_memory`.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def prepare_process(threads: int) -> None:
    """Sets torch's threads, and keeps freed memory for the steps to come instead of asking for it anew every time.

    A CPU step takes and frees the same blocks over and over. glibc gives those of some MB back to the system, which
    clears every page again at the next use: that was up to half of a step's time.
    """
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        allocator.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)


def _control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """Limit and use in bytes of the memory control groups that this process is in, outermost last; v2 and v1."""
    found: list[tuple[int, int]] = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            top, limit, use, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, use, cache = (
                root / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # a container sees its own group at the top, whatever its name is outside
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such group here, or "max"
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                # pages of files that nobody uses are given back before anything is refused
                used = int((folder / use).read_text()) - int(statistics[cache])
                found.append((int((folder / limit).read_text()), used))
            if folder == top:
                break
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the source tree, marked where it is changed; only if the package runs from a git checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
        return found.stdout.strip()

    try:
        # an installed package may lie inside somebody else's repository
        return (git("ls-files", here.name) and git("describe", "--always", "--dirty", "--abbrev=40")) or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
