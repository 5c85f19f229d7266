"""The page of performance follows from the committed results and says what was found, or that nothing was measured."""

import json

import pytest

from docs import make_performance
from docs.make_performance import is_drawn, main, make_page
from docs.measurements import _COMMITS, read_machine
from docs.performance_plots import plots_of

ENVIRONMENT = {
    "cpu": "a CPU",
    "threads": 2,
    "packages": {"torch": "2.13.0"},
    "git_commit": "0123456789abcdef-dirty",
}
PEAKS = {"copy_bytes_per_s": 10e9, "launch_s": 1e-5, "matmul_float32_flops_per_s": 100e9}


def case(name, seconds, *, flops=0, traffic=1e6, launches=1, held=10_000_000, **further):
    """What pytest-benchmark keeps of a case, as far as the page reads it."""
    engine, _, precision = name.split("/")[2].partition("-")
    counters = {"flops": flops, "dispatches": 5, "launches": launches, "traffic": traffic, "peak_bytes": held}
    info = {
        "case": name,
        "engine": engine,
        "precision": precision or "float32",
        "students": int(name.rpartition("S")[2]),
        "images": 10,
        "counters": counters | {"graphs": 0, "breaks": 0, "recompiles": 0},
        "first_s": 7.5,
        **further,
    }
    return {"extra_info": info, "stats": {"median": seconds, "min": seconds, "rounds": 3}}


STEPS = [
    case("matching/dc-digits/naive/S1", 0.1, flops=1e9, traffic=1e8, launches=2000),
    case("matching/dc-digits/functional/S1", 0.2, flops=1e9, traffic=1.9e9, speedup=0.5, held=40_000_000),
    case("matching/dc-digits/functional/S16", 0.16, flops=15e9, traffic=1e8, speedup=10.5, held=80_000_000),
    case("matching/dc-digits/compiled/S16", 0.32, flops=16e9, traffic=1e12, speedup=5.0, held=80_000_000),
    case("references/match-ours-digits/naive/S1", 0.01),
    case("references/match-ours-digits/functional/S4", 0.02, speedup=2.0),
]


def write_steps(path, found, *, peaks=PEAKS, **environment):
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"device": "any", "environment": ENVIRONMENT | environment, "threads": 3, "peaks": peaks}
    path.write_text(json.dumps({"benchmarks": found, "machine_info": {"fastdistill": machine}}))


