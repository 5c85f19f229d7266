import torch

from bench.batching import measure


def test_the_batching_rule_is_measured_beside_its_rivals():
    row = measure(4, 1, 8, (2, 2, 1), torch.device("cpu"))
    assert set(row["gradient"]) == {"chosen", "loop", "vmap, 1 students", "vmap, 2 students"}
    assert all(milliseconds > 0 for kind in ("gradient", "Kv") for milliseconds in row[kind].values())
    assert row["rule"]["path"] == "vmap"
