import gzip
import json
import time
from types import SimpleNamespace

import pytest
import torch

from fastdistill.loop.phase_times import REST, STEP, Span, device_times, host_times, innermost, recorded
from fastdistill.phases import DATA, MATCH, TRAINING, phase

CPU = torch.device("cpu")
SPANS = [
    Span(name=STEP, start=0, end=100e6),
    Span(name=TRAINING, start=10e6, end=60e6),
    Span(name=DATA, start=10e6, end=20e6),
    Span(name=MATCH, start=60e6, end=90e6),
]


def test_the_innermost_label_owns_the_time():
    assert host_times(innermost(reversed(SPANS))) == {REST: 20, DATA: 10, TRAINING: 40, MATCH: 30}


def test_kernels_belong_to_the_label_that_launched_them():
    def event(start, *kernels, device="CPU"):
        kernels = [SimpleNamespace(name=name, duration=duration) for name, duration in kernels]
        return SimpleNamespace(
            device_type=SimpleNamespace(name=device), time_range=SimpleNamespace(start=start), kernels=kernels
        )

    events = [
        event(5e6, ("copy", 1e6)),
        event(15e6, ("gather", 2e6)),
        event(30e6, ("gemm", 3e6), ("gemm", 4e6)),
        event(30e6, (TRAINING, 50e6)),  # a label's own range on the device
        event(70e6, ("match", 5e6), device="CUDA"),  # on the device itself, not launched from here
        event(75e6, ("rows", 5e6)),
        event(200e6, ("later", 9e6)),
    ]
    assert device_times(innermost(SPANS), events) == {REST: 1, DATA: 2, TRAINING: 7, MATCH: 5}


def test_a_recording_adds_up_and_leaves_a_trace(tmp_path):
    def step():
        with phase(TRAINING):
            time.sleep(0.02)
            with phase(DATA):
                time.sleep(0.04)
        torch.ones(3).add_(1)

    trace = tmp_path / "trace.json.gz"
    found = recorded(step, CPU, trace)
    assert found.phases.keys() == {TRAINING, DATA, REST}
    assert sum(found.phases.values()) == pytest.approx(found.seconds)
    assert found.phases[DATA] > found.phases[TRAINING] > 0.015
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {TRAINING, DATA, STEP} <= {event.get("name") for event in events}
