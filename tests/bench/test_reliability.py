"""The figures of reliability that hold on any quiet machine, by the best of a few repeats."""

import json
import sys

from bench.reliability import main, save_seconds, start_seconds


def test_saving_12_mb_takes_at_most_50_ms(tmp_path):
    assert min(save_seconds(tmp_path, 10)) < 0.05


def test_help_takes_at_most_300_ms_and_the_import_200_ms():
    assert min(start_seconds(["-m", "fastdistill", "--help"], 5)) < 0.3
    assert min(start_seconds(["-m", "fastdistill", "run", "--help"], 5)) < 0.3
    bare = min(start_seconds(["-c", ""], 5))
    assert min(start_seconds(["-c", "import fastdistill"], 5)) - bare < 0.2


def test_the_guard_takes_at_most_1_percent_of_a_step(tmp_path, monkeypatch):
    file = tmp_path / "reliability.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--repeats", "3", "--out", str(file)])
    main()
    rows = json.loads(file.read_text())["rows"]
    shares = [row["share_of_step"] for row in rows if row["what"].startswith("guard")]
    assert len(shares) == 3
    assert max(shares) <= 0.01
