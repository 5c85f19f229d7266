from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdistill.data import folder
from fastdistill.data.folder import read_folder, read_picture


def write(path: Path, value: int, *, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def test_classes_are_sorted_folders_and_files_are_sorted(tmp_path: Path) -> None:
    write(tmp_path / "zebra" / "b.png", 1)
    write(tmp_path / "zebra" / "a.PNG", 2)
    write(tmp_path / "ant" / "deeper" / "x.bmp", 3)
    write(tmp_path / ".hidden" / "x.png", 4)
    write(tmp_path / "ant" / ".x.png", 5)
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / "metadata.jsonl").write_text("{}")
    raw = read_folder(tmp_path)
    images, labels = raw.train
    assert raw.class_names == ("ant", "zebra")
    assert raw.test is None
    assert labels == [0, 1, 1]
    assert isinstance(images, np.ndarray)
    assert images.shape == (3, 1, 4, 5)
    assert images[:, 0, 0, 0].tolist() == [3, 2, 1]


def test_one_colour_picture_makes_all_rgb(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", 10)
    write(tmp_path / "b" / "1.png", 20, mode="RGB")
    images = read_folder(tmp_path).train[0]
    assert isinstance(images, np.ndarray)
    assert images.shape == (2, 3, 4, 5)
    assert images[:, :, 0, 0].tolist() == [[10] * 3, [20] * 3]


@pytest.mark.parametrize("colour_side", ["train", "test"])
def test_train_and_test_folders_share_classes_and_channels(tmp_path: Path, colour_side: str) -> None:
    for side in ("train", "test"):
        mode = "RGB" if side == colour_side else "L"
        write(tmp_path / side / "b" / "1.png", 10, mode=mode)
        write(tmp_path / side / "c" / "1.png", 20, mode=mode)
    write(tmp_path / "train" / "a" / "1.png", 30)
    raw = read_folder(tmp_path)
    assert raw.class_names == ("a", "b", "c")
    assert raw.test is not None
    assert raw.train[1] == [0, 1, 2]
    assert raw.test[1] == [1, 2]
    train, test = raw.train[0], raw.test[0]
    assert isinstance(train, np.ndarray) and isinstance(test, np.ndarray)
    assert (train.shape, test.shape) == ((3, 3, 4, 5), (2, 3, 4, 5))
    assert train[:, 2, 0, 0].tolist() == [30, 10, 20]
    assert test[:, 1, 0, 0].tolist() == [10, 20]


def test_a_test_class_without_training_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.png", 1)
    write(tmp_path / "test" / "b" / "1.png", 1)
    with pytest.raises(ValueError, match=r"got none of b in .*train"):
        read_folder(tmp_path)
    (tmp_path / "test" / "b" / "1.png").unlink()
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "a")
    with pytest.raises(ValueError, match=r"expected pictures in the class folders of .*test, got none"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_test_side_unless_there_is_one(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train" / "a" / "1.png", 10)
    write(tmp_path / name / "a" / "1.png", 20)
    for test_value in (20, 30):
        raw = read_folder(tmp_path)
        assert raw.class_names == ("a",)
        assert raw.test is not None
        assert [np.unique(side[0]).tolist() for side in (raw.train, raw.test)] == [[10], [test_value]]
        write(tmp_path / "test" / "a" / "1.png", 30)


@pytest.mark.parametrize("names", [("one", "two"), ("train",), ("train", "holdout")])
def test_classes_one_level_too_deep_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / name / "a" / "1.png", 10)
    with pytest.raises(ValueError, match=r"directly in the class folders of .*, got only sub-folders in all of them"):
        read_folder(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at .*nowhere, got none"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one sub-folder per class in"):
        read_folder(tmp_path)
    write(tmp_path / "a" / "1.png", 1)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"expected pictures .* in .*b, got none"):
        read_folder(tmp_path)


def test_mixed_sizes_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", 1)
    write(tmp_path / "a" / "2.png", 1, size=(6, 4))
    with pytest.raises(ValueError, match=r"1\.png' of \(4, 5\) and .*2\.png' of \(4, 6\)"):
        read_folder(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (0, 5, 20, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"readable picture .* at .*x.{kind}"):
            read_picture(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (8, 8)).save(path)
    # the width and height of a PNG stand at a fixed place, guarded by a checksum only while decoding
    header = bytearray(path.read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    with pytest.raises(ValueError, match=r"bomb\.png"):
        read_picture(path)
    write(tmp_path / "small.png", 1)
    monkeypatch.setattr(folder, "MAX_PIXELS", 19)
    with pytest.raises(ValueError, match="5 x 4 pixels are more than 19"):
        read_picture(tmp_path / "small.png")


def test_the_content_decides_on_the_format(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for kind in ("PNG", "GIF", "BMP", "PPM", "TIFF"):
        Image.fromarray(noise).save(tmp_path / "x.jpg", kind)
        found = read_picture(tmp_path / "x.jpg").transpose(1, 2, 0)
        assert found.shape == noise.shape
        assert kind == "GIF" or np.array_equal(found, noise)
    (tmp_path / "x.jpg").write_bytes(b"P7 neither of them")
    with pytest.raises(ValueError, match=r"x\.jpg', got an error \(cannot identify image file"):
        read_picture(tmp_path / "x.jpg")


def test_what_pillow_only_warns_of_is_read(tmp_path: Path) -> None:
    picture = Image.new("L", (4, 3), 7).convert("P")
    picture.save(tmp_path / "x.png", transparency=b"\x00\x80")  # Pillow warns of converting such palettes
    assert read_picture(tmp_path / "x.png").shape == (3, 3, 4)
