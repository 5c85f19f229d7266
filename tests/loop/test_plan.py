import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.derivatives.plan import Path
from fastdistill.loop.memory import step_forecast
from fastdistill.loop.plan import Plan, derivatives, halves, make_plan, resolve_device
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import DistributionConfig, UnrolledConfig, matching_recipe


def config(**changes):
    return RunConfig(device="cpu", student=StudentConfig(width=changes.pop("width", 128)), **changes)


def test_a_plan_survives_its_json():
    plan = make_plan(config(), (1, 28, 28), 10)
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert plan.torch_dtype == torch.float32


def test_phases_are_planned_apart():
    plan = make_plan(config(students=8), (1, 28, 28), 10)
    assert (plan.real.path, plan.synthetic.path) == (Path.DUAL, Path.DUAL)
    assert plan.real.students < plan.synthetic.students  # one real batch fills the cache, several synthetic ones do
    other = replace(config(students=8), student=StudentConfig(architecture="alexcifarnet"))
    for outside in (other, config(students=8, derivatives="functional")):
        found = make_plan(outside, (1, 28, 28), 10)
        assert (found.real.path, found.synthetic.path) == (Path.LOOP, Path.VMAP)
    compiled = make_plan(config(students=8, compile=True), (1, 28, 28), 10)
    assert compiled.real.compiled and compiled.synthetic.compiled and compiled.training.compiled
    assert plan.torch_version == torch.__version__


GIGABYTE = 10**9


@cache
def digits_plan(students):
    settings = config(width=16, students=students, method=matching_recipe("dc", 1, real_batch=32))
    return make_plan(settings, (1, 8, 8), 10)


@pytest.mark.parametrize("chunk", [12, 6, 2])
def test_a_chunk_is_the_largest_half_that_fits(chunk):
    settings = config(width=16, students=12, method=matching_recipe("dc", 1, real_batch=64))
    shape, sizes = (3, 32, 32), Sizes(shape=(3, 32, 32), classes=(200,) * 10, test=100)
    needed = step_forecast(settings, make_plan(replace(settings, chunk=chunk), shape, 10), sizes)
    limit = 1 + int(needed / 0.6)
    assert make_plan(settings, shape, 10, sizes=sizes, limit=limit).chunk == chunk
    assert make_plan(settings, shape, 10, sizes=sizes, limit=limit - 10).chunk == -(-chunk // 2)
    assert (
        make_plan(settings, shape, 10, sizes=sizes, limit=1).chunk == 1
    )  # too little even for that: refused elsewhere


def test_a_plan_depends_on_the_machine_and_not_on_what_is_free():
    first = digits_plan(64)
    ballast = torch.ones(50_000_000)
    digits_plan.cache_clear()
    assert digits_plan(64) == first
    assert ballast.sum() > 0


def test_a_chunk_may_be_set():
    assert make_plan(config(students=1000, chunk=7), (3, 32, 32), 100, limit=1).chunk == 7
    assert make_plan(config(students=3, chunk=7), (1, 8, 8), 10, limit=1).chunk == 3


def test_more_gradients_make_smaller_chunks():
    limit = 8 * GIGABYTE
    pooled = config(students=64, method=matching_recipe("dc", 1, real_batch=16, per_class=False))
    apart = config(students=64, method=matching_recipe("dc", 1, real_batch=16))
    assert make_plan(pooled, (3, 32, 32), 20, limit=limit).chunk > make_plan(apart, (3, 32, 32), 20, limit=limit).chunk


def test_halves_end_at_one():
    assert halves(16) == [16, 8, 4, 2, 1]
    assert halves(12) == [12, 6, 3, 2, 1]
    assert halves(1) == [1]


def test_a_missing_device_is_named():
    assert resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="use --device cpu"):
            resolve_device("cuda")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "derivatives by dual layers"),
        ({"compile": True}, "derivatives by dual layers, compiled"),
        ({"derivatives": "functional"}, "derivatives by torch.func: the configuration asks for torch.func"),
        ({"student": StudentConfig(architecture="alexcifarnet")}, "derivatives by torch.func: there is no dual layer"),
        ({"method": DistributionConfig()}, "derivatives by torch.func: distribution matching has no second-order pass"),
        (
            {"student": StudentConfig(norm="batch"), "method": UnrolledConfig(batches=1)},
            "derivatives by torch.func: batch norm has the statistics of every batch",
        ),
    ],
)
def test_a_run_says_what_differentiates_its_students(changes, says):
    own = isinstance(changes.get("method"), UnrolledConfig)
    settings = RunConfig(device="cpu", evaluation=EvaluationConfig(protocol="own" if own else "default"), **changes)
    plan = make_plan(settings, (3, 32, 32), 10)
    assert derivatives(settings, plan, (3, 32, 32), 10).startswith(says)


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    make_plan(config(), (1, 28, 28), 10)
    with pytest.raises(ValueError, match="expected a C"):
        make_plan(config(compile=True), (1, 28, 28), 10)


def test_nothing_is_compiled_by_an_older_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    with pytest.raises(ValueError, match=r"expected torch 2.13 or later for compile true, got 2.11.0"):
        make_plan(config(compile=True), (1, 28, 28), 10)