def training_file(path):
    memory = [
        {"method": "mtt", "program": "engine", "steps": steps, "peak": peak * 1e6, "stored": steps * 1e6}
        for steps, peak in ((5, 100), (10, 105), (20, 115), (50, 145))
    ]
    memory += [
        {"method": "mtt", "program": "textbook", "steps": steps, "peak": peak * 1e6}
        for steps, peak in ((5, 600), (10, 1100))
    ]
    times = {"method": "mtt", "steps": 10, "seconds": {"textbook": 4.0, "engine": 2.5}}
    times["times_faster"] = {"textbook": 1.0, "engine": 1.62}
    content = {
        "workload": {"width": 64, "depth": 2, "side": 16, "per_class": 5, "classes": 100},
        "memory": {"rows": memory, "environment": ENVIRONMENT},
        "time": {"rows": [times], "environment": ENVIRONMENT | {"git_commit": "fedcba9876"}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tables(page):
    """Rows of all tables by their first cells, as lists of cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    found = {}
    for row in rows:
        found.setdefault(tuple(row[:3]), []).append(row[3:])
    return found


def goal(page, start):
    """What was found and whether it is reached, by the beginning of the goal and its machine."""
    return next(cells for (what, *_), (cells, *_) in tables(page).items() if what.startswith(start))


def test_the_committed_page_follows_from_the_committed_results():
    main(["--check"])


def test_every_figure_of_the_page_is_there_and_no_other():
    page = make_performance.PAGE.read_text(encoding="utf-8")
    for path in make_performance.FIGURES.glob("performance-*.png"):
        assert f"](figures/{path.name})" in page
    for name in page.split("](figures/")[1:]:
        assert (make_performance.FIGURES / name.partition(")")[0]).is_file()


def test_files_without_a_commit_are_labelled_with_the_one_that_the_readme_of_the_results_names():
    readme = (make_performance.RESULTS / "README.md").read_text(encoding="utf-8")
    assert all(commit in readme for commit in _COMMITS.values())
    machine = read_machine(make_performance.RESULTS / "h200")
    assert [source.commit for source in machine.sources if source.name == "h200/step.json"] == ["029fc05"]


def test_a_page_or_a_plot_that_is_out_of_date_exits_with_1(monkeypatch, tmp_path):
    monkeypatch.setattr(make_performance, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_performance, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(make_performance, "FIGURES", tmp_path / "figures")
    training_file(tmp_path / "results" / "cpu" / "unrolled.json")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "performance-old.png").write_bytes(b"old")
    (tmp_path / "figures" / "other.png").write_bytes(b"of another page")
    with pytest.raises(SystemExit) as missing:
        main(["--check"])
    assert "run python -m docs.make_performance" in missing.value.code
    main([])
    main(["--check"])
    figure = tmp_path / "figures" / "performance-cpu-unrolled.png"
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["other.png", figure.name]
    figure.write_bytes(make_performance.plots_of(read_machine(tmp_path / "results" / "cpu"))["unrolled"].png())
    main(["--check"])
    figure.unlink()
    with pytest.raises(SystemExit):
        main(["--check"])


def test_what_was_not_measured_says_so(tmp_path):
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    (tmp_path / "results" / "a-gpu").mkdir()
    page, plots = make_page(tmp_path / "results", tmp_path)
    assert plots == []
    assert "![" not in page
    for name in ("cpu", "a-gpu"):
        rest = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        # speed-up, memory, bounds, cases, prediction, a timed run
        assert rest.count("Not measured.") == rest.count("\n### ") == 6
    assert all(cells == ["not measured", ""] for (_, _, _), [cells] in goals_of(page))


def goals_of(page):
    head, *rows = [line for line in page.partition("## How")[0].splitlines() if line.startswith("|")]
    assert "| goal | found | reached |" in head
    split = [[cell.strip() for cell in line[1:-1].split("|")] for line in rows[1:]]
    return [((row[0], row[1], row[2]), [row[3:]]) for row in split]


def test_a_compiled_dual_case_is_shown_as_compiled_code(tmp_path):
    name = "matching/dc-digits/dual-compiled/S16"
    dual = case("matching/dc-digits/dual/S16", 0.1, flops=15e9, traffic=1e8, speedup=16.0, held=80_000_000)
    compiled = case(
        name, 0.08, flops=15e9, traffic=1e12, speedup=20.0, engine="dual-compiled", precision="float32", first_s=40
    )
    write_steps(tmp_path / "results" / "cpu" / "bench.json", [*STEPS, dual, compiled])
    page, plots = make_page(tmp_path / "results", tmp_path / "docs")
    found = tables(page)
    assert found["dc-digits", "dual", "16"] == [["100 ms", "16.00", "160", "150 (150 %)", "1 (10 %)", "80 MB (0.5×)"]]
    assert found["dc-digits", "dual-compiled", "16"] == [["80 ms", "20.00", "200", "188 (188 %)", "", ""]]
    assert "matching/dc-digits, dual-compiled, at S = 16 40 s." in page.replace("\n", " ")
    drawn = {plot.name: plot for plot in plots}
    assert "dual-compiled" not in {step.engine for step in drawn["performance-cpu-roofline.png"].figures}
    (axes, _) = (speedups := drawn["performance-cpu-students.png"]).draw(speedups.figures).axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["matching/dc-digits", "compiled", "dual", "dual-compiled"]


def test_every_case_has_its_figures(tmp_path):
    write_steps(tmp_path / "results" / "cpu" / "bench.json", STEPS)
    page, plots = make_page(tmp_path / "results", tmp_path / "docs")
    found = tables(page)
    # step, times the textbook, students/s, GFLOP/s (of 100), GB/s (of 10), memory (per student, over the textbook's)
    cells = ["160 ms", "10.50", "100", "93.8 (94 %)", "0.62 (6 %)", "80 MB (0.5×)"]
    assert found["dc-digits", "functional", "16"] == [cells]
    assert found["dc-digits", "textbook", "1"] == [["100 ms", "", "10", "10 (10 %)", "1 (10 %)", "10 MB"]]
    # what a compiled step moves and holds is not known
    assert found["dc-digits", "compiled", "16"] == [["320 ms", "5.00", "50", "50 (50 %)", "", ""]]
    assert "matching/dc-digits, compiled, at S = 16 7.5 s." in page.replace("\n", " ")
    # no operations, so no column of them
    assert found["match-ours-digits", "functional", "4"] == [["20 ms", "2.00", "200", "0.05 (0 %)", "10 MB (0.25×)"]]
    assert "[cpu/bench.json](../results/cpu/bench.json)" in page
    assert found["[cpu/bench.json](../results/cpu/bench.json)", "a CPU", "3"] == [
        ["2.13.0", "`0123456-dirty`", "float32 100.0 GFLOP/s", "10 GB/s", "10 µs"]
    ]
    assert [plot.name for plot in plots] == ["performance-cpu-students.png", "performance-cpu-roofline.png"]
    assert goal(page, "DC step per student, digits") == ["10.50× (functional, S = 16)", "yes"]
    assert goal(page, "DC step per student, MNIST") == ["not measured", ""]
    assert "Slower than the textbook are 1 of 1 cases with one student; at its fastest no workload." in page


def test_the_largest_floor_is_named_with_what_it_explains(tmp_path):
    write_steps(tmp_path / "results" / "cpu" / "bench.json", STEPS)
    page, _ = make_page(tmp_path / "results", tmp_path)
    found = tables(page)
    workload = "matching/dc-digits"
    # 1 GFLOP at 100 GFLOP/s, 0.1 GB at 10 GB/s, 2000 operators of 10 µs
    assert found[workload, "textbook", "1"] == [["100 ms", "10 ms", "10 ms", "20 ms", "overhead", "20 %"]]
    assert found[workload, "functional", "1"] == [["200 ms", "10 ms", "190 ms", "0.01 ms", "memory", "95 %"]]
    assert found[workload, "functional", "16"] == [["160 ms", "150 ms", "10 ms", "0.01 ms", "compute", "94 %"]]
    assert (
        "operations explain most of the time of 1 (`matching/dc-digits`); no floor explains half of the time of 1"
        in page
    )


def test_a_gpu_has_rows_for_every_precision_and_draws_tf32(tmp_path):
    peaks = PEAKS | {"matmul_tf32_flops_per_s": 400e9, "matmul_bf16_flops_per_s": 800e9}
    found = [
        case("matching/dc-mnist/naive/S1", 0.1, flops=1e9, peak_memory=100_000_000),
        case("matching/dc-mnist/naive-tf32/S1", 0.05, flops=1e9, peak_memory=100_000_000),
        case("matching/dc-mnist/naive-bf16/S1", 0.05, flops=1e9, peak_memory=50_000_000),
        case("matching/dc-mnist/functional/S16", 0.2, flops=16e9, speedup=8.0, peak_memory=400_000_000),
    ]
    more = [
        case("matching/dc-mnist/functional-tf32/S16", 0.1, flops=16e9, speedup=12.0, peak_memory=400_000_000),
    ]
    folder = tmp_path / "results" / "h200"
    for name, cases in (("steps", found), ("steps-more", more)):
        write_steps(folder / f"{name}.json", cases, peaks=peaks, gpu={"name": "a GPU"})
    page, _ = make_page(tmp_path / "results", tmp_path)
    rows = tables(page)
    # its textbook is in another file, so there is nothing to hold its memory against
    assert rows["dc-mnist", "functional, tf32", "16"] == [
        ["100 ms", "12.00", "160", "160 (40 %)", "0.01 (0 %)", "400 MB"]
    ]
    assert rows["dc-mnist", "textbook, bf16", "1"] == [["50 ms", "", "20", "20 (2 %)", "0.02 (0 %)", "50 MB"]]
    assert rows["dc-mnist", "functional", "16"][0][-1] == "400 MB (0.25×)"
    assert goal(page, "DC step per student, MNIST, S = 16") == ["12.00× (functional, tf32, S = 16)", "yes"]
    assert goal(page, "the same, once the first block") == ["12.00× (functional, tf32, S = 16)", "no"]
    machine = read_machine(folder)
    assert {step.precision for step in plots_of(machine)["students"].figures} == {"tf32"}
    assert machine.hardware == "a GPU"


def test_memory_against_steps_with_the_textbook_drawn_out(tmp_path):
    training_file(tmp_path / "results" / "cpu" / "unrolled.json")
    page, (plot,) = make_page(tmp_path / "results", tmp_path)
    found = tables(page)
    assert found["T", "5", "10"] == [["20", "50"]]
    assert found["textbook, MB", "600", "1100"] == [["", ""]]
    assert found["textbook, extrapolated", "", ""] == [["2100", "5100"]]
    assert found["textbook / engine", "6.0×", "10.5×"] == [["18.3×", "35.2×"]]
    assert "ConvNet-2-64 on\n500 images of\n16×16" in page
    assert "Time at T = 10: textbook 4.0 s, engine 2.5 s (1.62×)." in page
    assert goal(page, "gradient through 50 steps") == ["35.17× (mtt)", "yes"]
    assert goal(page, "gradient through 10 such steps") == ["1.62× (mtt)", "yes"]
    assert plot.name == "performance-cpu-unrolled.png"
    assert "`fedcba9`" in page and "`0123456-dirty`" in page


def test_predicted_memory_earlier_steps_and_a_real_run(tmp_path):
    folder = tmp_path / "results" / "h200"
    folder.mkdir(parents=True)
    rows = [
        {
            "preset": "a",
            "threads": 2,
            "predicted": {"distilling": 90, "peak": 100},
            "measured": {"distilling": 100, "peak": 80},
        },
        {
            "preset": "b",
            "threads": 2,
            "predicted": {"distilling": 11, "peak": 10},
            "measured": {"distilling": 10, "peak": 10},
        },
        {"preset": "c", "threads": 2, "predicted": {"distilling": 11, "peak": 10}},
    ]
    (folder / "memory.json").write_text(json.dumps({"environment": ENVIRONMENT, "rows": rows}))
    step = {"workload": "mnist-1", "naive_s": 0.5, "S=16": {"times_faster_per_student": 3.456}}
    (folder / "step.json").write_text(json.dumps({"environment": ENVIRONMENT | {"git_commit": "HEAD"}, "rows": [step]}))
    tests = [
        {"seconds": 1.0, "step": 10, "accuracy_mean": 0.9, "accuracy_std": 0.02},
        {"seconds": 2.0, "step": 20, "accuracy_mean": 0.92, "accuracy_std": 0.01},
    ]
    real = {
        "benchmark": "a run",
        "environment": ENVIRONMENT,
        "rows": tests,
        "goal": 0.917,
        "reached_s": 2.0,
        "students": 20,
    }
    (folder / "real.json").write_text(json.dumps(real))
    page, (plot,) = make_page(tmp_path / "results", tmp_path)
    found = tables(page)
    assert found["distilling", "2", "0.90"] == [["1.00", "1.10"]]
    assert found["the whole run", "2", "1.00"] == [["1.12", "1.25"]]
    assert "not measured: c." in page
    assert found["mnist-1", "500 ms", "3.46×"] == [[]]
    assert "a run, 20 students: 91.7 % after 2.0 s of distilling; the best of 2 tests was 92.0 ± 1.0 %" in page
    assert goal(page, "DC step per student, MNIST, S = 16") == ["3.46× (S = 16, commit 029fc05)", "no"]
    assert plot.name == "performance-h200-real.png"
    assert goal(page, "MNIST, 10 images, to 91.7 %") == ["2.0 s", "yes"]

    (folder / "real.json").write_text(json.dumps(real | {"reached_s": None}))
    page, _ = make_page(tmp_path / "results", tmp_path)
    assert "20 students: 91.7 % not reached; the best of 2" in page
    assert goal(page, "MNIST, 10 images, to 91.7 %") == ["never", "no"]


def test_a_plot_is_the_same_bytes_for_the_same_figures_and_knows_them(tmp_path):
    results = tmp_path / "results" / "cpu"
    write_steps(results / "bench.json", STEPS)
    training_file(results / "unrolled.json")
    plots = plots_of(read_machine(results))
    assert set(plots) == {"students", "roofline", "unrolled"}
    for plot in plots.values():
        picture = plot.png()
        assert picture == plot.png()
        (tmp_path / plot.name).write_bytes(picture)
        assert is_drawn(plot, tmp_path)
        assert b"tEXtSoftware" not in picture
    STEPS[2]["stats"], before = {"median": 0.17, "min": 0.17, "rounds": 3}, STEPS[2]["stats"]
    try:
        write_steps(results / "bench.json", STEPS)
    finally:
        STEPS[2]["stats"] = before
    changed = plots_of(read_machine(results))
    assert not is_drawn(changed["roofline"], tmp_path)
    assert is_drawn(changed["unrolled"], tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "unrolled.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected results with their environment in .*unrolled\.json"):
        read_machine(folder)
    (folder / "bench.json").write_text("{}")
    with pytest.raises(ValueError, match="pytest bench --benchmark-json"):
        read_machine(folder)
