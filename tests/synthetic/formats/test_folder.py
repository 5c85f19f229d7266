import json
import os

import pytest

from fastdistill.synthetic.formats import folder as folder_module
from fastdistill.synthetic.formats import png
from fastdistill.synthetic.formats.folder import (
    DESCRIPTION_FILE,
    read_beside,
    read_bounded,
    read_target,
    whole_folder,
    write_beside,
)


def test_a_folder_appears_whole(tmp_path):
    with whole_folder(tmp_path / "a" / "out") as temporary:
        (temporary / "x").mkdir()
        (temporary / "x" / "y").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "x" / "y").read_text() == "1"
    assert os.listdir(tmp_path / "a") == ["out"]


def test_what_exists_is_never_written_over(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "empty", "link"):
        with (
            pytest.raises(ValueError, match="got something there: remove it or name another"),
            whole_folder(tmp_path / name),
        ):
            raise AssertionError("must not be entered")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"]


def test_the_leftover_of_a_killed_export_does_not_matter(tmp_path):
    own, others = (tmp_path / f".out.{process}.tmp" for process in (os.getpid(), 1))
    for place in (own, others):
        place.mkdir()
        (place / "old").write_text("1")
    with whole_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("2")
    assert os.listdir(tmp_path / "out") == ["new"]
    assert sorted(os.listdir(tmp_path)) == [".out.1.tmp", "out"]


def test_two_exports_to_one_target_do_not_meet(tmp_path, monkeypatch):
    with (
        pytest.raises(ValueError, match="got something there: remove it or name another"),
        whole_folder(tmp_path / "out") as late,
    ):
        (late / "x").write_text("late")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with whole_folder(tmp_path / "out") as early:
            (early / "x").write_text("early")
    assert (tmp_path / "out" / "x").read_text() == "early"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "empty"])
def test_a_target_that_appears_meanwhile_is_kept(tmp_path, kind):
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="got something there"), whole_folder(target) as temporary:
        (temporary / "x").write_text("1")
        target.write_text("theirs") if kind == "file" else target.mkdir()
    assert target.read_text() == "theirs" if kind == "file" else os.listdir(target) == []
    assert os.listdir(tmp_path) == ["out"]


def test_every_failing_write_leaves_nothing(build, tmp_path, monkeypatch):
    distilled = build(channels=1)
    real = os.fsync
    count = {"calls": 0, "fail": 10**9}

    def fsync(descriptor):
        count["calls"] += 1
        if count["calls"] == count["fail"]:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_folder(tmp_path / "whole") as temporary:
        png.write(distilled, temporary, "card")
    before = count["calls"]
    assert before > 20
    for fail in range(1, before):  # the last one, of the parent, comes after the rename
        count.update(calls=0, fail=fail)
        with pytest.raises(OSError, match="No space left") as caught, whole_folder(tmp_path / "out") as temporary:
            png.write(distilled, temporary, "card")
        assert caught.value.filename
        assert os.listdir(tmp_path) == ["whole"]


def test_what_stands_beside_the_images_comes_back(kind, tmp_path):
    write_beside(kind, tmp_path, "png", "card")
    found = read_beside(tmp_path)
    assert found.shape == tuple(kind.images.shape)
    assert found.target == read_target(tmp_path) == "png"
    assert found.fields["class_names"] == kind.class_names
    assert (found.soft is not None) == kind.soft
    if found.soft:
        assert (found.soft.dtype, found.soft.own) == (kind.labels.dtype, kind.labels.ndim == 3)
    assert (tmp_path / "README.md").read_text() == "card"


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 2, 3, 4]},
        {"shape": [1, 2, 3, 4, 5, 6]},
        {"shape": [1, 18, 3, 4, True]},
        {"shape": [1, 18, 3, -4, -5]},
        {"shape": [1, 0, 3, 4, 5]},
        {"shape": [2, 10**9, 3, 4, 5]},
        {"shape": [1, 18, 3, 4, 5.0]},
        {"shape": None},
        {"format": "fastdistill-9"},
        {"target": 3},
        {"mean": ["x"]},
        {"class_names": [1]},
        {"pixel_range": [0]},
        {"details": {"a": 1}},
        {"soft_labels": None},
        {"soft_labels": {"dtype": "int64", "own": True}},
        {"soft_labels": {"dtype": "float32", "own": 1}},
        {"soft_labels": {"own": True}},
        None,
        [1],
    ],
)
def test_odd_descriptions_are_damaged_exports(build, tmp_path, changes):
    write_beside(build(), tmp_path, "png", "card")
    file = tmp_path / DESCRIPTION_FILE
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | changes if isinstance(changes, dict) else changes))
    with pytest.raises(ValueError, match="that is damaged or of another kind") as caught:
        read_beside(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"9" * 10_000, b"\xff\xfe", b"{"])
def test_descriptions_that_are_no_json_are_damaged_exports(build, tmp_path, content):
    write_beside(build(zca=True), tmp_path, "png", "card")
    (tmp_path / DESCRIPTION_FILE).write_bytes(content)
    for read in (read_beside, read_target):
        with pytest.raises(ValueError, match="that is damaged or of another kind"):
            read(tmp_path)


def test_damaged_statistics_are_damaged_exports(build, tmp_path):
    write_beside(build(zca=True), tmp_path, "png", "card")
    (tmp_path / "statistics.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="that is damaged or of another kind"):
        read_beside(tmp_path)


def test_large_files_are_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(bytes(101))
    assert len(read_bounded(tmp_path / "large", 101)) == 101
    with pytest.raises(ValueError, match="large has more than the 100 bytes it needs"):
        read_bounded(tmp_path / "large", 100)
    with pytest.raises(ValueError, match="none is missing"):
        read_bounded(tmp_path / "none", 100)
    monkeypatch.setattr(folder_module, "_MAX_DESCRIPTION", 10)
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps({"target": "png"}))
    with pytest.raises(ValueError, match="has more than the 10 bytes"):
        read_target(tmp_path)


def test_a_folder_without_a_description_has_no_target(tmp_path):
    assert read_target(tmp_path) is None
    assert read_target(tmp_path / "none") is None
