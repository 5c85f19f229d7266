import gzip
import json

import pytest

from fastdistill import phases
from fastdistill.loop import profile as module
from fastdistill.loop.peaks import Peaks
from fastdistill.loop.phase_times import STEP
from fastdistill.loop.profile import profile
from fastdistill.options import parse_profile

SMALL = ["--student.width=4", "--student.depth=1", "--device=cpu", "--max_students=2", "--random_images=true"]


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    monkeypatch.setattr(module, "measure_peaks", lambda *given, **named: Peaks(flops=1e11, bandwidth=1e10, launch=1e-6))


def configured(tmp_path, *words, preset="dc/digits-1"):
    return parse_profile([preset, *SMALL, f"--output={tmp_path}", *words])


def test_a_profile_leaves_figures_a_trace_a_plot_and_a_page(tmp_path):
    config = configured(tmp_path, "--method.real_batch=8")
    found = profile(config)
    files = {path.name for path in config.folder.iterdir()}
    assert files == {"profile.json", "trace.json.gz", "throughput.png", "report.html"}
    assert json.loads((config.folder / "profile.json").read_bytes()) == json.loads(json.dumps(found))
    assert found["config"]["student"]["width"] == 4 and "torch" in found["environment"]["packages"]
    assert sum(phase["share"] for phase in found["phases"]) == pytest.approx(1)
    assert found["flops"] == found["predicted_flops"] == sum(phase["flops"] for phase in found["phases"])
    assert found["seconds"] > 0 and found["profiled_seconds"] > 0
    rows = found["throughput"]["rows"]
    assert [row["students"] for row in rows] == [1, 2]
    assert found["throughput"]["best"] in (1, 2)
    assert all(row["peak_bytes"] == found["throughput"]["base_bytes"] + row["measured_bytes"] for row in rows)
    # without the process, which is most of what is held in all; nothing here takes more than libraries do
    assert all(0 < row["predicted_bytes"] < 10**8 < found["throughput"]["base_bytes"] for row in rows)
    events = json.loads(gzip.decompress((config.folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {STEP, phases.MATCH, phases.SECOND_ORDER} <= {event.get("name") for event in events}


def test_trajectory_matching_needs_experts_or_random_ones(tmp_path):
    words = ["--method.inner_steps=2", "--max_students=1", "--students=1"]
    found = profile(configured(tmp_path, *words, preset="mtt/digits-1-cpu"))
    assert found["experts"] == "random weights"
    with pytest.raises(ValueError, match=r"fastdistill experts.*--random_images true"):
        profile(configured(tmp_path, *words, "--random_images=false", "--name=real", preset="mtt/digits-1-cpu"))
    assert not (tmp_path / "real").exists()


def test_another_folder_is_left_alone(tmp_path):
    config = configured(tmp_path)
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text("a run's")
    with pytest.raises(ValueError, match=r"expected .* to hold a profile or nothing, got config.yaml"):
        profile(config)


def test_an_earlier_profile_is_replaced(tmp_path):
    config = configured(tmp_path, "--max_students=1")
    config.folder.mkdir()
    for name in ("profile.json", "report.html"):
        (config.folder / name).write_text("old")
    found = profile(config)
    assert json.loads((config.folder / "profile.json").read_bytes())["seconds"] == found["seconds"]


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "breakdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(configured(tmp_path, "--max_students=1"))
    assert not list(tmp_path.iterdir())
