from __future__ import annotations

from pathlib import Path

import pytest

from fastdistill.report.labels import run_labels


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([("a", "/x/a"), ("b", "/x/b")], ["a", "b"]),
        ([("a", "/x/cpu/a"), ("a", "/x/gpu/a"), ("b", "/b")], ["cpu/a", "gpu/a", "b"]),
        ([("a", "/x/1/r/a"), ("a", "/x/2/r/a")], ["1/r/a", "2/r/a"]),
        # the folder has another name than the run that was written there
        ([("a", "/x/a"), ("a", "/x/copy")], ["a", "a (copy)"]),
        ([("a", "/r/a"), ("a", "/a")], ["r/a", "//a"]),
        ([("a", "/x/1/a"), ("a", "/x/2/a"), ("1/a", "/y")], ["a (/x/1/a)", "a (/x/2/a)", "1/a (/y)"]),
    ],
)
def test_runs_of_one_name_are_told_apart_by_the_shortest_path(runs: list[tuple[str, str]], labels: list[str]) -> None:
    found = run_labels([(name, Path(path)) for name, path in runs])
    assert [label.replace("//a", "/a") for label in found] == [label.replace("//a", "/a") for label in labels]
    assert len(set(found)) == len(runs)
