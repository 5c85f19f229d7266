from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from fastdistill.report.overlay import has_accuracy, overlay


def run(length: int, *, scale: float = 1.0, accuracy: bool = True) -> list[dict[str, Any]]:
    lines = [{"step": step, "time_s": scale * step, "outer/loss": 10.0 / step} for step in range(1, length + 1)]
    validated = [
        {"step": s, "time_s": scale * s + 0.5, "validation/acc_mean": 0.1 * s, "validation/acc_std": 0.05}
        for s in range(1, length + 1)
    ]
    return [*lines, *(validated if accuracy else [])]


def drawn(monkeypatch: pytest.MonkeyPatch, runs: Any) -> tuple[Any, bytes]:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    picture = overlay(runs)
    return figures[0], picture


def test_both_metrics_stand_against_step_and_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, picture = drawn(monkeypatch, [("first", run(5)), ("second", run(3, scale=120.0))])
    loss, loss_clock, accuracy, accuracy_clock = figure.axes
    assert Image.open(BytesIO(picture)).format == "PNG"
    assert loss.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5] and loss.lines[1].get_xdata().tolist() == [1, 2, 3]
    assert loss_clock.lines[1].get_xdata().tolist() == [2, 4, 6]  # minutes
    # a bar of an accuracy is two caps beside the line itself
    line = next(line for line in accuracy_clock.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3)
    assert line.get_xdata().tolist() == pytest.approx([120.5 / 60, 240.5 / 60, 360.5 / 60])
    assert line.get_ydata().tolist() == pytest.approx([10, 20, 30])
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "", "validation accuracy (%)", ""]
    assert (accuracy.get_xlabel(), accuracy_clock.get_xlabel()) == ("step", "time of distilling (min)")
    assert accuracy_clock.get_xlim() == pytest.approx((0, 1.02 * 360.5 / 60)) and loss.get_xlim() == (0, 1.02 * 5)
    bars = accuracy.collections[0].get_segments()[0]
    assert bars[:, 1].tolist() == pytest.approx([5, 15])


def test_runs_are_told_apart_by_colour_marker_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = drawn(monkeypatch, [(f"run {index}", run(2, accuracy=False)) for index in range(28)])
    styles = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(styles)) == 28 and len({line.get_marker() for line in figure.axes[0].lines[:7]}) == 7
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"run {index}" for index in range(28)]


def test_what_was_not_measured_has_no_panel_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [("measured", run(4, accuracy=False)), ("nothing", []), ("lost", [{"step": 1, "outer/loss": math.nan}])]
    figure, _ = drawn(monkeypatch, runs)
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["measured"]
    assert not has_accuracy(runs) and has_accuracy([("a", run(1))])
    assert overlay(runs[1:]) == b""


def test_names_are_no_mathematics_and_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["_hidden $x^", "x" * 500, "line\nbreak", "<b>"]
    figure, _ = drawn(monkeypatch, [(name, run(1)) for name in names])
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == 4 and max(map(len, shown)) <= 50 and shown[2] == "line break"


def test_the_judgement_and_missing_clocks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = [*run(3, accuracy=False), {"step": 3, "time_s": 9000.0, "eval/random real/acc_mean": 0.5}]
    figure, _ = drawn(monkeypatch, [("a", judged), ("no clock", [{"step": 2, "outer/loss": 1.0}])])
    assert (
        figure.axes[1].get_xlim() == pytest.approx((0, 1.02 * 3))
        and figure.axes[1].get_xlabel() == "time of distilling (s)"
    )
