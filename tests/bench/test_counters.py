"""Counters are the same for the same step, and show whatever is planted."""

from dataclasses import replace

import pytest
import torch

from bench.cases import Case
from bench.counters import count, with_graphs

CPU = torch.device("cpu")
CASE = Case(group="g", problem="p", engine="functional", students=1, images=0, make=lambda _: lambda: None)


def plain():
    a = torch.ones(64, 32)
    return (a @ a.T).sum()


def test_a_step_is_counted():
    found = count(CASE, plain)
    assert found.flops == 2 * 64 * 32 * 64
    assert (found.dispatches, found.launches) == (4, 3)  # the transpose is a view
    assert found.peak_bytes == 4 * (64 * 32 + 64 * 64 + 1)
    assert (found.graphs, found.breaks, found.recompiles) == (0, 0, 0)
    assert count(CASE, plain) == found


@pytest.mark.parametrize(
    ("plant", "changed"),
    [
        (lambda: torch.ones(3).view(3, 1), {"dispatches", "launches", "traffic"}),
        (
            lambda: plain.__dict__.setdefault("kept", torch.ones(100_000)),
            {"dispatches", "launches", "traffic", "peak_bytes"},
        ),
        (lambda: torch.ones(2, 2) @ torch.ones(2, 2), {"dispatches", "launches", "traffic", "flops"}),
    ],
)
def test_what_is_planted_shows(plant, changed):
    def planted():
        plant()
        return plain()

    before, after = count(CASE, plain).as_dict(), count(CASE, planted).as_dict()
    assert {name for name in before if before[name] != after[name]} == changed


def test_draws_do_not_move_what_is_counted():
    state = torch.get_rng_state()

    def drawn():
        for _ in range(int(torch.randint(50, ()))):
            torch.ones(1)

    assert count(CASE, drawn) == count(CASE, drawn)
    assert torch.equal(torch.get_rng_state(), state)


def test_graphs_breaks_and_recompiles_of_a_compiled_step():
    sizes = iter(range(2, 20))
    compiled = torch.compile(lambda x: torch.sin(x) + 1, backend="eager", dynamic=False)
    case = replace(CASE, engine="compiled")

    def counted(step):
        found, first = with_graphs(count(case, step), step)
        assert first > 0
        return found

    fixed = counted(lambda: compiled(torch.ones(100)))
    assert (fixed.graphs, fixed.breaks, fixed.recompiles) == (1, 0, 0)
    assert fixed.launches == 3
    moving = counted(lambda: compiled(torch.ones(next(sizes))))
    assert moving.recompiles == 2

    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    halves = torch.compile(broken, backend="eager")
    assert counted(lambda: halves(torch.ones(3))).breaks >= 1
