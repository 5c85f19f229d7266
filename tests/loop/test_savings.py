"""What a refused run is told to try, with the bytes that it would then take."""

import re
from dataclasses import replace

import pytest

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.loop.memory import gigabytes, step_bytes
from fastdistill.loop.plan import make_plan
from fastdistill.loop.run import run
from fastdistill.loop.savings import savings
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import UnrolledConfig, matching_recipe

SIZES = Sizes(shape=(1, 8, 8), classes=(150,) * 10, test=300)


def config(method, **changes):
    own = isinstance(method, UnrolledConfig) and method.learn_rates
    return RunConfig(
        ipc=2,
        student=StudentConfig(width=8, depth=2),
        method=method,
        evaluation=EvaluationConfig(protocol="own" if own else "default"),
        device="cpu",
        **{"students": 1, **changes},
    )


def unrolled(**changes):
    return UnrolledConfig(**{"batches": 2, "epochs": 5000, "real_batch": 16, "optimizer": "adam", **changes})


def tried(settings):
    plan = make_plan(settings, SIZES.shape, 10, sizes=SIZES)
    return savings(settings, plan, SIZES), plan


def test_every_way_to_store_less_of_a_training_is_named_with_its_bytes():
    settings = config(unrolled(window=8000), students=4, chunk=4)
    found, plan = tried(settings)
    assert [text.rpartition(" (")[0] for text in found] == [
        "--method.keep 89",
        "--method.storage bfloat16",
        "--method.window 4000",
        "--chunk 2",
    ]
    before = step_bytes(settings, plan, SIZES)
    keep = replace(settings, method=replace(settings.method, keep=89))
    assert found[0].endswith(f"({gigabytes(step_bytes(keep, plan, SIZES))})")
    sizes = {gigabytes(before): before}
    for text in found:
        number, unit = re.fullmatch(r".* \((\d+(?:\.\d)?) (MB|GB)\)", text).groups()
        sizes[text] = float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    assert sizes[found[0]] < 0.1 * before  # two times the root of the steps
    assert 0.6 * before < sizes[found[1]] < 0.9 * before  # half of the weights, none of both moments
    assert all(0.4 * before < sizes[text] < 0.6 * before for text in found[2:])


def test_what_is_set_already_or_does_not_help_is_not_named():
    found, _ = tried(config(unrolled(keep=100, learn_rates=False)))
    assert [text.rpartition(" (")[0] for text in found] == ["--method.epochs 2500"]
    found, _ = tried(config(unrolled(storage="bfloat16")))
    assert [text.rpartition(" (")[0] for text in found] == ["--method.epochs 2500"]
    assert tried(config(matching_recipe("dc", 2, real_batch=8)))[0] == []


def test_a_training_beyond_memory_is_refused_with_what_to_lower(tmp_path):
    digits = load_source("digits")
    settings = replace(config(unrolled(epochs=10**8)), output=str(tmp_path))
    with pytest.raises(ValueError) as refusal:
        run(settings, digits)
    text = str(refusal.value)
    assert re.search(r"got one predicted to need \d{4}\.\d GB \(largest part: a distilling step, \d{4}\.\d GB\)", text)
    assert re.search(
        r": lower .*--method\.real_batch, .*; or try --method\.keep \d+ \(\d+ MB\), --method\.storage bfloat16 \(", text
    )
    assert re.search(r"--method\.epochs 50000000 \(\d+\.\d GB\)$", text)
    assert not (tmp_path / "run" / "config.yaml").exists()
