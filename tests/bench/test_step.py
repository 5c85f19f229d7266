"""The measured steps do what they are named for."""

import torch

from bench import step
from bench.batching import measure

CPU = torch.device("cpu")


def test_both_steps_run_on_the_same_store(monkeypatch):
    monkeypatch.setitem(step.WORKLOADS, "tiny", (4, 1, 8, 5, 2))
    store = step.random_store(1, 8, 6)
    assert store.class_sizes == (6,) * 10
    loss = step.naive_step(store, "tiny", CPU)()
    assert loss.isfinite()
    call, plan = step.engine_step(store, "tiny", 3, CPU)
    state, found = call()
    assert state.step == 1
    assert state.images.shape == (1, 10, 2, 1, 8, 8)
    # the losses of a ConvNet-3-4 on noise are of one size: 10 classes of at most 3*4 + 10 rows
    assert 0 < float(found.values["outer/loss"]) < 10 * 22 * 2
    assert 0 < float(loss) < 10 * 22 * 2
    assert plan["chunk"] == 3


def test_the_batching_rule_is_measured_beside_its_rivals():
    row = measure(4, 1, 8, (2, 2, 1), CPU)
    assert set(row["gradient"]) == {"chosen", "loop", "vmap, 1 students", "vmap, 2 students"}
    assert all(milliseconds > 0 for kind in ("gradient", "Kv") for milliseconds in row[kind].values())
    assert row["rule"]["path"] == "vmap"
