import dataclasses
from pathlib import Path

import pytest
import torch

from fastdistill.data.random_images import random_data
from fastdistill.loop import throughput
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stepping import Stepper
from fastdistill.loop.throughput import Sweep, Throughput, saturated, sweep
from fastdistill.options import parse_run

CONFIG = parse_run(["dc/digits-1", "--student.width=2", "--student.depth=1", "--method.real_batch=4", "--device=cpu"])


@pytest.fixture(scope="module")
def data():
    return random_data("digits")


def swept(data, config=CONFIG, most=2, **changes):
    return sweep(config, data.train, Sizes.of(data), most=most, **{"warmup": 0, **changes})


def row(students, rate):
    return Throughput(
        students=students,
        chunk=students,
        seconds=students / rate,
        students_per_s=rate,
        images_per_s=rate,
        predicted_bytes=1,
        measured_bytes=1,
        peak_bytes=1,
    )


def test_students_are_doubled_up_to_the_most(data):
    told = []
    found = swept(data, most=3, said=told.append)
    assert [row.students for row in found.rows] == [1, 2]
    assert tuple(told) == found.rows
    assert found.ended == "at --max_students 3"
    for number in found.rows:
        assert number.students_per_s == pytest.approx(number.students / number.seconds)
        assert number.images_per_s == pytest.approx(number.students_per_s * (40 + 10))
        assert number.peak_bytes == found.base_bytes + number.measured_bytes
    first, second = found.rows
    assert second.predicted_bytes > first.predicted_bytes > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_memory_is_that_of_the_steps_alone(data, monkeypatch):
    def taking(stepper):
        torch.ones((5 - 2 * stepper.config.students) * 10**8 // 4)  # 300 MB, then 100 MB
        return 1.0

    monkeypatch.setattr(Stepper, "seconds", taking)
    torch.ones(2 * 10**8)  # 800 MB that nobody holds any more
    first, second = swept(data).rows
    assert 2.9e8 < first.measured_bytes < 5e8  # the kernel counts in batches
    assert 0.9e8 < second.measured_bytes < 2.9e8
    assert first.predicted_bytes < second.predicted_bytes < 1e8  # neither the process nor the data


@pytest.mark.parametrize("most", [0, 8])
def test_it_ends_where_memory_does(data, monkeypatch, most):
    forecast = throughput.forecast

    def second_too_large(config, *rest, **options):
        found = forecast(config, *rest, **options)
        return dataclasses.replace(found, step=10**15) if config.students > 1 else found

    monkeypatch.setattr(throughput, "forecast", second_too_large)
    found = swept(data, most=most)
    assert [row.students for row in found.rows] == [1]
    assert found.ended == "at the memory limit: 2 students are predicted not to fit at once"


def test_it_ends_where_memory_runs_out(data, monkeypatch):
    def failing(stepper):
        if stepper.config.students > 1:
            raise torch.OutOfMemoryError("out of memory")
        return 1.0

    monkeypatch.setattr(Stepper, "seconds", failing)
    found = swept(data, most=8)
    assert (len(found.rows), found.ended) == (1, "at the memory limit: 2 students ran out of it")


def test_it_ends_where_more_students_gain_nothing(data, monkeypatch):
    monkeypatch.setattr(Stepper, "seconds", lambda stepper: float(stepper.config.students))
    found = swept(data, most=64)
    assert [row.students for row in found.rows] == [1, 2, 4]
    assert found.ended.startswith("without a gain: doubling the students twice gave less than 2 % more")
    assert not saturated([1, 2, 1.9]) and saturated([1, 2, 1.9, 1.8]) and not saturated([1, 1])


def test_without_a_most_it_goes_on_to_the_memory_limit_whatever_the_gain(data, monkeypatch):
    def gaining_nothing(stepper):
        if stepper.config.students > 8:
            raise torch.OutOfMemoryError("out of memory")
        return float(stepper.config.students)

    monkeypatch.setattr(Stepper, "seconds", gaining_nothing)
    found = swept(data, most=0)
    assert [row.students for row in found.rows] == [1, 2, 4, 8]
    assert found.ended == "at the memory limit: 16 students ran out of it"


def test_the_best_is_the_fewest_students_that_reach_the_most():
    assert Sweep(rows=(row(1, 5.0), row(2, 9.95), row(4, 10.0)), ended="").best.students == 2
    assert Sweep(rows=(row(1, 5.0), row(2, 9.0), row(4, 10.0)), ended="").best.students == 4
    assert Sweep(rows=(), ended="").best is None
