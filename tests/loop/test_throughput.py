import dataclasses

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
    options = {"warmup": 0, "resident": 10**8, "reached": 10**8, **changes}
    return sweep(config, data.train, Sizes.of(data), most=most, **options)


def row(students, rate):
    return Throughput(
        students=students,
        chunk=students,
        seconds=students / rate,
        students_per_s=rate,
        images_per_s=rate,
        predicted_bytes=1,
        measured_bytes=1,
    )


def test_students_are_doubled_up_to_the_most(data):
    told = []
    found = swept(data, most=3, said=told.append)
    assert [row.students for row in found.rows] == [1, 2]
    assert tuple(told) == found.rows
    assert found.ended == "--max_students is 3"
    for number in found.rows:
        assert number.students_per_s == pytest.approx(number.students / number.seconds)
        assert number.images_per_s == pytest.approx(number.students_per_s * (40 + 10))
        assert number.predicted_bytes > 10**8 and number.measured_bytes > 10**8
    first, second = found.rows
    assert second.predicted_bytes > first.predicted_bytes
    assert second.measured_bytes >= 0.99 * first.measured_bytes  # the kernel counts in batches


def test_it_ends_where_memory_does(data, monkeypatch):
    forecast = throughput.forecast

    def second_too_large(config, *rest, **options):
        found = forecast(config, *rest, **options)
        return dataclasses.replace(found, step=10**15) if config.students > 1 else found

    monkeypatch.setattr(throughput, "forecast", second_too_large)
    found = swept(data, most=8)
    assert [row.students for row in found.rows] == [1]
    assert found.ended == "2 students are predicted not to fit the memory at once"


def test_it_ends_where_memory_runs_out(data, monkeypatch):
    def failing(stepper):
        if stepper.config.students > 1:
            raise torch.OutOfMemoryError("out of memory")
        return 1.0

    monkeypatch.setattr(Stepper, "seconds", failing)
    found = swept(data, most=8)
    assert (len(found.rows), found.ended) == (1, "2 students ran out of memory")


def test_it_ends_where_more_students_gain_nothing(data, monkeypatch):
    monkeypatch.setattr(Stepper, "seconds", lambda stepper: float(stepper.config.students))
    found = swept(data, most=64)
    assert [row.students for row in found.rows] == [1, 2, 4]
    assert "doubling the students twice" in found.ended
    assert not saturated([1, 2, 1.9]) and saturated([1, 2, 1.9, 1.8]) and not saturated([1, 1])


def test_the_best_is_the_fewest_students_that_reach_the_most():
    assert Sweep(rows=(row(1, 5.0), row(2, 9.95), row(4, 10.0)), ended="").best.students == 2
    assert Sweep(rows=(row(1, 5.0), row(2, 9.0), row(4, 10.0)), ended="").best.students == 4
    assert Sweep(rows=(), ended="").best is None
