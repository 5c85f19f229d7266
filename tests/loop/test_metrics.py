import json

from fastdistill.loop.metrics import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write(1, 0.12345, {"outer/loss": 2.0})
    log.write(2, 1.0, {"outer/loss": 4.0, "perf/step_s": 0.1})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "time_s": 0.123, "outer/loss": 2.0},
        {"step": 2, "time_s": 1.0, "outer/loss": 4.0, "perf/step_s": 0.1},
    ]
    assert log.median("outer/loss") == 3.0


def test_resuming_drops_what_comes_after_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 3, "a": 9.0}\n{"step": 2, "a": 3.0}\n{"step": 2, "a')
    log = MetricsLog(path, 2)
    assert lines(path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 3.0}]
    assert log.median("a") == 2.0
