"""The exact and the ratio tier name whatever is planted, and nothing else."""

import json

import pytest

from bench import gate
from bench.cases import Case
from bench.counters import count
from bench.workloads import all_cases, references

MACHINE = {"environment": {"packages": {"torch": "2.13.0+cpu"}}, "set": "short", "device": "cpu"}
NAME = "references/match-ours-digits/functional/S16"


def entry(case: Case, **further):
    import torch

    found = count(case, case.make(torch.device("cpu")))
    return {"case": case.name, "counters": found.as_dict(), **further}


def run(found, version="2.13.0+cpu", **changes):
    return gate.Run.of(found, {**MACHINE, "environment": {"packages": {"torch": version}}, **changes})


def compared(found, baseline):
    return gate.exact(run(found), baseline)


@pytest.fixture(scope="module")
def found():
    cases = all_cases()
    return [entry(cases[NAME], speedup=20.0), entry(cases["references/match-ours-digits/naive/S1"])]


@pytest.fixture
def baseline(found, tmp_path):
    made = gate.Baseline().updated(run(found))
    made.write(tmp_path / "baseline.json")
    return gate.Baseline.read(tmp_path / "baseline.json")


def test_the_same_figures_pass(found, baseline):
    again = [entry(all_cases()[one["case"]]) for one in found]
    assert compared(again, baseline) == []
    assert gate.ratio(run(found), baseline) == []


def planted(monkeypatch, plant):
    match = references.match

    def with_it(a, *further):
        kept = plant(a)
        found = match(a, *further)
        del kept
        return found

    monkeypatch.setattr(references, "match", with_it)
    return entry(all_cases()[NAME])


def test_an_extra_operator_call_fails(found, baseline, monkeypatch):
    says = compared([planted(monkeypatch, lambda a: a.view(-1)), found[1]], baseline)
    before = found[0]["counters"]["dispatches"]
    assert len(says) == 1
    assert says[0].startswith(f"{NAME}: expected dispatches {before}, got {before + 1} (+")


def test_an_extra_allocation_fails(found, baseline, monkeypatch):
    says = compared([planted(monkeypatch, lambda a: a.clone()), found[1]], baseline)
    assert any(says_one.startswith(f"{NAME}: expected peak_bytes ") for says_one in says)
    assert {words.split()[2] for words in says} == {"dispatches", "launches", "traffic", "peak_bytes"}


def test_a_renamed_benchmark_fails_twice(found, baseline):
    renamed = [{**found[0], "case": "references/match-new/functional/S16"}, found[1]]
    says = compared(renamed, baseline)
    assert says == [
        f"{NAME}: expected as committed, got no such benchmark",
        "references/match-new/functional/S16: expected a committed benchmark, got a new one",
    ]


def test_a_deleted_benchmark_fails(found, baseline):
    assert len(compared(found[1:], baseline)) == 1


def test_a_speed_up_below_its_bound_fails(found, baseline):
    bound = baseline.ratio["short-cpu"][NAME]
    assert bound == round(gate._SLACK * 20, 2)
    slow = run([{**found[0], "speedup": 0.99 * bound}])
    (says,) = gate.ratio(slow, baseline)
    assert says == f"{NAME}: expected at least {bound:.2f} times the textbook's speed, got {0.99 * bound:.2f}"
    assert gate.ratio(run([{**found[0], "speedup": 1.01 * bound}]), baseline) == []


def test_a_speed_up_without_a_bound_and_a_bound_without_a_speed_up_fail(found, baseline):
    new = gate.ratio(run([{**found[0], "case": "new"}]), baseline)
    assert new[0] == "new: expected a committed bound of its speed-up, got none"
    assert new[1].startswith(f"{NAME}: expected a speed-up to hold against its bound")


def test_an_update_keeps_bounds_versions_and_devices(found, baseline):
    faster = [{**found[0], "speedup": 100.0}, {**found[1], "case": "further", "speedup": 2.0}]
    updated = baseline.updated(run(faster, "2.14.1")).updated(run(faster, device="cuda"))
    assert updated.ratio["short-cpu"] == {
        NAME: baseline.ratio["short-cpu"][NAME],
        "further": round(gate._SLACK * 2, 2),
    }
    assert set(updated.exact["short-cpu"]) == {"2.13", "2.14"}
    assert set(updated.exact["short-cpu"]["2.14"]) == {NAME, "further"}
    assert set(updated.exact["short-cuda"]) == {"2.13"}
    assert gate.has_exact(updated, run(faster, "2.14.0"))
    assert not gate.has_exact(updated, run(faster, "2.12.0"))
    assert not gate.has_exact(updated, run(faster, set="full"))


def test_only_some_are_held(found, baseline):
    some = baseline.only(lambda name: "naive" in name)
    assert set(some.exact["short-cpu"]["2.13"]) == {found[1]["case"]}
    assert some.ratio == {"short-cpu": {}}


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"exact": 3, "ratio": []}), "\x00"])
def test_a_damaged_baseline_is_refused_in_one_sentence(content, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"expected a baseline in .*baseline\.json, got"):
        gate.Baseline.read(path)


def test_the_committed_baseline_has_every_short_benchmark():
    committed = gate.Baseline.read(gate.COMMITTED)
    short = {name for name, case in all_cases().items() if case.short}
    for version, counters in committed.exact["short-cpu"].items():
        assert set(counters) == short, version
    assert set(committed.ratio["short-cpu"]) == {name for name in short if "/naive/" not in name}
    assert all(bound > 0 for bound in committed.ratio["short-cpu"].values())
