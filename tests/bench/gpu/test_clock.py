"""A device's clock: on a CPU, and on a stand-in for a GPU that runs behind its host."""

import pytest
import torch

from bench.gpu import clock

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_call_takes_what_it_takes_on_a_cpu():
    calls = []
    assert clock.seconds(lambda: calls.append(None), CPU, 0.0) < 0.1
    assert len(calls) == 2 + clock._LEAST


def test_a_copy_moves_at_some_rate_which_is_measured_once_a_size(monkeypatch):
    monkeypatch.setattr(clock, "_COPY", (1 << 10, 1 << 20))
    clock._copy_rate.cache_clear()
    rates = {moved: clock.copy_rate(moved, CPU, 0.0) for moved in (0, 2 << 10, 2 << 20, 3 << 20, 1 << 40)}
    assert all(rate > 0 for rate in rates.values())
    assert clock._copy_rate.cache_info().misses == 2
    clock._copy_rate.cache_clear()


class Device:
    """Time of a host that queues calls and of a device that takes them in their order."""

    def __init__(self, monkeypatch, *, launch, kernel, waits=False):
        self.host = self.device = 0.0
        self.launch, self.kernel, self.waits = launch, kernel, waits
        device, self.calls = self, 0

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.device = max(device.device, device.host)

            def query(self):
                return device.host >= self.at

            def synchronize(self):
                device.host = max(device.host, self.at)

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        class Nothing:
            def __init__(self, device):
                pass

            def __enter__(self):
                pass

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", Nothing)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.host)

    def sleep(self, cycles):
        self.device = max(self.device, self.host) + cycles / clock._CYCLES

    def __call__(self):
        self.calls += 1
        self.host += self.launch
        self.device = max(self.device, self.host) + self.kernel
        if self.waits:
            self.host = self.device


@pytest.mark.parametrize("kernel", [5e-6, 24e-6, 3e-3])
@pytest.mark.parametrize("launch", [1e-6, 1e-4, 2e-3])
def test_the_host_has_no_part_in_the_seconds_of_a_device(monkeypatch, launch, kernel):
    device = Device(monkeypatch, launch=launch, kernel=kernel)
    assert clock.seconds(device, CUDA, 0.05) == pytest.approx(kernel)
    samples = device.calls / min(clock._CALLS, max(1, clock._SAMPLE / kernel))
    assert samples >= clock._LEAST


def test_calls_that_wait_for_the_device_are_measured_all_the_same(monkeypatch):
    device = Device(monkeypatch, launch=1e-5, kernel=1e-3, waits=True)
    assert clock.seconds(device, CUDA, 0.05) == pytest.approx(1e-3, rel=0.02)
