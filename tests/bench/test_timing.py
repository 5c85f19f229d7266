import json

import torch

from bench.timing import interleaved, paired_ratio, write_results

CPU = torch.device("cpu")


def test_candidates_take_turns_after_a_warm_up():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, device=CPU, repeats=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_ratio_is_the_median_within_repeats():
    # a machine that slows down tenfold between repeats leaves the ratios alone
    assert paired_ratio([1.0, 10.0, 100.0], [2.0, 20.0, 25.0]) == 0.5


def test_results_carry_their_environment(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_results(str(path), "name", [{"a": 1}], CPU)
    found = json.loads(path.read_text())
    assert found["rows"] == [{"a": 1}]
    assert found["matmul_2048_float32_gflops"] > 0
    assert "torch" in found["environment"]["packages"]
