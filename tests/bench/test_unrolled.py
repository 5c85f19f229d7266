"""Both sides of the measurement give the same gradients, and the engine's peak does not grow with the steps."""

import json
from dataclasses import replace

import pytest
import torch

from bench.unrolled import METHODS, QUICK, Engine, main, make_problem, textbook

TINY = replace(QUICK, width=4, side=8, per_class=1, real=7)
LEAST = 5e6  # bytes that a step of the textbook's graph takes at least; peaks of equal processes differ by about that


@pytest.mark.parametrize("primitive", ["functional", "dual"])
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_give_the_same_value_and_gradients(method, primitive):
    problem = make_problem(TINY, 4, torch.float64)
    expected, by_graph = textbook(problem, method)()
    found, by_adjoint = Engine(problem, TINY, method, primitive)()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert by_adjoint.keys() == by_graph.keys()
    for name, gradient in by_graph.items():
        assert gradient.norm() > 0
        assert (by_adjoint[name] - gradient).norm() <= 1e-10 * gradient.norm(), name


def test_the_peak_grows_with_the_steps_by_no_more_than_the_stored_weights(tmp_path):
    out = tmp_path / "unrolled"
    quick = ["--workload", "quick", "--methods", "dd", "--repeats", "1", "--primitives", "dual", "--out", str(out)]
    main(quick)
    content = json.loads(out.with_suffix(".json").read_text())
    peaks = {(row["program"], row["steps"]): row for row in content["memory"]["rows"]}
    few, many = peaks["engine", 10], peaks["engine", 20]
    each = (peaks["textbook", 10]["peak"] - peaks["textbook", 5]["peak"]) / 5
    assert each > LEAST
    # ten more steps add less than a single one adds to the textbook's graph
    assert many["peak"] - few["peak"] <= many["stored"] - few["stored"] + each
    assert content["time"]["rows"][0]["seconds"].keys() == {"textbook", "engine", "engine, dual"}
    assert len(content["goals"]) == 4
    table = out.with_suffix(".md").read_text()
    assert "| dd, engine |  |" in table and "engine, dual" in table
