import json

import pytest
import torch

from fastdistill.config import RunConfig, StudentConfig, matching_recipe
from fastdistill.derivatives.plan import Path
from fastdistill.loop.plan import Plan, make_plan, resolve_device


def config(**changes):
    return RunConfig(device="cpu", student=StudentConfig(width=changes.pop("width", 128)), **changes)


def test_a_plan_survives_its_json():
    plan = make_plan(config(), (1, 28, 28), 10)
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert plan.torch_dtype == torch.float32


def test_phases_are_planned_apart():
    plan = make_plan(config(students=8), (1, 28, 28), 10)
    assert plan.real.path is Path.LOOP
    assert plan.synthetic.path is Path.VMAP
    assert plan.torch_version == torch.__version__


def test_chunks_bound_the_gradients():
    assert make_plan(config(students=3), (1, 28, 28), 10).chunk == 3
    assert make_plan(config(students=1000), (3, 32, 32), 100).chunk < 1000
    assert make_plan(config(students=1000, chunk=7), (3, 32, 32), 100).chunk == 7
    pooled = config(students=1000, method=matching_recipe("dc", 1, per_class=False))
    assert make_plan(pooled, (3, 32, 32), 100).chunk > make_plan(config(students=1000), (3, 32, 32), 100).chunk


def test_a_missing_device_is_named():
    assert resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="use --device cpu"):
            resolve_device("cuda")
