import json
from dataclasses import replace

import pytest
import torch

from fastdistill.config import DataConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.derivatives.memory import Ledger
from fastdistill.derivatives.plan import Batching, Path
from fastdistill.experts_config import ExpertsConfig
from fastdistill.loop.experts_plan import (
    ExpertsPlan,
    _footprint,
    describe_derivatives,
    describe_disk,
    describe_memory,
    make_experts_plan,
    needed_memory,
)
from fastdistill.loop.experts_trainer import Trainer
from fastdistill.loop.sizes import Sizes

CPU = torch.device("cpu")


def settings(width=8, **changes):
    student = StudentConfig(width=width, depth=2)
    return ExpertsConfig(**{"device": "cpu", "student": student, "count": 12, "batch": 64, **changes})


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


@pytest.fixture(scope="module")
def sizes(digits):
    return Sizes.of(digits)


def test_a_plan_survives_its_json(sizes):
    plan = make_experts_plan(settings(), sizes)
    assert ExpertsPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert plan.torch_version == torch.__version__


def test_a_chunk_is_what_one_program_takes(sizes):
    assert make_experts_plan(settings(), sizes).chunk == 12
    large = Sizes(shape=(3, 32, 32), classes=(500,) * 10, test=100)
    plan = make_experts_plan(settings(width=128), large)
    assert (plan.chunk, plan.training.path) == (1, Path.DUAL)  # nothing to batch, and saved after each one's epoch
    assert make_experts_plan(settings(width=128, chunk=5), large).chunk == 5
    assert make_experts_plan(settings(chunk=50), sizes).chunk == 12


def test_long_training_is_compiled(sizes, monkeypatch):
    monkeypatch.setattr("fastdistill.derivatives.plan.nothing_compiles", lambda: "")
    long = settings(epochs=10**6)
    assert make_experts_plan(long, sizes).training == make_experts_plan(settings(compile="always"), sizes).training
    assert make_experts_plan(long, sizes).testing.compiled
    for uncompiled in (settings(), settings(epochs=10**6, compile="never")):
        assert not make_experts_plan(uncompiled, sizes).training.compiled
    with pytest.raises(ValueError, match="expected compile among auto, always, never"):
        settings(compile="sometimes")


def test_what_cannot_be_compiled_is_said(sizes, monkeypatch):
    def said(config):
        return describe_derivatives(config, make_experts_plan(config, sizes), sizes)

    monkeypatch.setattr("fastdistill.derivatives.plan.nothing_compiles", lambda: "")
    assert said(settings()) == "derivatives by dual layers"
    assert said(settings(compile="always")) == "derivatives by dual layers, compiled"
    monkeypatch.setattr("fastdistill.derivatives.plan.unsupported", lambda module: "it is odd")
    monkeypatch.setattr("fastdistill.loop.experts_plan.unsupported", lambda module: "it is odd")
    assert said(settings(compile="always")) == "derivatives by torch.func, so nothing is compiled: it is odd"
    monkeypatch.setattr("fastdistill.derivatives.plan.nothing_compiles", lambda: "a C++ compiler")
    with pytest.raises(ValueError, match=r"expected a C\+\+ compiler for compile always"):
        said(settings(compile="always"))


def test_a_chunk_is_halved_until_it_fits(sizes, monkeypatch):
    twelve = make_experts_plan(settings(), sizes)
    process = 10**9
    monkeypatch.setattr("fastdistill.loop.experts_plan._LIBRARIES", process)
    held = process + sizes.stored(sum(sizes.classes) + sizes.test)
    limit = 1 + int((held + needed_memory(settings(), twelve, sizes)) / 0.6)
    assert make_experts_plan(settings(), sizes, limit=limit) == twelve
    assert make_experts_plan(settings(), sizes, limit=limit - 10).chunk == 6
    assert make_experts_plan(settings(), sizes, limit=1).chunk == 1
    assert make_experts_plan(settings(chunk=12), sizes, limit=1) == twelve


@pytest.mark.parametrize(
    ("augmentation", "momentum", "chunk"), [("none", 0.0, 6), ("none", 0.9, 3), ("flip_scale", 0.0, 3)]
)
def test_an_epoch_is_counted_as_it_runs(digits, sizes, augmentation, momentum, chunk):
    config = settings(
        augmentation=augmentation, momentum=momentum, chunk=chunk, data=DataConfig(validation_fraction=0.0), batch=500
    )
    plan = make_experts_plan(config, sizes)
    trainer = Trainer(config, digits.train, plan.training, plan.testing)
    with Ledger() as ledger:
        state = trainer.start(torch.arange(chunk))
        state = trainer.epoch(state, 1)
        state = trainer.epoch(state, 2)
        trainer.accuracy(state.weights, digits.test)
        counted = ledger.footprint
    assert _footprint(config, plan, sizes).peak == pytest.approx(counted.peak, rel=0.03)


def test_more_experts_need_more(sizes):
    few, many = settings(chunk=2), settings(chunk=12)
    needed = [needed_memory(config, make_experts_plan(config, sizes), sizes) for config in (few, many)]
    assert needed[0] < needed[1]


def test_experts_that_do_not_fit_are_refused_with_what_to_lower():
    said = describe_memory(10**9, 2 * 10**9, CPU)
    assert said.startswith("predicted peak memory ")
    with pytest.raises(ValueError, match=r"predicted to need .* GB: lower --chunk, --batch or --student.width"):
        describe_memory(10**9, 10**9 - 1, CPU)


def test_a_small_disk_is_refused_with_what_to_lower():
    expected = "the experts will take 6.5 GB on the disk, where 3.0 GB are free"
    assert describe_disk(6_500_000_000, 3_000_000_000, 3_000_000_000) == expected
    with pytest.raises(ValueError, match=r"expected 6\.5 GB of room on the disk.*--storage bfloat16, or lower --count"):
        describe_disk(6_500_000_000, 6_500_000_000, 6_499_000_000)


def test_a_plan_is_halved_down_to_one_image(sizes):
    plan = replace(
        make_experts_plan(settings(), sizes),
        training=Batching(path=Path.VMAP, piece=3, students=3),
        testing=Batching(path=Path.LOOP, piece=8, students=1),
    )
    course = []
    while plan is not None:
        course.append((plan.training.students, plan.training.piece, plan.testing.piece))
        assert plan.chunk == 12
        plan = plan.halved()
    assert course == [(3, 3, 8), (2, 3, 4), (1, 3, 2), (1, 2, 1), (1, 1, 1)]
