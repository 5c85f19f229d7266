from pathlib import Path

import pytest
import torch

from bench.worker import Worker, ask, peak_bytes, start

ROOT = Path(__file__).parent.parent.parent
NAME = "references/match-mse-digits/functional/S16"


def test_a_case_is_made_then_timed():
    worker = Worker(torch.device("cpu"))
    assert worker.answer({"make": NAME})["seconds"] > 0
    assert worker.answer({"time": NAME})["seconds"] > 0
    with pytest.raises(AssertionError, match="make a case before it is timed"):
        worker.answer({"time": "references/match-mse-digits/naive/S1"})
    assert worker.answer({"make": "nothing"}) == {"missing": "nothing"}


def test_a_process_answers_line_by_line_and_says_when_it_dies():
    with start(ROOT, device="cpu", threads=1) as process:
        assert ask(process, "make", NAME)["seconds"] > 0
        assert ask(process, "make", "nothing") == {"missing": "nothing"}
        process.kill()
        with pytest.raises(RuntimeError, match="expected an answer to time of references"):
            ask(process, "time", NAME)


def test_peak_memory_is_that_of_the_step():
    """Two tensors of 16 students x 10 classes x P floats come out, and as much again lives meanwhile."""
    found = {
        students: peak_bytes(f"references/match-mse-mnist/functional/S{students}", root=ROOT, device="cpu", threads=1)
        for students in (1, 4)
    }
    assert found[1] > 4 * 10 * 300_000  # the cotangent alone
    assert 2 < found[4] / found[1] < 6
