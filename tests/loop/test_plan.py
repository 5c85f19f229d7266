import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.derivatives.plan import Path
from fastdistill.loop.memory import step_forecast
from fastdistill.loop.plan import Plan, derivatives, halves, make_plan, resolve_device, switched
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
    assert plan.torch_version == torch.__version__


def test_a_switch_changes_how_students_are_batched_from_its_step_on():
    settings = config(students=8, compile="always")
    plan = make_plan(settings, (1, 28, 28), 10)
    assert plan.switch is not None and plan.switch.step == 0
    assert not (plan.real.compiled or plan.synthetic.compiled or plan.training.compiled)
    found = plan.at(0)
    assert found.real.compiled and found.synthetic.compiled and found.training.compiled
    later = switched(settings, replace(plan, switch=None), (1, 28, 28), 10, step=7)
    assert later.at(6) == later and later.at(7) == later.at(8) and later.at(7).real == plan.switch.real
    assert Plan.from_dict(json.loads(json.dumps(later.as_dict()))) == later
    outside = config(compile="always", derivatives="functional")
    assert make_plan(outside, (1, 28, 28), 10).switch is None


def test_large_networks_are_matched_in_bfloat16_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)

    def precision(**settings):
        shape = settings.pop("shape", (1, 28, 28))
        return make_plan(config(compile="always", **settings), shape, 10).at(0).real.precision

    assert precision(width=128) == "bfloat16"
    assert precision(width=16, shape=(1, 8, 8)) == "float32"
    assert precision(width=128, precision="float32") == "float32"
    assert precision(width=128, dtype="float64") == "float32"
    assert precision(width=16, shape=(1, 8, 8), precision="bfloat16") == "bfloat16"
    assert make_plan(config(width=128), (1, 28, 28), 10).real.precision == "float32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision(width=128) == "float32"
    with pytest.raises(ValueError, match="expected a CUDA device for precision tf32"):
        precision(precision="tf32")


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
        ({"compile": "always", "precision": "float32"}, "derivatives by dual layers, compiled from step 0 on"),
        (
            {"compile": "always", "precision": "bfloat16"},
            "derivatives by dual layers, compiled from step 0 on, products in bfloat16",
        ),
        (
            {"derivatives": "functional", "compile": "always"},
            "derivatives by torch.func, so nothing is compiled: the configuration asks for torch.func",
        ),
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
    assert make_plan(config(), (1, 28, 28), 10).switch is None
    with pytest.raises(ValueError, match="expected a C"):
        make_plan(config(compile="always"), (1, 28, 28), 10)


def test_nothing_is_compiled_by_an_older_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    with pytest.raises(ValueError, match=r"expected torch 2.13 or later, not 2.11.0"):
        make_plan(config(compile="always"), (1, 28, 28), 10)
