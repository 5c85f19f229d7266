"""The script's parts on a CPU: what has to be right before there is a GPU to find out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
SCRIPT = ROOT / "bench" / "gpu" / "run.sh"


def script(*words, **settings):
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**others, "PYTHON": sys.executable, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(
        [str(SCRIPT), *map(str, words)], env=environment, capture_output=True, text=True, timeout=300, cwd="/"
    )


@pytest.mark.parametrize("words", [(), ("steps",), ("nothing", "OUT"), ("real", "OUT")])
def test_wrong_words_show_the_usage(words, tmp_path):
    done = script(*(tmp_path if word == "OUT" else word for word in words))
    assert done.returncode == 2
    assert "bench/gpu/run.sh PART OUT" in done.stderr


def test_steps_leave_figures_and_their_table(tmp_path):
    done = script("steps", tmp_path / "out", "match-mse-digits/naive")
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.glob("out/*.json")
    assert "references/match-mse-digits/naive/S1" in results.with_suffix(".md").read_text()
    entry = json.loads(results.read_text())["benchmarks"][0]
    assert entry["extra_info"]["peak_memory"] >= 0


def test_the_way_to_an_accuracy_is_timed_without_its_tests(tmp_path):
    words = [
        "--source",
        "digits",
        "--width",
        4,
        "--steps",
        4,
        "--every",
        2,
        "--networks",
        2,
        "--epochs",
        1,
        "--goal",
        0.01,
    ]
    done = script("real", tmp_path, "nowhere", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "real.json").read_text())
    assert found["reached_s"] == found["rows"][0]["seconds"] > 0
    assert [row["step"] for row in found["rows"]] == [2]
    assert "1.0 % was reached after" in (tmp_path / "real.md").read_text()


def test_every_kernel_is_checked_before_it_is_timed(tmp_path):
    done = script("kernels", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "kernels.json").read_text())
    assert {name.split("/")[0] for name in found["kernels"]} >= {"match-ours", "dual_convolution", "first_block", "dsa"}
    assert found["addresses"]
    for name, one in found["kernels"].items():
        assert one["error"] <= one["limit"] and one["error_at_ends"] <= one["limit"], name
        assert one["seconds"] > 0 and one["bytes"] > 0 and one["reference"] > 0 and one["copy_bytes_per_s"] > 0, name
        assert "separate" not in one or one["separate"] == min(one["separate_layouts"].values()) > 0, name
    assert (tmp_path / "out" / "kernels.md").read_text().count("\n") == len(found["kernels"]) + 2


@pytest.mark.parametrize(
    "sanitizer, code, addresses",
    [
        ('shift 4; exec "$@"', 0, "no bad one found by compute-sanitizer"),
        ("exit 99", 1, "bad ones found by compute-sanitizer"),
        ("exit 1", 1, "not checked to the end, a kernel was wrong or compute-sanitizer failed with 1"),
        ("exec sleep 60", 0, "compute-sanitizer was cut off, no bad one found until then"),
        ('echo "Invalid __global__ read" > "$4"; exec sleep 60', 1, "bad ones found by compute-sanitizer"),
    ],
)
def test_what_is_known_of_addresses_stands_beside_the_figures(sanitizer, code, addresses, tmp_path):
    seen, found = tmp_path / "seen", tmp_path / "bin"
    found.mkdir()
    python, tool = found / "python-stub", found / "compute-sanitizer"
    # says how it was called, and with which allocator
    python.write_text(f'#!/bin/sh\necho "${{PYTORCH_NO_CUDA_MEMORY_CACHING:-cached}} $@" >> {seen}\n')
    tool.write_text(f'#!/bin/sh\necho "sanitizer $@" >> {seen}\n{sanitizer}\n')
    for file in (python, tool):
        file.chmod(0o700)
    path, patience = f"{found}:{os.environ['PATH']}", "3" if "sleep" in sanitizer else "60"
    done = script("kernels", tmp_path, PYTHON=str(python), PATH=path, SANITIZER_S=patience)
    assert done.returncode == code, done.stdout + done.stderr
    called, *checked, timed = seen.read_text().splitlines()
    assert called.startswith("sanitizer --error-exitcode 99 ") and "bench.gpu.kernels --device cpu" in called
    assert timed.startswith("cached -m bench.gpu.kernels") and f"--addresses {addresses} --only=" in timed
    assert checked == (["1 -m bench.gpu.kernels --device cpu --only="] if sanitizer.startswith("shift") else [])
