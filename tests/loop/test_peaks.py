import math

import pytest
import torch

from fastdistill.loop import peaks

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second whenever it is asked."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: float(next(ticks)))


def test_peaks_are_work_over_time(clock):
    assert peaks.matmul_flops(CPU, side=8) == 2 * 8**3
    assert peaks.matmul_flops(CPU, torch.float64, side=8) == 2 * 8**3
    assert peaks.copy_bandwidth(CPU, size=4096) == 2 * 4096
    assert peaks.launch_seconds(CPU, calls=10) == 0.1


def test_this_machine_has_peaks():
    found = peaks.measure_peaks(CPU)
    assert all(math.isfinite(value) and value > 0 for value in (found.flops, found.bandwidth, found.launch))
    # a product computes far faster than it could if every operation took an operator's time
    assert found.flops * found.launch > 1


def test_settings_stay_as_they_were():
    before = torch.backends.cuda.matmul.allow_tf32
    peaks.matmul_flops(CPU, side=4, tf32=not before)
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_has_peaks():
    found = peaks.measure_peaks(torch.device("cuda"), tf32=True)
    assert found.flops > 1e12 and found.bandwidth > 1e11 and 1e-7 < found.launch < 1e-3


def test_no_random_number_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    peaks.matmul_flops(CPU, side=4)
    assert torch.equal(before, torch.get_rng_state())
