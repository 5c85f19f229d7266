"""Predicted operations against those that real steps take, counted while they run."""

from dataclasses import replace

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.layout import Layout
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.loop.descents import make_descent
from fastdistill.loop.flops import step_flops
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import TrajectoryConfig, UnrolledConfig, matching_recipe
from fastdistill.methods.unrolled import window
from fastdistill.students.ensemble import student_module
from tests import gtn
from tests.experts import wandering_experts

BATCHINGS = {
    "vmap": Batching(path=Path.VMAP, piece=100, students=100),
    "vmap-split": Batching(path=Path.VMAP, piece=3, students=2),
    "loop": Batching(path=Path.LOOP, piece=3, students=1),
}


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def config(method, *, ipc=2, architecture="convnet", **changes):
    own = isinstance(method, UnrolledConfig) and method.learn_rates
    return RunConfig(
        ipc=ipc,
        student=StudentConfig(architecture=architecture, width=4, depth=2),
        method=method,
        evaluation=EvaluationConfig(protocol="own" if own else "default"),
        device="cpu",
        **{"students": 3, "runs": 1, **changes},
    )


def unrolled(**changes):
    return UnrolledConfig(**{"batches": 2, "epochs": 2, "real_batch": 16, **changes})


def predicted_and_counted(settings, data, steps, batching=None):
    """Predicted operations of a step, and the mean of real ones."""
    sizes = Sizes.of(data)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    if batching is not None:
        plan = replace(plan, real=batching, synthetic=batching, training=batching)
    method, descent = make_method(settings, plan, data.train), make_descent(settings.method)
    state, ledger = initial_state(settings, plan, data.train), Ledger()
    for _ in range(steps):
        with ledger:
            state, _ = outer_step(method, descent, state)
    return step_flops(settings, plan, sizes), ledger.flops / steps


@pytest.mark.parametrize(("batching", "chunk"), [("vmap", 0), ("vmap-split", 4), ("loop", 2)])
def test_steps_of_both_methods_take_what_was_predicted(digits, batching, chunk):
    for method in (matching_recipe("dsa", 1, real_batch=8), unrolled(optimizer="adam")):
        settings = config(method, runs=2, chunk=chunk)  # of six students
        predicted, counted = predicted_and_counted(settings, digits, 1, BATCHINGS[batching])
        assert predicted == counted > 1e6


@pytest.mark.parametrize("inner_loop", [0, 1, 3])
def test_training_between_two_steps_is_part_of_them(digits, inner_loop):
    method = matching_recipe("dc", 10, real_batch=8, outer_loop=4, inner_loop=inner_loop, inner_batch=32)
    predicted, counted = predicted_and_counted(config(method, ipc=10), digits, 4)
    assert predicted == pytest.approx(counted, abs=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": 3},
        {"epochs": 4, "window": 3, "window_start": "last"},
        {"epochs": 4, "intermediate_every": 2, "learn_labels": True},
        {"epochs": 4, "window": 5, "window_start": "moving", "window_least": 1, "steps": 3, "intermediate_every": 2},
        {"drawn": True, "drawn_classes": 3, "learn_rates": False, "augmentation": "flip_rotate"},
        {"optimizer": "momentum", "learn_momenta": True, "real_augmentation": "pad_crop_flip"},
        {"epochs": 3, "grow_every": 1, "steps": 4, "intermediate_every": 2, "keep": 3},
        {"epochs": 3, "grow_every": 2, "grow_backwards": True, "steps": 5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_training_takes_what_was_predicted(digits, changes):
    """The mean over a run that takes every place of its window once."""
    predicted, counted = predicted_and_counted(config(unrolled(**changes)), digits, changes.get("steps", 1))
    assert predicted == pytest.approx(counted, abs=1)


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"epochs": 4, "intermediate_every": 2, "keep": 3}])
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_training_through_means_takes_what_was_predicted(digits, changes, batching, monkeypatch):
    gtn.narrow(monkeypatch)
    settings = config(unrolled(**changes), architecture="gtn")
    predicted, counted = predicted_and_counted(settings, digits, 1, BATCHINGS[batching])
    assert predicted == pytest.approx(counted, abs=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner_steps": 1},
        {"batch": 8, "keep": 3},
        {"batch": 8, "inner_steps": 7, "labels": "expert"},
        {"gradient": "tesla", "halved": True, "labels": "learned", "keep": 5},
        {"storage": "bfloat16", "augmentation": "flip_rotate"},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_stretch_of_a_trajectory_takes_what_was_predicted(digits, changes, batching):
    method = TrajectoryConfig(**{"inner_steps": 5, "augmentation": "none", **changes})
    settings, sizes = config(method), Sizes.of(digits)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    plan = replace(plan, real=BATCHINGS[batching], synthetic=BATCHINGS[batching], training=BATCHINGS[batching])
    layout = Layout.of(student_module(settings.student, sizes.shape, 10))
    experts = wandering_experts(layout, experts=2, epochs=4, seed=1, dtype=torch.float32)
    outer, descent = make_method(settings, plan, digits.train, experts=experts), make_descent(method)
    with Ledger() as ledger:
        outer_step(outer, descent, initial_state(settings, plan, digits.train))
    assert step_flops(settings, plan, sizes) == pytest.approx(ledger.flops, abs=1)


def test_a_random_window_takes_the_mean_of_its_places(digits):
    settings = config(unrolled(epochs=4, window=4, window_least=2), students=1)
    sizes, found = Sizes.of(digits), []
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    method, descent = make_method(settings, plan, digits.train), make_descent(settings.method)
    state = initial_state(settings, plan, digits.train)
    # a step for each of its places: two to four steps before it
    places = {window(settings.method, step, seed=settings.seed): step for step in range(20)}
    for step in places.values():
        with Ledger() as ledger:
            outer_step(method, descent, replace(state, step=step))
        found.append(ledger.flops)
    assert len(set(found)) == 3
    assert step_flops(settings, plan, sizes) == sum(found) / 3


def test_wider_students_and_more_of_them_take_more(digits):
    sizes = Sizes.of(digits)

    def of(**changes):
        settings = config(matching_recipe("dc", 1), **changes)
        return step_flops(settings, make_plan(settings, sizes.shape, 10, sizes=sizes), sizes)

    assert of(students=6) == 2 * of(students=3) == of(students=3, runs=2)
