"""Every workload runs, both sides do the same work, and the textbook's and the engine's steps are named alike."""

from dataclasses import replace

import pytest
import torch

from bench.counters import count
from bench.problems import PRIMITIVES, Implementation, Problem
from bench.workloads import all_cases, evaluation
from fastdistill.derivatives.dual.primitive import Dual
from fastdistill.derivatives.plan import Path

CPU = torch.device("cpu")
CASES = all_cases()
GROUPS = (
    "matching",
    "unrolled",
    "trajectory",
    "implicit",
    "distribution",
    "evaluation",
    "experts",
    "products",
    "kernels",
    "references",
    "data",
)
# operations of the engine in the textbook's: its adjoint takes every step's gradient again inside the product, and the
# textbook's graph of a TESLA step is built twice
WORK = {"products": (0.5, 1.05), "unrolled": (1.0, 1.3), "trajectory": (0.8, 1.45), "implicit": (1.0, 1.3)}
WORK["kernels"] = (0.99, 1.6)  # the first block's formula counts its norm and activation, torch's own leave them out


def test_every_workload_has_its_cases():
    assert {case.group for case in CASES.values()} == set(GROUPS)
    for case in CASES.values():
        assert case.yardstick in CASES, case.name
        assert not case.short or CASES[case.yardstick].short, case.name
        assert case.precision == "float32" or case.cuda, case.name


def test_the_short_set_has_every_workload_and_every_quick_way_to_run_it():
    short = [case for case in CASES.values() if case.short]
    assert {case.group for case in short} == set(GROUPS)
    assert {case.engine for case in short} == {"naive", "functional", "compiled", "dual"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.short and case.engine == "naive"])
def test_both_sides_do_the_same_work(name):
    naive = CASES[name]
    engine = next(
        case for case in CASES.values() if case.yardstick == name and case.engine == "functional" and case.students == 1
    )
    assert engine.images == naive.images
    found = {case.engine: count(case, case.make(CPU)) for case in (naive, engine)}
    if not found["naive"].flops:
        assert found["functional"].flops == 0
        return
    least, most = WORK.get(naive.group, (0.99, 1.05))
    assert least <= found["functional"].flops / found["naive"].flops <= most


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.engine == "dual" and case.short])
def test_dual_layers_do_the_work_of_torch_func_in_fewer_calls(name):
    dual, functional = CASES[name], CASES[name.replace("/dual/", "/functional/")]
    ours, theirs = (count(case, case.make(CPU)) for case in (dual, functional))
    assert 0.8 <= ours.flops / theirs.flops <= 1.05
    assert ours.dispatches < theirs.dispatches / 2


PLANNED = [name for name, case in CASES.items() if case.engine == "dual" and case.students == 1 and case.runs_on("cpu")]


@pytest.mark.parametrize("name", [name for name in PLANNED if not name.startswith("evaluation/")])
def test_every_dual_case_is_one_of_dual_layers(name, monkeypatch):
    made = []

    def kept(module, batching):
        made.append(Implementation.make(module, batching))
        return made[-1]

    monkeypatch.setitem(PRIMITIVES, "dual", replace(PRIMITIVES["dual"], make=kept))
    CASES[name].make(CPU)
    assert {type(primitive) for primitive in made} == {Dual}


@pytest.mark.parametrize("name", ["functional", "dual", "dual-compiled"])
def test_an_evaluation_is_of_the_implementation_that_is_asked_for(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    batchings, make_primitive = [], Implementation.make

    def kept(module, batching):
        batchings.append(batching)
        return make_primitive(module, batching)

    monkeypatch.setitem(PRIMITIVES, name, replace(PRIMITIVES[name], make=kept))
    monkeypatch.setitem(evaluation.LENGTHS, "tiny", evaluation.Length(ipc=1, epochs=1))
    tiny = Problem(name="tiny", shape=(1, 8, 8), width=4, depth=1, per_class=2)
    step = evaluation.engine(tiny, 2, name, CPU)
    step()
    step()
    # one for training and one for testing, those that are compiled once for both steps
    assert len(batchings) == (2 if name == "dual-compiled" else 4)
    assert {batching.path is Path.DUAL for batching in batchings} == {name != "functional"}
    assert {batching.compiled for batching in batchings} == {name == "dual-compiled"}


def test_a_step_is_the_same_every_time():
    case = CASES["matching/dc-digits/functional/S4"]
    step = case.make(CPU)
    (state, first), (again, second) = step(), step()
    assert state.step == 2
    assert torch.equal(state.images, again.images)
    assert torch.equal(first.values["outer/loss"], second.values["outer/loss"])
    assert bool(first.sound)
