"""Every workload runs, both sides do the same work, and the textbook's and the engine's steps are named alike."""

import pytest
import torch

from bench.counters import count
from bench.workloads import all_cases

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


def test_the_short_set_has_every_workload_and_both_ways_to_run_it():
    short = [case for case in CASES.values() if case.short]
    assert {case.group for case in short} == set(GROUPS)
    assert {case.engine for case in short} == {"naive", "functional", "compiled"}


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


def test_a_step_is_the_same_every_time():
    case = CASES["matching/dc-digits/functional/S4"]
    step = case.make(CPU)
    (state, first), (again, second) = step(), step()
    assert state.step == 2
    assert torch.equal(state.images, again.images)
    assert torch.equal(first.values["outer/loss"], second.values["outer/loss"])
    assert bool(first.sound)
