import dataclasses

import pytest

from fastdistill import phases
from fastdistill.data.random_images import random_data
from fastdistill.derivatives.flops import Counted, Work
from fastdistill.loop.breakdown import breakdown, floors
from fastdistill.loop.outer import outer_step
from fastdistill.loop.peaks import Peaks
from fastdistill.loop.phase_times import REST
from fastdistill.loop.plan import make_plan
from fastdistill.loop.random_experts import RandomExperts
from fastdistill.loop.stepping import Stepper
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.options import parse_run

PEAKS = Peaks(flops=1e11, bandwidth=1e10, launch=1e-6)
SMALL = ["--student.width=4", "--student.depth=1", "--device=cpu", "--data.source=digits"]
TRAINED = {phases.FRESH, phases.DATA, phases.TRAINING, phases.SECOND_ORDER, phases.UPDATE}
MATCHED = {phases.FRESH, phases.DATA, phases.REAL_GRADIENTS, phases.SYNTHETIC_GRADIENT, phases.MATCH}
METHODS = {
    "dc": (["dc/digits-1", "--method.real_batch=4"], MATCHED | {phases.SECOND_ORDER, phases.UPDATE}),
    "dsa": (
        ["dsa/mnist-1", "--method.real_batch=4"],
        MATCHED | {phases.SECOND_ORDER, phases.UPDATE, phases.AUGMENTATION},
    ),
    "dm": (
        ["dm/mnist-1-cpu", "--method.real_batch=4", "--method.augmentation=none"],
        {
            phases.FRESH,
            phases.DATA,
            phases.REAL_FEATURES,
            phases.SYNTHETIC_FEATURES,
            phases.MATCH,
            phases.SYNTHETIC_GRADIENT,
            phases.UPDATE,
        },
    ),
    "rat": (
        ["rat/digits-1-cpu", "--method.epochs=3", "--method.window=2", "--method.real_batch=8"],
        TRAINED | {phases.REAL_GRADIENTS},
    ),
    "mtt": (["mtt/digits-1-cpu", "--method.inner_steps=2"], TRAINED | {phases.MATCH}),
    "tesla": (["tesla/digits-1-cpu", "--method.inner_steps=2"], TRAINED | {phases.MATCH}),
    "ift": (
        ["ift/digits-1-cpu", "--method.inner_steps=2", "--method.terms=2", "--method.real_batch=8"],
        TRAINED | {phases.REAL_GRADIENTS},
    ),
}


@pytest.fixture(scope="module")
def train():
    return random_data("digits").train


def ready(config, train):
    plan = make_plan(config, train.shape, train.num_classes)
    experts = None
    if isinstance(config.method, TrajectoryConfig):
        experts = RandomExperts.of(config, train.shape, train.num_classes)
    return Stepper.of(config, plan, train, experts)


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_step_falls_into_its_phases(name, train):
    words, expected = METHODS[name]
    found = breakdown(ready(parse_run([*words, *SMALL]), train), PEAKS)
    assert {phase.name for phase in found.phases} == expected | {REST}
    assert sum(phase.share for phase in found.phases) == pytest.approx(1)
    assert sum(phase.seconds for phase in found.phases) == pytest.approx(found.seconds)
    by_name = {phase.name: phase for phase in found.phases}
    if phases.SECOND_ORDER in expected:
        assert by_name[phases.SECOND_ORDER].flops > 0
        assert by_name[phases.SECOND_ORDER].peak_bytes > 0
    assert all(phase.launches > 0 and phase.bound and phase.floor > 0 for phase in found.phases)


def test_phases_count_what_a_step_does(train):
    stepper = ready(parse_run(["dc/digits-1", *SMALL, "--method.steps=1"]), train)
    with Counted() as counted:
        outer_step(stepper.method, stepper.descent, stepper.start)
    found = breakdown(stepper, PEAKS)
    assert found.flops == counted.work.flops > 0
    total = Work(
        flops=found.flops,
        dispatches=sum(phase.dispatches for phase in found.phases),
        launches=sum(phase.launches for phase in found.phases),
        traffic=sum(phase.traffic for phase in found.phases),
    )
    assert total == counted.work
    # labels are around nearly all of a step
    rest = next(phase for phase in found.phases if phase.name == REST)
    assert rest.flops == 0
    assert rest.traffic < 0.1 * total.traffic


def test_a_life_of_students_is_averaged(train):
    words = ["--method.outer_loop=4", "--method.inner_loop=1", "--method.real_batch=4", "--method.steps=8"]
    stepper = ready(parse_run(["dc/digits-1", *SMALL, *words]), train)
    found = {phase.name: phase for phase in breakdown(stepper, PEAKS).phases}
    with Counted() as counted:  # of a step in which students begin and train on
        outer_step(stepper.method, stepper.descent, dataclasses.replace(stepper.start, step=4))
    work = counted.phases
    assert found[phases.FRESH].launches == pytest.approx(work[phases.FRESH].launches / 4)
    assert found[phases.TRAINING].flops == pytest.approx(work[phases.TRAINING].flops * 3 / 4)
    assert found[phases.MATCH].launches == pytest.approx(work[phases.MATCH].launches)


def test_the_largest_floor_bounds_a_phase():
    assert floors(1e11, 1e9, 1e3, PEAKS) == {"compute": 1.0, "memory": 0.1, "overhead": 1e-3}
