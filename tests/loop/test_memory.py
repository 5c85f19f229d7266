import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fastdistill.config import EvaluationConfig, RunConfig, StudentConfig
from fastdistill.data.sources import load_source
from fastdistill.loop.flops import step_flops
from fastdistill.loop.memory import (
    Forecast,
    forecast,
    forecast_here,
    gigabytes,
    refuse_what_does_not_fit,
)
from fastdistill.loop.plan import make_plan
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import matching_recipe

GIGABYTE = 1_000_000_000
PARTS = {"process": 1, "data": 1, "state": 1, "step": 6, "saving": 1, "training": 2, "selection": 3, "evaluation": 4}


def predicted(**changes):
    sizes = {name: count * GIGABYTE for name, count in {**PARTS, **changes}.items()}
    return Forecast(**sizes)


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


def test_the_peak_is_that_of_the_largest_phase():
    assert predicted().distilling == 9 * GIGABYTE
    assert predicted(evaluation=8).distilling == 9 * GIGABYTE
    assert predicted(evaluation=8).peak == 11 * GIGABYTE
    assert predicted(reached=10).distilling == 10 * GIGABYTE
    assert predicted(reached=10).peak == 10 * GIGABYTE
    assert predicted(reached=10).needed == 9 * GIGABYTE
    assert predicted().largest == "step"
    assert predicted(selection=9).largest == "selection"
    assert predicted(saving=9).distilling == 12 * GIGABYTE


@pytest.mark.parametrize(
    ("largest", "advice"),
    [
        ("step", "--method.real_batch, --students, --student.width or --chunk"),
        ("training", "--students, --runs"),
        ("selection", "--evaluation.validation_students"),
        ("evaluation", "--evaluation.students"),
        ("state", "--ipc"),
        ("data", "fewer or smaller images"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_lower(largest, advice):
    found = predicted(**{largest: 12})
    refuse_what_does_not_fit(found, found.peak)
    with pytest.raises(
        ValueError, match=r"^expected a run that fits the 3\.1 GB of memory that are free, got"
    ) as error:
        refuse_what_does_not_fit(found, 3_100_000_000)
    assert f"predicted to need {gigabytes(found.peak)} (largest part: " in str(error.value)
    assert ", 12.0 GB): " in str(error.value)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("unrolled", ("--method.window", "--method.epochs", "--method.real_batch")),
        ("trajectory", ("--method.inner_steps", "--method.batch")),
    ],
)
def test_steps_that_store_a_training_name_what_shortens_it(method, advice):
    found = replace(predicted(step=12), method=method)
    with pytest.raises(ValueError, match=r"\(largest part: a distilling step, 12\.0 GB\): lower --method") as error:
        refuse_what_does_not_fit(found, 1)
    for option in (*advice, "--students", "--chunk", "--method.keep", "--method.storage"):
        assert option in str(error.value)


def test_savings_are_asked_for_where_a_step_is_the_largest_part():
    asked = []

    def savings():
        asked.append(1)
        return ["--method.keep 8 (0.6 GB)", "--chunk 2 (1.1 GB)"]

    with pytest.raises(ValueError, match=r"or --chunk; or try --method\.keep 8 \(0.6 GB\), --chunk 2 \(1.1 GB\)$"):
        refuse_what_does_not_fit(predicted(), GIGABYTE, savings)
    refuse_what_does_not_fit(predicted(), 20 * GIGABYTE, savings)
    with pytest.raises(ValueError, match=r"lower --evaluation\.students, --ipc or --student\.width$"):
        refuse_what_does_not_fit(predicted(evaluation=9), GIGABYTE, savings)
    assert len(asked) == 1


def test_what_the_process_holds_already_counts_as_room():
    found = replace(predicted(), present=2 * GIGABYTE)
    refuse_what_does_not_fit(found, 7 * GIGABYTE)
    with pytest.raises(ValueError, match=r"fits the 8\.9 GB"):
        refuse_what_does_not_fit(found, 6_900_000_000)


def test_a_run_says_what_it_needs():
    found = replace(predicted(), present=GIGABYTE, flops=4_100_000_000)
    assert found.sentence(14_600_000_000) == "predicted: 9.0 GB of 15.6 GB, 4.1 GFLOP a step"


def test_bytes_are_shown_for_people():
    assert [gigabytes(count) for count in (1_250_000_000, 999_000_000)] == ["1.2 GB", "999 MB"]


def test_a_forecast_knows_its_parts(digits):
    sizes = Sizes.of(digits)
    settings = config(ipc=2)
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    found = forecast(settings, plan, sizes)
    assert found.process > 100_000_000
    assert found.data == 2 * sizes.stored(len(digits.train)) + sizes.stored(len(digits.test))
    assert found.step > 0
    assert found.training > 0
    assert found.selection == 0
    assert found.evaluation > 0
    assert found.present == 0
    assert found.flops == step_flops(settings, plan, sizes) > 0
    selecting = replace(settings, evaluation=replace(settings.evaluation, validation_every=5))
    assert forecast(selecting, plan, sizes).selection > 0
    own = forecast(settings, plan, sizes, resident=700_000_000)
    assert own.present == 700_000_000
    assert own.process > 600_000_000
    assert own.step == found.step
    assert own.method == "matching"


def test_this_process_is_part_of_its_forecast(digits):
    sizes, settings = Sizes.of(digits), config()
    plan = make_plan(settings, sizes.shape, 10, sizes=sizes)
    found = forecast_here(settings, plan, sizes)
    assert found.present > 100_000_000
    assert found.present <= found.reached <= found.distilling <= found.peak
    assert found.process > found.present - found.data
    assert forecast_here(settings, plan, sizes, judge=False).evaluation == 0


def test_memory_does_not_grow_with_steps(tmp_path):
    """In a process of its own, as the peak is that of a process: with selections, pictures and checkpoints."""
    code = f"""
from dataclasses import replace
from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.method_configs import matching_recipe
from fastdistill.loop.run import run
evaluation = EvaluationConfig(validation_every=10, validation_students=2, validation_epochs=2)
method = matching_recipe("dsa", 2, steps=200, real_batch=8, outer_loop=4, inner_loop=2)
run(RunConfig(name="run", output={str(tmp_path)!r}, ipc=2, students=2, student=StudentConfig(width=8, depth=2),
    method=method, evaluation=evaluation, checkpoint_every=5, log_every=1, picture_every=10, threads=1, device="cpu"),
    judge=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = {line["step"]: line["mem/peak_mb"] for line in lines if "mem/peak_mb" in line}
    assert peaks[200] <= 1.01 * peaks[20]
