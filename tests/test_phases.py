import pytest
import torch

from fastdistill import phases
from fastdistill.config import RunConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.flops import Counted
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.options import parse_run

COMMON = {phases.FRESH, phases.DATA, phases.UPDATE}
MATCHING = COMMON | {phases.REAL_GRADIENTS, phases.SYNTHETIC_GRADIENT, phases.MATCH, phases.SECOND_ORDER}
TRAINED = {phases.DATA, phases.UPDATE, phases.TRAINING, phases.SECOND_ORDER}
SMALL = ["--student.width=4", "--student.depth=1", "--device=cpu", "--data.source=digits"]
# (words of run, the phases of its first step)
METHODS = {
    "matching": (["dc/digits-1", "--method.real_batch=4"], MATCHING),
    "augmented matching": (
        ["dc/digits-1", "--method.real_batch=4", "--method.augmentation=color_crop"],
        MATCHING | {phases.AUGMENTATION},
    ),
    "matching of students that train on": (
        ["dc/digits-1", "--method.real_batch=4", "--method.outer_loop=2", "--method.inner_loop=1"],
        MATCHING | {phases.TRAINING},
    ),
    "matching by batch norm": (["dc/digits-1", "--method.real_batch=4", "--student.norm=batch"], MATCHING),
    "distribution": (
        ["dm/mnist-1-cpu", "--method.real_batch=4", "--method.augmentation=none"],
        COMMON | {phases.REAL_FEATURES, phases.SYNTHETIC_FEATURES, phases.MATCH, phases.SYNTHETIC_GRADIENT},
    ),
    "unrolled": (
        ["rat/digits-1-cpu", "--method.epochs=3", "--method.window=2", "--method.real_batch=8", "--students=2"],
        TRAINED | {phases.FRESH, phases.REAL_GRADIENTS},
    ),
    "implicit": (
        ["ift/digits-1-cpu", "--method.inner_steps=2", "--method.terms=2", "--method.real_batch=8"],
        TRAINED | {phases.FRESH, phases.REAL_GRADIENTS},
    ),
    "augmented implicit": (
        [
            "ift/digits-1-cpu",
            "--method.inner_steps=2",
            "--method.terms=2",
            "--method.real_batch=8",
            "--method.augmentation=color_crop",
        ],
        TRAINED | {phases.FRESH, phases.REAL_GRADIENTS, phases.AUGMENTATION},
    ),
}


def configured(words):
    return parse_run([*words, *SMALL])


@pytest.fixture(scope="module")
def digits():
    return load_source("digits").train


def prepared(config: RunConfig, train):
    plan = make_plan(config, train.shape, train.num_classes)
    descent = make_descent(config.method, config.generator)
    return make_method(config, plan, train), descent, initial_state(config, plan, train)


def test_every_phase_has_a_name_of_its_own():
    names = [value for name, value in vars(phases).items() if name.isupper() and isinstance(value, str)]
    assert sorted(phases.PHASES) == sorted(set(names))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_labelled(name, digits):
    words, expected = METHODS[name]
    config = configured(words)
    step = prepared(config, digits)
    with Counted() as counted:
        outer_step(*step)
    assert set(counted.phases) - {""} == expected
    # what no label is around is a few operators that compute no convolution and no matrix product
    assert counted.phases[""].flops == 0
    assert counted.phases[""].traffic < 0.05 * counted.work.traffic
    assert counted.phases[""].launches < 0.3 * counted.work.launches  # about 50; all of distribution matching's are 183


def test_labels_show_in_a_trace_of_anybodys(digits):
    words, expected = METHODS["matching"]
    prepared_step = prepared(configured(words), digits)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        outer_step(*prepared_step)
    assert expected <= {event.key for event in profiler.key_averages()}


def test_the_innermost_label_owns_what_happens():
    with Counted() as counted:
        one = torch.ones(1)
        with phases.phase(phases.TRAINING):
            one = one + 1
            with phases.phase(phases.DATA):
                one = one + 1
                one = one + 1
    assert {name: work.launches for name, work in counted.phases.items()} == {
        "": 1,
        phases.TRAINING: 1,
        phases.DATA: 2,
    }


def test_a_generator_has_a_phase(digits):
    words = ["aist/mnist-matching-generator", "--generator.width=4", "--ipc=1", "--method.real_batch=4"]
    step = prepared(configured(words), digits)
    with Counted() as counted:
        outer_step(*step)
    assert counted.phases[phases.GENERATOR].flops > 0
