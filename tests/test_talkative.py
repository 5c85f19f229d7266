import io
import re
import time

from rich.console import Console

from fastdistill import talkative


def test_plain_lines_go_to_stderr_when_it_is_not_a_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    talk = talkative.Talkative()
    with talk.stage("distilling", 4) as advance:
        advance(1, "early")  # too soon after the start for a line
        now[0] = 20.0
        advance(2, "loss 1.5")
        advance(4, "done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "distilling: 2/4, 20 s, about 20 s left loss 1.5",
        "distilling: 4/4, 20 s, about 0 s left done",
    ]


def test_a_bar_shows_the_remaining_time_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    talk = talkative.Talkative()
    monkeypatch.setattr(talk, "_console", Console(file=screen, force_terminal=True, width=120))
    with talk.stage("distilling", 40, done=10) as advance:
        for step in range(11, 31):
            advance(step, f"loss {step}")
            time.sleep(0.02)
    shown = screen.getvalue()
    assert "distilling" in shown
    assert "30/40" in shown
    assert "loss 30" in shown
    assert re.search(r"left 0:00:0\d", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))


def test_a_resumed_stage_estimates_from_what_is_new(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    talk = talkative.Talkative()
    with talk.stage("distilling", 100, done=90) as advance:
        now[0] = 30.0
        advance(95, "")
    assert "95/100, 30 s, about 30 s left" in capsys.readouterr().err
