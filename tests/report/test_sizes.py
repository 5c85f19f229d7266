from __future__ import annotations

from io import BytesIO
from typing import Any

import matplotlib.figure
import pytest
from PIL import Image

from fastdistill.report.sizes import size_plot

POINTS = [
    ("matching", 64, 0.9, 0.01),
    ("matching", 16, 0.8, 0.02),
    ("matching", None, 0.7, 0.0),
    ("unrolled", 16, 0.6, 0.0),
    ("distribution", None, 0.5, 0.0),
]


def test_every_method_is_a_line_over_its_widths_and_pixels_are_level(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure: matplotlib.figure.Figure, *words: Any, **named: Any) -> None:
        drawn.append(figure)
        save(figure, *words, **named)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    picture = size_plot(POINTS, [("random real", 0.4)], title="accuracy (%)")
    assert Image.open(BytesIO(picture)).size == (960, 600)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labels == {"matching, generator", "unrolled, generator", "matching, pixels", "random real"}
    assert list(lines["matching, pixels"].get_ydata()) == pytest.approx([70, 70])
    assert list(lines["random real"].get_ydata()) == pytest.approx([40, 40])
    curve = axes.containers[0].lines[0]
    assert list(curve.get_xdata()) == [16, 64]
    assert list(curve.get_ydata()) == pytest.approx([80, 90])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "64"]
    assert axes.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize("points", [POINTS[1:], POINTS[2:3], []])
def test_one_width_is_no_plot(points: list[tuple[str, int | None, float, float]]) -> None:
    assert size_plot(points, [], title="accuracy") == b""
