from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdistill.report.board import Board, open_board

ROOT = Path(__file__).parents[2]


def read_back(folder: Path):  # type: ignore[no-untyped-def]
    """TensorBoard's own reading of a run's event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    events = accumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_back(folder).Scalars(name)]


def opened(folder: Path, step: int) -> Board:
    pytest.importorskip("tensorboard")
    board = open_board(folder, step)
    assert board is not None
    return board


def test_values_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    board = opened(tmp_path, 0)
    board.write(1, {"outer/loss": 2.5, "perf/step_s": 0.25})
    board.write(2, {"outer/loss": 1.5})
    board.write(3, {"outer/loss": math.nan})
    board.close()
    assert points(tmp_path, "outer/loss")[:2] == [(1, 2.5), (2, 1.5)]
    assert math.isnan(points(tmp_path, "outer/loss")[2][1])
    assert points(tmp_path, "perf/step_s") == [(1, 0.25)]


def test_pictures_are_read_back_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    board = opened(tmp_path, 0)
    board.picture(4, "images", Image.fromarray(pixels))
    board.close()
    (event,) = read_back(tmp_path).Images("images")
    assert event.step == 4
    assert (np.asarray(Image.open(BytesIO(event.encoded_image_string))) == pixels).all()


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    first = opened(tmp_path, 0)
    for step in (1, 2, 3, 4):
        first.write(step, {"outer/loss": float(step)})
    second = opened(tmp_path, 2)  # the first was killed, and the last checkpoint is of step 2
    for step in (3, 4, 5):
        second.write(step, {"outer/loss": 10.0 * step})
    second.close()
    assert points(tmp_path, "outer/loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    first.close()


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fastdistill.report.board import open_board\n"
        "board = open_board(Path(sys.argv[1]), 0)\n"
        "for step in range(1, 26): board.write(step, {'a': step, 'b': -step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert points(tmp_path, "a") == [(step, float(step)) for step in range(1, 26)]
    assert points(tmp_path, "b")[-1] == (25, -25.0)


def test_without_tensorboard_there_is_no_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert open_board(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert open_board(tmp_path, 0) is None
    assert "TensorBoard is installed but cannot be used" in caplog.text


def test_trouble_of_its_files_never_reaches_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        calls = 0

        def add_scalar(self, *_: object) -> None:
            Full.calls += 1
            raise OSError(28, "No space left on device")

    board = Board(Full())  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        board.write(1, {"a": 1.0, "b": 2.0})
        board.write(2, {"a": 1.0})
        board.picture(2, "images", Image.new("L", (1, 1)))
        board.close()
    assert Full.calls == 1
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_importing_the_board_imports_neither_tensorboard_nor_torch() -> None:
    code = "import sys, fastdistill.report.board; print(sorted({'torch', 'tensorboard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
