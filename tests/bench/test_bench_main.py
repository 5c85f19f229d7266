"""Wrong words of ``fastdistill bench`` are refused before anything is measured."""

import json

import pytest

from bench.__main__ import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "0"], "expected --threads and --rounds of at least 1"),
        (["--rounds", "0"], "expected --threads and --rounds of at least 1"),
        (["--tolerance", "-1"], "expected a --tolerance >= 0"),
        (["--update", "b.json", "--only", "match"], "expected --update of a whole set, got --only"),
        (["--results", "r.json"], "expected --results with --compare or --update"),
        (["--only", "nothing"], "expected parts of the names of benchmarks in the short set, got ['nothing']"),
        (["--json", "no/such/folder/r.json"], "expected a folder to write no/such/folder/r.json into"),
        (["--update", "no/such/folder/b.json"], "expected a folder to write no/such/folder/b.json into"),
        (["--compare", "a", "--base", "b"], "not allowed with"),
    ],
)
def test_wrong_words(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def results(path, **machine):
    counters = {"flops": 1, "dispatches": 2, "launches": 2, "traffic": 3, "peak_bytes": 4}
    counters |= {"graphs": 0, "breaks": 0, "recompiles": 0}
    extra = {"case": "references/match-mse-digits/naive/S1", "counters": counters}
    described = {"set": "short", "device": "cpu", "environment": {"packages": {"torch": "2.99.0"}}, **machine}
    content = {
        "benchmarks": [{"extra_info": extra, "stats": {"median": 1.0, "min": 1.0, "rounds": 3}}],
        "machine_info": {"fastdistill": described},
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_kept_results_are_held_against_what_belongs_to_them(tmp_path, capsys):
    baseline, kept = str(tmp_path / "b.json"), results(tmp_path / "r.json")
    assert main(["--results", kept, "--compare", baseline]) == 4
    assert f"expected a file of committed figures in {baseline}, got none" in capsys.readouterr().err
    assert main(["--results", kept, "--update", baseline]) == 0
    assert main(["--results", kept, "--compare", baseline]) == 0
    assert "1 benchmarks, 0 differences" in capsys.readouterr().out
    other = results(tmp_path / "r.json", device="cuda")
    assert main(["--results", other, "--compare", baseline]) == 4
    assert "expected counters of short-cuda under torch 2.99" in capsys.readouterr().err
    (tmp_path / "r.json").write_text("[]")
    assert main(["--results", kept, "--compare", baseline]) == 1
    assert "expected results that pytest bench --benchmark-json wrote" in capsys.readouterr().err
