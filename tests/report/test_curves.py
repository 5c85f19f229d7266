from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdistill.report.curves import save_curves


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


FULL = [
    {"step": step, "time_s": 0.5 * step, "outer/loss": 100 / step, "outer/loss_std": 1.0}
    | ({"validation/acc_mean": 0.5, "validation/acc_std": 0.1} if step % 100 == 0 else {})
    for step in range(10, 501, 10)
]


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        FULL,
        FULL[:1],
        [{"step": 1, "outer/loss": 2.0}],
        [{"step": 1, "outer/loss": -1.0, "outer/loss_std": 0.1}, {"step": 2, "outer/loss": 1.0}],
        [{"step": 1, "outer/loss": math.nan, "outer/loss_std": math.nan}],
        [{"step": 1, "outer/loss": math.inf, "time_s": 0.0}, {"step": 2, "outer/loss": 3.0, "outer/loss_std": 9.0}],
        [{"step": 0, "validation/acc_mean": 0.1}],
    ],
    ids=["none", "full", "one", "no-spread", "negative", "nan", "infinite", "step-0"],
)
def test_curves_are_drawn_from_whatever_was_measured(tmp_path: Path, metrics: list[dict[str, Any]]) -> None:
    save_curves(tmp_path / "curves.png", metrics, "a $run^ with {signs} <b>")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len(np.unique(pixels(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_curves_show_loss_on_a_logarithmic_axis_accuracy_and_both_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (drawn.append(self), save(self, *args, **more)))
    save_curves(tmp_path / "curves.png", FULL, "name")
    loss, accuracy, above, _ = drawn[0].axes
    assert drawn[0].get_suptitle() == "name"
    assert loss.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    assert loss.lines[0].get_xdata().tolist() == list(range(10, 501, 10))
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([100 / step for step in range(10, 501, 10)])
    # a deviation above the loss is cut short of zero, where a logarithmic axis ends
    band = loss.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.05 * 0.2, 11.0))
    line = next(line for line in accuracy.lines if len(line.get_xdata()) == 5 and line.get_linestyle() == "-")
    assert line.get_ydata().tolist() == [50.0] * 5
    assert above.get_xlabel() == "time of distilling (min)"
    assert dict(zip(above.get_xticks(), (t.get_text() for t in above.get_xticklabels()), strict=True))[240] == "2"


def drawn_by(path: Path, monkeypatch: pytest.MonkeyPatch, *args: Any, **more: Any) -> Any:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    save_curves(path, *args, **more)
    return drawn[0]


def test_test_accuracies_are_level_lines_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [
        {"arm": "distilled (last)", "mean": 0.9},
        {"arm": "distilled (best on validation)", "mean": 0.9},
        {"arm": "random real", "mean": 0.625},
        {"arm": "whole $x^$", "mean": math.nan},
    ]
    accuracy = drawn_by(tmp_path / "curves.png", monkeypatch, FULL, "name", arms=arms).axes[1]
    level = [list(line.get_ydata()) for line in accuracy.lines if list(line.get_xdata()) == [0, 1]]
    assert level == [[90.0, 90.0], [62.5, 62.5]]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "validation",
        "test, distilled (last): 90.0",
        "test, random real: 62.5",
    ]
    assert accuracy.get_ylabel() == "accuracy (%)"


def test_the_judgement_does_not_stretch_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = [*FULL, {"step": 500, "time_s": 9000.0, "eval/random real/acc_mean": 0.5}]
    figure = drawn_by(tmp_path / "curves.png", monkeypatch, judged, "name")
    assert figure.axes[2].get_xlabel() == "time of distilling (min)"


def test_the_clock_stands_at_the_steps_that_were_reached_at_round_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = [{"step": step, "time_s": float(step**2), "outer/loss": 1.0} for step in range(13)]
    above = drawn_by(tmp_path / "curves.png", monkeypatch, metrics, "name").axes[2]
    labels = [text.get_text() for text in above.get_xticklabels()]
    assert labels == ["0", "20", "40", "60", "80", "100", "120", "140"]
    assert above.get_xticks()[5] == pytest.approx(10.0)
