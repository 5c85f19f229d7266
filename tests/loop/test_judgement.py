from dataclasses import replace
from functools import partial

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.memory import Footprint, Ledger
from fastdistill.evaluation.arms import Judge
from fastdistill.loop.artefact import replay_of
from fastdistill.loop.judgement import selection, table
from fastdistill.loop.plan import make_plan
from fastdistill.loop.setup import initial_state
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import UnrolledConfig, matching_recipe
from fastdistill.progress import Silent


def config(*, method="dc", ipc=1, width=8, **changes):
    recipe = {"real_batch": 16, "outer_loop": 1 if ipc == 1 else 4, "inner_loop": 2}
    every = changes.pop("validation_every", 0)
    changes = {"students": 2, "runs": 1, **changes}
    return RunConfig(
        ipc=ipc,
        student=StudentConfig(width=width, depth=2),
        method=matching_recipe(method, ipc, **recipe),
        evaluation=EvaluationConfig(
            protocol="default" if method == "dc" else "dsa",
            students=3,
            whole_epochs=1,
            whole_students=2,
            validation_every=every,
            validation_epochs=2,
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


class RealLedger(Ledger):
    """Counts a program that computes: modules on the meta device, of which only shapes are used, take nothing."""

    def _note(self, tensor, *, owned):
        super()._note(tensor, owned=owned and tensor.device.type != "meta")


def counted(program):
    with RealLedger() as ledger:
        result = program()
        footprint = ledger.footprint
    del result
    return footprint


@pytest.mark.parametrize("runs", [1, 2])
def test_a_selection_is_counted_as_it_runs(sizes, train, runs):
    settings = config(ipc=2, runs=runs, validation_every=5)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    _, held_out = sizes.split(0.1)
    validation = train.subset(torch.arange(held_out))
    judge = Judge(settings, train, validation, validation, plan.torch_dtype)
    learned = initial_state(settings, plan, train).learned
    assert selection(settings, plan, sizes).peak == pytest.approx(
        counted(lambda: judge.validate(learned)).peak, rel=0.01
    )
    assert selection(config(), plan, sizes) == Footprint()


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_the_table_is_counted_as_it_runs(digits, sizes, train, method):
    settings = config(method=method, ipc=2, runs=2)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    judge = Judge(settings, train, train, digits.test, plan.torch_dtype)
    rules = judge._protocol
    judge._protocol = lambda learned: rules(learned).with_epochs(1)
    learned = initial_state(settings, plan, train).learned
    real = counted(lambda: list(judge.arms(learned, None, Silent())))
    assert table(settings, plan, sizes).peak == pytest.approx(real.peak, rel=0.01)


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    ("architecture", "initialization"), [("convnet", "fresh"), ("convnet", "fixed"), ("gtn", "fresh")]
)
def test_a_replay_is_counted_as_it_runs(digits, sizes, train, runs, architecture, initialization):
    base = config(ipc=2, runs=runs)
    settings = replace(
        base,
        student=replace(base.student, architecture=architecture, initialization=initialization),
        method=UnrolledConfig(batches=2, epochs=2, real_batch=32),
        evaluation=replace(base.evaluation, protocol="own", whole_epochs=0, validation_every=5),
    )
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    replay = partial(replay_of, settings, train)
    judge = Judge(settings, train, train, digits.test, plan.torch_dtype, replay=replay)
    learned = initial_state(settings, plan, train).learned
    real = counted(lambda: list(judge.arms(learned, None, Silent())))
    assert table(settings, plan, sizes).peak == pytest.approx(real.peak, rel=0.01)
