import pytest
import torch

from fastdistill.data.random_images import random_data
from fastdistill.derivatives.flops import Counted
from fastdistill.loop import stepping
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import make_plan
from fastdistill.loop.stepping import Stepper, moments
from fastdistill.options import parse_run
from fastdistill.phases import FRESH, TRAINING

SMALL = ["--student.width=2", "--student.depth=1", "--method.real_batch=4", "--device=cpu"]


def configured(*words):
    return parse_run(["dc/digits-1", *SMALL, *words])


def stepper(*words):
    config, train = configured(*words), random_data("digits").train
    return Stepper.of(config, make_plan(config, train.shape, train.num_classes), train)


@pytest.mark.parametrize(
    ("life", "kinds"),
    [(1, {0: 1}), (2, {0: 1 / 2, 1: 1 / 2}), (10, {0: 1 / 10, 1: 8 / 10, 9: 1 / 10})],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_of_every_kind_stands_for_all_of_its_kind(life, kinds, count):
    found = moments(configured("--method.steps=100", f"--method.outer_loop={life}"), count)
    assert sum(moment.share for moment in found) == pytest.approx(1)
    assert found[0].number == 50
    places = [(moment.number - 50) % life for moment in found]
    assert places == sorted(kinds) * count
    assert [moment.share for moment in found] == [kinds[place] / count for place in places]


def test_implicit_students_live_for_their_hypersteps():
    config = parse_run(["ift/digits-1-cpu", "--method.hypersteps=3", "--method.steps=9"])
    assert [moment.number for moment in moments(config)] == [3, 4, 5]


def test_a_walk_takes_each_step_with_the_students_of_the_one_before():
    ready = stepper("--method.steps=10", "--method.outer_loop=3", "--method.inner_loop=1")
    phases = []

    def count(step):
        with Counted() as counted:
            step()
        phases.append(set(counted.phases))

    ready.walk(moments(ready.config, 2), count)
    fresh, trained = [FRESH in found for found in phases], [TRAINING in found for found in phases]
    assert fresh == [True, False, False] * 2
    assert trained == [True, True, False] * 2


def test_a_step_of_the_walk_is_one_of_the_run():
    ready = stepper("--method.steps=1")
    ready.warm_up(1)  # what is kept of the data set is made at the first step
    with Counted() as counted:
        ready.walk(moments(ready.config), lambda step: step())
    with Counted() as expected:
        outer_step(ready.method, ready.descent, ready.start)
    assert counted.phases == expected.phases
    assert torch.equal(ready.start.images, stepper("--method.steps=1").start.images)


def test_seconds_are_the_mean_of_the_kinds_medians(monkeypatch):
    ready = stepper("--method.steps=4", "--method.outer_loop=2", "--method.inner_loop=1")
    rounds = iter([[1.0, 3.0], [2.0, 3.0], [9.0, 5.0]])
    monkeypatch.setattr(Stepper, "_timed", lambda self: next(rounds))
    monkeypatch.setattr(stepping, "_ENOUGH", 20.0)
    assert ready.seconds() == 2.0 / 2 + 3.0 / 2
