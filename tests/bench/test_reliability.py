"""The figures of reliability that hold on any quiet machine, by the best of a few repeats."""

import json
import sys

import torch

from bench.reliability import guarding, main, save_seconds, start_seconds


def test_saving_12_mb_takes_at_most_50_ms(tmp_path):
    assert min(save_seconds(tmp_path, 10)) < 0.05


def test_help_takes_at_most_300_ms_and_the_import_200_ms():
    assert min(start_seconds(["-m", "fastdistill", "--help"], 5)) < 0.3
    assert min(start_seconds(["-m", "fastdistill", "run", "--help"], 5)) < 0.3
    bare = min(start_seconds(["-c", ""], 5))
    assert min(start_seconds(["-c", "import fastdistill"], 5)) - bare < 0.2


def test_the_guard_runs_alone():
    guarding(3, torch.zeros(1, 2, 1, 1, 4, 4))()


def test_the_script_writes_its_rows(tmp_path, monkeypatch):
    file = tmp_path / "reliability.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--repeats", "1", "--out", str(file)])
    main()
    rows = json.loads(file.read_text())["rows"]
    assert [row["what"].split(",")[0] for row in rows[:4]] == ["save 12 MB durably", "guard", "guard", "guard"]
