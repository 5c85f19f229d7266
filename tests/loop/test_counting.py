from dataclasses import replace

import pytest
import torch

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig, UnrolledConfig, matching_recipe
from fastdistill.data.sources import load_source
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.loop import counting
from fastdistill.loop.outer import outer_step
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state, make_descent, make_method
from fastdistill.loop.sizes import Sizes


def config(*, method="dc", ipc=1, width=8, **changes):
    recipe = {"real_batch": 16, "outer_loop": 1 if ipc == 1 else 4, "inner_loop": 2}
    changes = {"students": 2, "runs": 1, **changes}
    return RunConfig(
        ipc=ipc,
        student=StudentConfig(width=width, depth=2),
        method=matching_recipe(method, ipc, **recipe),
        evaluation=EvaluationConfig(
            protocol="default" if method == "dc" else "dsa", students=3, whole_epochs=1, whole_students=2
        ),
        device="cpu",
        **changes,
    )


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


@pytest.fixture(scope="module")
def sizes(digits):
    return Sizes.of(digits)


@pytest.fixture(scope="module")
def train(digits, sizes):
    """A training part with exactly as many images of every class as predicted."""
    kept, _ = sizes.split(0.1)
    train = digits.train.subset(
        torch.cat([digits.train.class_indices(label)[:size] for label, size in enumerate(kept)])
    )
    assert train.class_sizes == kept
    return train


def counted(program):
    with Ledger() as ledger:
        result = program()
        footprint = ledger.footprint
    del result
    return footprint


@pytest.mark.parametrize(("method", "runs", "chunk"), [("dc", 1, 0), ("dsa", 1, 0), ("dsa", 2, 3), ("dc", 2, 1)])
def test_a_step_is_counted_as_it_runs(sizes, train, method, runs, chunk):
    settings = config(method=method, runs=runs, chunk=chunk)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    state, run = initial_state(settings, plan, train), make_method(settings, plan, train)
    found = counting.step(settings, plan, sizes)
    real = counted(lambda: outer_step(run, make_descent(settings.method), state))
    assert found.peak == real.peak


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("runs", "chunk", "keep"), [(1, 0, 1), (2, 3, 1), (2, 0, 2)])
def test_an_unrolled_step_is_counted_as_it_runs(sizes, train, optimizer, runs, chunk, keep):
    settings = config(runs=runs, chunk=chunk, ipc=2)
    settings = replace(
        settings,
        method=UnrolledConfig(optimizer=optimizer, batches=2, epochs=2, real_batch=32, keep=keep),
        evaluation=EvaluationConfig(protocol="own" if optimizer == "sgd" else "default"),
    )
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    state, run = initial_state(settings, plan, train), make_method(settings, plan, train)
    found = counting.step(settings, plan, sizes)
    assert found.peak == counted(lambda: outer_step(run, make_descent(settings.method), state)).peak
    assert counting.training(settings, plan, sizes) == Footprint()
    moments = sum(value.nbytes for value in state.moments.values())
    learned = sum(value.nbytes for value in state.learned.values())
    assert counting.saving_bytes(settings, plan, sizes) == 2 * (learned + moments)
    assert counting.state_bytes(settings, plan, sizes) == 2 * (learned + moments)


def test_training_between_steps_is_counted_as_it_runs(sizes, train):
    settings = config(ipc=30)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    state, run = initial_state(settings, plan, train), make_method(settings, plan, train)
    students = run.fresh(0)
    found = counting.training(settings, plan, sizes)
    assert found.peak == counted(lambda: run.advance(state.learned, students, 0)).peak
    assert counting.training(config(), plan, sizes) == Footprint()


def test_whitened_images_need_their_matrix():
    sizes = Sizes(shape=(3, 32, 32), classes=(40,) * 10, test=100)
    plain, whitened = config(), config(data=DataConfig(zca=True))
    plan = make_plan(plain, sizes.shape, 10, sizes=sizes)
    assert counting.step(whitened, plan, sizes).peak >= counting.step(plain, plan, sizes).peak
