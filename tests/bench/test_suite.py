"""``pytest bench`` as a user runs it: one small benchmark, its JSON and its table."""

import subprocess
import sys
from pathlib import Path

from bench.table import HEADS, load
from bench.worker import environment

ROOT = Path(__file__).parent.parent.parent


def suite(*words):
    command = [sys.executable, "-m", "pytest", "bench", "--threads", "1", *words]
    return subprocess.run(command, cwd=ROOT, env=environment(ROOT), capture_output=True, text=True, timeout=240)


def test_results_have_what_the_gate_and_the_table_need(tmp_path):
    path = tmp_path / "results.json"
    done = suite(
        "--only", "match-mse-digits", "--set", "short", "--memory", "--budget", "0.1", f"--benchmark-json={path}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found, machine = load(path)
    naive, engine = found
    assert [one["case"] for one in found] == [
        "references/match-mse-digits/naive/S1",
        "references/match-mse-digits/functional/S16",
    ]
    assert "speedup" not in naive
    assert engine["speedup"] >= engine["speedup_least"] > 0
    assert engine["counters"]["dispatches"] > 0
    assert engine["peak_memory"] > 0
    assert engine["rounds"] >= 3
    assert machine["threads"] == 1
    assert machine["peaks"]["matmul_float32_flops_per_s"] > 1e9
    assert machine["environment"]["packages"]["torch"]
    assert '"node"' not in path.read_text()
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == list(HEADS)


def test_cases_are_chosen_by_set_device_and_name():
    def names(*words):
        return {
            line.split("[")[1].rstrip("]")
            for line in suite("--collect-only", "-q", *words).stdout.splitlines()
            if "[" in line
        }

    full, short = names(), names("--set", "short")
    assert short < full
    assert "matching/dc-mnist/functional/S64" not in full
    on_cuda = names("--device", "cuda")
    assert {"matching/dc-mnist/functional/S64", "matching/dc-mnist/naive-bf16/S1"} <= on_cuda
    assert "matching/dc-digits/dual/S16" in full
    assert full - on_cuda == {name for name in full if name.split("/")[2].startswith("dual")}
    assert names("--only", "ift-digits/naive", "dm-digits/naive") == {
        "implicit/ift-digits/naive/S1",
        "distribution/dm-digits/naive/S1",
    }
