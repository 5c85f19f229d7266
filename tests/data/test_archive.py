from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastdistill.data.archive import read_archive

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
LABELS = np.arange(8) % 2


def test_both_sets_of_names_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=IMAGES, labels=LABELS, extra=3)
    whole = read_archive(tmp_path / "whole.npz")
    assert np.array_equal(whole.train[0], IMAGES) and np.array_equal(whole.train[1], LABELS)
    assert whole.test is None
    np.savez_compressed(tmp_path / "s.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:3], y_test=LABELS[:3])
    split = read_archive(tmp_path / "s.npz")
    assert split.test is not None
    assert np.array_equal(split.train[0], IMAGES) and np.array_equal(split.test[0], IMAGES[:3])
    assert np.array_equal(split.train[1], LABELS) and np.array_equal(split.test[1], LABELS[:3])


def test_missing_names_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS)
    with pytest.raises(ValueError, match=r"got \['x_train', 'y_train'\]: rename them"):
        read_archive(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"expected an .npz file at .*nothing.npz, got none"):
        read_archive(tmp_path / "nothing.npz")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = Payload()
    np.savez(tmp_path / "o.npz", images=objects, labels=LABELS)
    with pytest.raises(ValueError, match=r"images holds Python objects\): .* without object arrays"):
        read_archive(tmp_path / "o.npz")
    np.save(tmp_path / "o.npy", objects, allow_pickle=True)
    (tmp_path / "o.npy").rename(tmp_path / "p.npz")
    with pytest.raises(ValueError, match="got one that cannot be read"):
        read_archive(tmp_path / "p.npz")


def test_a_plain_array_file_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match="got one that cannot be read"):
        read_archive(tmp_path / "a.npz")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="got one that cannot be read"):
            read_archive(path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    shape = b"(8, 4, 4)"
    assert whole.count(shape) == 1
    padding = b" " * 8
    claimed = whole.replace(shape + b", }" + padding, b"(8, 4, 4" + b"0" * 8 + b"), }")
    assert len(claimed) == len(whole) and claimed != whole
    path.write_bytes(claimed)
    with pytest.raises(ValueError, match="got one that cannot be read"):
        read_archive(path)
