from itertools import pairwise

import pytest
import torch

from bench import real
from fastdistill.config import RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.method_configs import matching_recipe


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(steps):
    return RunConfig(
        ipc=1,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, real_batch=4, steps=steps),
        device="cpu",
    )


def test_the_clock_grows_with_the_steps_and_the_images_move(digits):
    points = list(real.distilled(config(5), digits, 2))
    assert [point.step for point in points] == [2, 4, 5]
    for before, after in pairwise(points):
        assert before.seconds < after.seconds
        assert not torch.equal(before.images, after.images)
    assert points[0].images.shape == (10, 1, 1, 8, 8)


def test_the_clock_stands_while_networks_are_tested(digits, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(real.time, "perf_counter", lambda: now[0])

    def slow(*_, **__):
        now[0] += 1000.0
        return real.Evaluation(per_student=(0.5, 0.7), protocol="dc", epochs=1, images=10, seconds=1000.0)

    monkeypatch.setattr(real, "accuracy", slow)
    one, found = real.measure(config(4), digits, every=2, goal=0.9, networks=2, epochs=1)
    assert [row["seconds"] for row in found["rows"]] == [0.0, 0.0]
    assert found["rows"][0]["accuracy_mean"] == pytest.approx(0.6)
    assert found["reached_s"] is None
    assert one["rows"] is found["rows"]
    assert "90.0 % was not reached." in real.as_markdown(found)


def test_networks_are_tested_by_the_published_protocol_on_the_whole_test_set(digits):
    found = real.accuracy(config(1).student, torch.zeros(10, 1, 1, 8, 8), digits, source="digits", networks=3, epochs=1)
    assert found.protocol == "dc"
    assert len(found.per_student) == 3
    assert all((share * len(digits.test)) % 1 == pytest.approx(0, abs=1e-6) for share in found.per_student)
