import json

import pytest

from bench.table import HEADS, as_lines, load, rows_of

MACHINE = {"peaks": {"matmul_float32_flops_per_s": 100e9, "copy_bytes_per_s": 10e9, "launch_s": 1e-6}}


def entry(case, engine, students, seconds, **further):
    counters = {
        "flops": 2_000_000_000,
        "dispatches": 50,
        "launches": 40,
        "traffic": 500_000_000,
        "peak_bytes": 8_000_000,
    }
    return {
        "case": case,
        "engine": engine,
        "precision": "float32",
        "students": students,
        "images": 100,
        "counters": {**counters, "graphs": 2, "breaks": 0, "recompiles": 0},
        "first_s": 3.0,
        "floor_s": 0.07,
        "median_s": seconds,
        **further,
    }


FOUND = [
    entry("g/p/naive/S1", "naive", 1, 0.1, peak_memory=30_000_000),
    entry("g/p/functional/S4", "functional", 4, 0.2, speedup=2.0, peak_memory=60_000_000),
    entry("g/p/compiled/S4", "compiled", 4, 0.05, speedup=8.0),
    entry("g/p/dual-compiled/S4", "dual-compiled", 4, 0.05, speedup=8.0),
]


def cells(row):
    named = dict(zip(HEADS, row, strict=True))
    held, peak = (row[place] for place in (13, 15))
    return {**{name: value for name, value in named.items() if name != "÷ naive"}, "held ÷": held, "peak ÷": peak}


def test_a_row_says_what_the_hardware_did():
    rows = rows_of(FOUND, MACHINE)
    functional = cells(rows[1])
    assert functional["step ms"] == "200"
    assert functional["× naive"] == "2"
    assert functional["students/s"] == "20"
    assert functional["images/s"] == "2000"
    assert functional["GFLOP/s"] == "10"
    assert functional["% of matmul"] == "10"
    assert functional["GB/s"] == "2.5"
    assert functional["% of copy"] == "25"
    assert functional["% floor"] == "35"
    assert functional["held ÷"] == "0.25"
    assert functional["peak MB"] == "60"
    assert functional["peak ÷"] == "0.5"
    assert cells(rows[0])["× naive"] == ""


@pytest.mark.parametrize("row", [2, 3])
def test_what_a_compiled_step_does_inside_is_not_made_up(row):
    compiled = cells(rows_of(FOUND, MACHINE)[row])
    assert compiled["calls"] == "2 graphs"
    assert compiled["first s"] == "3"
    assert compiled["GB/s"] == compiled["held MB"] == compiled["peak MB"] == ""
    assert compiled["GFLOP/s"] == "40"  # the operations are those of the program before it is compiled


def test_columns_are_aligned():
    lines = as_lines(rows_of(FOUND, MACHINE))
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("| ---")


def test_results_are_read_as_pytest_benchmark_writes_them(tmp_path):
    one = FOUND[0]
    timed = {"median": one["median_s"], "min": 0.09, "rounds": 5}
    extra = {name: value for name, value in one.items() if name != "median_s"}
    content = {"benchmarks": [{"extra_info": extra, "stats": timed}], "machine_info": {"fastdistill": MACHINE}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    assert load(path) == ([{**one, "min_s": 0.09, "rounds": 5}], MACHINE)


@pytest.mark.parametrize("content", ["", "{}", '{"benchmarks": [{}], "machine_info": {}}'])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"expected results that pytest bench --benchmark-json wrote in .*r\.json"):
        load(path)
