"""When a run is compiled, and that it stays the same run."""

import io
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from fastdistill.config import DataConfig, EvaluationConfig, RunConfig, StudentConfig
from fastdistill.loop import compilation, precompile, run
from fastdistill.loop.compilation import Compilation
from fastdistill.loop.plan import make_plan
from fastdistill.loop.sizes import Sizes
from fastdistill.method_configs import matching_recipe
from tests.compiling import compiles

SIZES = Sizes(shape=(1, 8, 8), classes=(40,) * 10, test=10)


def config(**changes):
    return RunConfig(
        device="cpu",
        students=2,
        student=StudentConfig(width=4, depth=2),
        method=matching_recipe("dc", 1, real_batch=4, steps=changes.pop("steps", 1000)),
        evaluation=EvaluationConfig(protocol="default"),
        **changes,
    )


class Process:
    """Stands for the one that compiles."""

    def __init__(self, code, said=b""):
        self.asked = self.stdin = io.BytesIO()
        self.asked.close = lambda: None
        self.code, self.returncode, self.said, self.killed = code, None, said, False

    def poll(self):
        return self.returncode

    def communicate(self):
        self.returncode = self.code
        return b"", self.said

    def kill(self):
        self.killed = True


@pytest.fixture
def process(monkeypatch):
    monkeypatch.setattr(compilation, "nothing_compiles", lambda: "")
    made = Process(0)
    monkeypatch.setattr(compilation.subprocess, "Popen", lambda *_, **__: made)
    return made


def watched(settings, **limits):
    said = []
    return Compilation(settings, SIZES, 1.0, said.append, **limits), make_plan(settings, (1, 8, 8), 10), said


def after(found, plan, steps, seconds):
    for step in steps:
        plan = found.after_step(plan, step, seconds)
    return plan


def test_a_long_run_goes_over_to_compiled_programs_at_a_step_fixed_at_once(process):
    found, plan, said = watched(config())
    assert after(found, plan, range(1, 4), 2.0) == plan
    plan = found.after_step(plan, 4, 2.0)
    assert plan.switch is not None and plan.switch.step == 4 + 45
    assert not plan.at(48).real.compiled and plan.at(49).real.compiled
    request = json.loads(process.asked.getvalue())
    assert request["classes"] == [36] * 10 and RunConfig.from_dict(request["config"]) == config()
    assert "minutes of steps are left: compiling what they need until step 49" in said[0]
    assert after(found, plan, range(5, 50), 2.0) == plan and said[1] == "waiting for what compiles"
    assert after(found, plan, range(50, 54), 1.0) == plan
    assert said[2] == "a compiled step takes 1 s, one before took 2 s"


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [({}, 0.5), ({"compile": "never"}, 2.0), ({"derivatives": "functional"}, 2.0), ({"seconds": 5000.0}, 2.0)],
    ids=["short", "never", "functional", "so many seconds"],
)
def test_others_stay_as_they_are(process, changes, seconds):
    found, plan, _ = watched(config(**changes))
    assert after(found, plan, range(1, 20), seconds).switch is None


def test_a_run_goes_back_where_compiled_steps_are_no_faster(process):
    found, plan, said = watched(config(), allowed=2.0)
    plan = after(found, plan, range(1, 6), 2.0)
    assert plan.switch.step == 5
    plan = after(found, plan, range(6, 10), 1.95)
    assert said[-1].endswith("going back") and plan.switch.step == 1000 and not plan.at(999).real.compiled
    assert after(found, plan, range(10, 30), 2.0) == plan


def test_a_run_goes_on_where_compiling_fails(process):
    process.code, process.said = 1, b"Traceback\nRuntimeError: no space left"
    found, plan, said = watched(config(), allowed=2.0)
    plan = after(found, plan, range(1, 6), 2.0)
    assert said[-1] == "compiling failed, so the run goes on as it is (RuntimeError: no space left)"
    assert plan.switch.step == 1000


def test_what_compiles_ends_with_the_run(process):
    found, plan, _ = watched(config())
    after(found, plan, range(1, 5), 2.0)
    found.close()
    assert process.killed


@compiles
def test_a_run_that_is_stopped_goes_over_at_the_same_step_to_the_same_bits(tmp_path, monkeypatch):
    eager = partial(Compilation, worth=0.0, allowed=1e-9)
    monkeypatch.setattr(run, "Compilation", eager)
    settings = config(steps=9, data=DataConfig(source="digits"), output=str(tmp_path), checkpoint_every=1)
    said = []

    class Told(run.Silent):
        def say(self, text):
            said.append(text)

    whole = run.run(replace(settings, name="whole"), progress=Told(), judge=False)
    assert whole.table["plan"]["switch"]["step"] in (5, 9), said
    assert whole.table["compiling_step_s"] > 0
    pieces = replace(settings, name="pieces")
    for end in (6, 9):
        found = run.run(pieces, judge=False, stop_after=end)
    assert torch.equal(found.distilled.images, whole.distilled.images)
    never = run.run(replace(settings, name="never", compile="never"), judge=False)
    difference = (never.distilled.images - whole.distilled.images).norm() / never.distilled.images.norm()
    assert difference < 1e-3


@compiles
def test_precompiling_leaves_what_a_run_needs(monkeypatch):
    settings = config(compile="always")
    plan = make_plan(settings, (1, 8, 8), 10)
    seen = []
    monkeypatch.setattr(precompile.Stepper, "warm_up", lambda stepper, rounds: seen.append((stepper.plan, rounds)))
    precompile.compile_steps(
        {"config": settings.as_dict(), "plan": plan.as_dict(), "shape": [1, 8, 8], "classes": [40] * 10}
    )
    assert seen == [(plan.at(0), 1)]
