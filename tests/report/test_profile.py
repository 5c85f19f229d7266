import re
from io import BytesIO

import pytest
from matplotlib.figure import Figure
from PIL import Image

from fastdistill.report.profile import (
    best_said,
    phases_table,
    profile_page,
    show_profile,
    size,
    throughput_plot,
    throughput_table,
    write_profile_report,
)


def phase(name, seconds, share, bound="compute"):
    work = {"flops": 2e9, "traffic": 3e6, "launches": 12.0, "dispatches": 20.0, "peak_bytes": 4_000_000}
    return {"name": name, "seconds": seconds, "share": share, **work, "bound": bound, "floor": 0.1, "of_floor": 0.5}


def row(students, rate):
    return {
        "students": students,
        "chunk": students,
        "seconds": students / rate,
        "students_per_s": rate,
        "images_per_s": 100 * rate,
        "predicted_bytes": 500_000_000,
        "measured_bytes": 400_000_000,
        "peak_bytes": 700_000_000,
    }


@pytest.fixture
def profile():
    return {
        "name": "<mine>",
        "config": {
            "ipc": 1,
            "students": 4,
            "runs": 1,
            "data": {"source": "digits"},
            "student": {"architecture": "convnet", "depth": 3, "width": 16},
            "method": {"kind": "matching"},
        },
        "plan": {"device": "cpu", "threads": 2, "dtype": "float32", "tf32": True},
        "environment": {"cpu": "Abacus", "cores": 2},
        "images": "real",
        "experts": "",
        "seconds": 0.2,
        "profiled_seconds": 0.25,
        "flops": 4e9,
        "predicted_flops": 4e9,
        "steps": [{"number": 75, "share": 1.0}],
        "peaks": {"flops": 1e11, "bandwidth": 2e10, "launch": 2e-6},
        "phases": [phase("real gradients", 0.2, 0.8), phase("match", 0.00005, 0.2, "memory")],
        "throughput": {
            "rows": [row(1, 5.0), row(2, 8.0), row(4, 7.0)],
            "best": 2,
            "ended": "at --max_students 4",
            "base_bytes": 300_000_000,
        },
    }


def test_the_page_needs_nothing_but_itself(profile):
    page = profile_page(profile, throughput_plot(profile["throughput"], "x")).decode()
    assert "http" not in re.sub(r"<meta http-equiv", "", page)
    assert "data:image/png;base64," in page
    assert "&lt;mine&gt;" in page and "<mine>" not in page
    ended, base = "The sweep ended at --max_students 4.", "beyond 300 MB, the base"
    wanted = ("real gradients", "80.0 %", "50 µs", "Best: S = 2", "8 students/s", "Abacus, 2 threads", "Step 75")
    for words in (*wanted, ended, base):
        assert words in page, words


def test_on_a_device_the_page_says_what_its_times_are(profile):
    profile["plan"]["device"], profile["environment"]["gpu"] = "cuda", {"name": "Difference Engine"}
    page = profile_page(profile, b"").decode()
    assert (
        "memory.pickle" in page
        and "kernels on the device" in page
        and "a TF32 matrix" in page
        and "Difference Engine" in page
    )
    assert "memory.pickle" not in profile_page({**profile, "plan": {**profile["plan"], "device": "cpu"}}, b"").decode()


def test_the_best_number_of_students_is_named(profile):
    table = throughput_table(profile["throughput"])
    assert [cells[0].text for cells in table.rows] == ["1", "2 (best)", "4"]
    assert table.rows[1][0].look == "strong"
    assert [cell.text for cell in table.rows[0][-4:]] == ["400 MB", "500 MB", "1.25", "700 MB"]
    assert best_said({"rows": [], "best": None, "ended": "at the memory limit: there was no room"}) == (
        "The sweep ended at the memory limit: there was no room."
    )


def test_the_plot_names_the_best(profile, monkeypatch):
    kept, drawn = [], Figure.savefig

    def keep(self, *given, **named):
        kept.append(self)
        drawn(self, *given, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    picture = throughput_plot(profile["throughput"], "x")
    assert Image.open(BytesIO(picture)).size[0] > 1000
    left, right = kept[0].axes
    assert [text.get_text() for text in left.texts] == ["best S = 2: 8 students/s"]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["measured", "predicted"]
    assert throughput_plot({"rows": [], "best": None, "ended": ""}, "x") == b""


def test_one_number_of_students_is_drawn_too(profile):
    only = {"rows": [row(1, 5.0)], "best": 1, "ended": ""}
    assert Image.open(BytesIO(throughput_plot(only, "x")))


def test_phases_are_said_in_units_of_their_size(profile):
    cells = phases_table(profile["phases"]).rows[1]
    assert [cell.text for cell in cells] == [
        "match", "50 µs", "20.0 %", "2.0 GFLOP", "3 MB", "12", "4 MB", "memory", "50.0 %",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 1234, 5e9)] == ["0 B", "999 B", "1.23 kB", "5 GB"]


def test_the_tables_are_printed(profile, tmp_path, capsys):
    show_profile(profile, tmp_path)
    said = capsys.readouterr().out
    wanted = ("real gradients", "2 (best)", "Best: S = 2", "while recorded", "tiny operator", str(tmp_path))
    for words in wanted:
        assert words in said, words


def test_plot_and_page_are_written(profile, tmp_path):
    write_profile_report(tmp_path, profile)
    assert {path.name for path in tmp_path.iterdir()} == {"throughput.png", "report.html"}
