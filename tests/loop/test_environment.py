import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdistill.loop.environment import (
    _control_groups,
    available_memory,
    describe_environment,
    memory_limit,
    peak_memory_mb,
    release_freed_memory,
    resident_memory,
)


def test_the_environment_names_what_decides_speed_and_bits():
    found = json.loads(json.dumps(describe_environment()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0
    assert ("gpu" in found) == torch.cuda.is_available()


def test_peak_memory_is_that_of_the_process():
    code = (
        "import torch; from fastdistill.loop.environment import peak_memory_mb as peak; cpu = torch.device('cpu');"
        "before = peak(cpu); held = torch.ones(25_000_000); print(peak(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert 90 < float(done.stdout) < 130, done.stderr
    assert peak_memory_mb(torch.device("cpu")) > 0


CPU = torch.device("cpu")


def test_memory_that_is_there_and_that_is_left():
    assert 0 < resident_memory() <= peak_memory_mb(CPU) * 1e6 * 1.01
    assert 0 < available_memory(CPU) < memory_limit(CPU)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's own sum over a process's pages")
def test_resident_memory_is_what_the_kernel_adds_up():
    held = torch.ones(25_000_000)

    def share():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return resident_memory() / (1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss")))

    # not how much it grew by: a kernel that is short of memory takes other pages away meanwhile
    assert min(abs(share() - 1) for _ in range(3)) < 0.02
    assert resident_memory() > held.nbytes


def test_freed_memory_can_be_given_back():
    blocks = [torch.ones(20_000) for _ in range(2_000)]  # 160 MB in blocks too small to be mapped one by one
    barrier = torch.ones(20_000)
    held = resident_memory()
    del blocks
    release_freed_memory()
    assert resident_memory() < held - 100_000_000
    assert barrier.sum() == 20_000


def test_a_prepared_process_keeps_what_is_freed():
    # counted in pages cleared anew: whether an unprepared process gives a block back depends on what lies above it
    code = (
        "import resource, torch; from fastdistill.loop.environment import prepare_process; prepare_process(1)\n"
        "def cleared():\n"
        "    held = [torch.ones(2_500_000) for _ in range(8)]; del held\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "first, *_, last = [cleared() for _ in range(6)]; print(last - first, torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pages, threads = map(int, done.stdout.split())
    assert threads == 1
    assert pages < 8 * 10_000_000 / resource.getpagesize() / 4  # a quarter of one round's; unprepared it is all of five


def write_group(folder, limit, used, inactive, *, version):
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}.get(
        version, ("memory.max", "memory.current", "inactive_file")
    )
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\n")


def test_limits_of_control_groups_are_found(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    write_group(tmp_path / "outer" / "inner", "max", 50, 0, version=2)
    write_group(tmp_path / "outer", 1000, 300, 100, version=2)
    assert _control_groups(tmp_path, own) == [(1000, 200)]


def test_limits_of_the_first_control_groups_are_found(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("9:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    write_group(tmp_path / "memory", 2000, 500, 300, version=1)  # inside the container the group is the top
    assert _control_groups(tmp_path, own) == [(2000, 200)]
    assert _control_groups(tmp_path, tmp_path / "none") == []
