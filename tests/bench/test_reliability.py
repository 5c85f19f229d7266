"""The figures of reliability, as far as a machine that is busy with other things can show them.

The times themselves are in ``bench/results``, measured beside nothing else.
"""

import time
from statistics import median

import pytest
import torch

from bench.problems import DIGITS
from bench.reliability import first_steps_seconds, guarding, save_seconds, small_step, start_seconds
from bench.timing import interleaved


def test_saving_12_mb_takes_at_most_50_ms_of_computing(tmp_path):
    # the disk's own time is the disk's
    assert min(save_seconds(tmp_path, 10, clock=time.process_time)) < 0.05


def test_help_takes_at_most_300_ms_and_the_import_200_ms():
    bare = min(start_seconds(["-c", ""], 5))
    busy = max(1.0, bare / 0.025)  # a quiet machine starts Python in 25 ms
    assert min(start_seconds(["-m", "fastdistill", "--help"], 5)) < 0.3 * busy
    assert min(start_seconds(["-m", "fastdistill", "run", "--help"], 5)) < 0.3 * busy
    assert min(start_seconds(["-c", "import fastdistill"], 5)) - bare < 0.2 * busy


def test_the_guard_takes_at_most_1_percent_of_a_step():
    """Of the smallest step there is: one narrow student on digits."""
    cpu = torch.device("cpu")
    calls = {"step": small_step(DIGITS, 1), "guard": guarding(1, torch.randn(1, 10, 1, 1, 8, 8))}
    found = interleaved(calls, device=cpu, repeats=15)
    assert median(found["guard"]) <= 0.01 * median(found["step"])


def test_the_first_steps_of_the_default_run_come_within_10_s():
    before = min(start_seconds(["-c", ""], 5))
    found = min(first_steps_seconds(("--device", "cpu"), 2))
    busy = max(1.0, before / 0.025, min(start_seconds(["-c", ""], 5)) / 0.025)  # a quiet machine starts Python in 25 ms
    assert found < 10 * busy


def test_a_run_without_steps_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)got .*no-such-preset"):
        first_steps_seconds(("no-such-preset",), 1)
