import subprocess
import sys
from pathlib import Path

import pytest

from fastdistill.checkout import find_checkout

ROOT = Path(__file__).parent.parent


def test_a_checkout_is_found_from_anywhere_inside():
    assert find_checkout(ROOT / "tests" / "bench") == ROOT == find_checkout(ROOT)


def test_outside_a_checkout_one_sentence_says_so(tmp_path):
    with pytest.raises(ValueError, match="expected to be in a checkout of fastdistill"):
        find_checkout(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "fastdistill", "bench"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fastdistill: expected to be in a checkout")
    assert done.stderr.count("\n") == 1


def test_the_words_reach_the_benchmarks_of_the_checkout():
    done = subprocess.run(
        [sys.executable, "-m", "fastdistill", "bench", "--only", "no such benchmark"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "expected parts of the names of benchmarks in the short set" in done.stderr
