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
    for name, one in found["kernels"].items():
        assert one["error"] <= one["limit"] and one["error_at_ends"] <= one["limit"], name
        assert one["seconds"] > 0 and one["bytes"] > 0 and one["reference"] > 0 and one["copy_bytes_per_s"] > 0, name
        assert "separate" not in one or one["separate"] == min(one["separate_layouts"].values()) > 0, name
    assert (tmp_path / "out" / "kernels.md").read_text().count("\n") == len(found["kernels"]) + 2


@pytest.mark.parametrize(
    "sanitizer, code, addresses",
    [
        (None, 0, "not checked, no compute-sanitizer here"),
        ('shift 2; exec "$@"', 0, "no bad one found by compute-sanitizer"),
        ("exit 1", 1, "compute-sanitizer failed with 1"),
        ("exec sleep 60", 0, "none bad before compute-sanitizer was cut off after 1 s"),
    ],
)
def test_what_is_known_of_addresses_stands_beside_the_figures(sanitizer, code, addresses, tmp_path):
    seen, found = tmp_path / "seen", tmp_path / "bin"
    found.mkdir()
    python = found / "python-stub"  # says how it was called, and with which allocator
    python.write_text(f'#!/bin/sh\necho "${{PYTORCH_NO_CUDA_MEMORY_CACHING:-cached}} $@" >> {seen}\n')
    python.chmod(0o700)
    if sanitizer:
        tool = found / "compute-sanitizer"
        tool.write_text(f'#!/bin/sh\necho "sanitizer $@" >> {seen}\n{sanitizer}\n')
        tool.chmod(0o700)
    path = f"{found}:{os.environ['PATH']}"
    done = script("kernels", tmp_path, PYTHON=str(python), PATH=path, SANITIZER_S="1")
    assert done.returncode == code, done.stdout + done.stderr
    *before, timed = seen.read_text().splitlines()
    assert timed.startswith("cached -m bench.gpu.kernels") and f"--addresses {addresses} --only=" in timed
    if sanitizer:
        assert before[0].startswith(f"sanitizer --error-exitcode 1 {python} -m bench.gpu.kernels --device cpu")
    if sanitizer and sanitizer.startswith("shift"):
        assert before[1] == "1 -m bench.gpu.kernels --device cpu --only="


def test_some_kernels_have_files_of_their_own(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o700)
    done = script("kernels", tmp_path, "match-mse/float32", PYTHON=str(python))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"--out {tmp_path}/kernels-match-mse-float32 " in done.stdout
    assert done.stdout.endswith("--only=match-mse/float32\n")
