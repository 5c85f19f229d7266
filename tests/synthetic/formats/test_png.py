import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdistill.data.normalization import Normalization
from fastdistill.data.torchvision_sets import torchvision_datasets
from fastdistill.synthetic.formats import png
from fastdistill.synthetic.formats.eight_bit import eight_bit, to_levels
from fastdistill.synthetic.formats.png import METADATA_FILE, class_folder


@pytest.fixture
def folder(build, tmp_path):
    png.write(build(), tmp_path, "card")
    return tmp_path


def entries(folder):
    return [json.loads(line) for line in (folder / METADATA_FILE).read_text().splitlines()]


def rewrite(folder, lines):
    (folder / METADATA_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        png.read(folder)
    assert str(caught.value).startswith("expected an export of distilled images in")
    assert "\n" not in str(caught.value)


def test_what_is_written_is_what_eight_bits_hold(kind, difference, tmp_path):
    png.write(kind, tmp_path, "card")
    assert difference(png.read(tmp_path), eight_bit(kind)) == []


def test_writing_what_was_read_gives_the_same_files(kind, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    png.write(kind, tmp_path / "one", "card")
    png.write(png.read(tmp_path / "one"), tmp_path / "two", "card")
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    for path in files[0]:
        if (tmp_path / "one" / path).is_file():
            assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


@pytest.mark.parametrize("runs", [1, 2])
def test_torchvision_reads_the_class_folders(build, tmp_path, runs):
    distilled = build(runs=runs)
    png.write(distilled, tmp_path, "card")
    for run in range(runs):
        top = tmp_path / f"run-{run}" if runs > 1 else tmp_path
        read = torchvision_datasets().ImageFolder(str(top))
        assert [target for _, target in read.samples] == sorted(distilled.labels.tolist())
        picture, _ = read[0]
        first = to_levels(distilled)[run, int((distilled.labels == 0).nonzero()[0])]
        assert np.array_equal(np.asarray(picture), first.permute(1, 2, 0).numpy())


def test_metadata_name_every_picture(build, folder):
    found = entries(folder)
    distilled = build()
    assert [line["label"] for line in found] == distilled.labels.tolist()
    assert found[1] == {"file_name": "1-ete/0000.png", "label": 1, "class_name": "été ✨", "run": 0, "index": 1}
    assert len({line["file_name"] for line in found}) == 18
    assert sorted(path.name for path in folder.iterdir() if path.is_dir())[2:6] == [
        "2-etc-passwd",
        "3",
        "4-CON",
        "5-" + "a" * 40,
    ]


@given(name=st.text(max_size=300), label=st.integers(0, 999))
def test_any_class_name_is_safe_on_disk(name, label):
    found = class_folder(label, 1000, name)
    assert found.startswith(f"{label:03d}")
    assert 3 <= len(found) <= 44
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
    assert not found.endswith("-")


def test_sorted_class_folders_are_in_the_order_of_the_labels():
    names = [class_folder(label, 120, "x") for label in range(120)]
    assert sorted(names) == names


@pytest.mark.parametrize("channels", [2, 5])
def test_images_of_other_channels_name_the_other_targets(build, tmp_path, channels):
    images = torch.zeros(1, 18, channels, 4, 5)
    statistics = Normalization(mean=(0.0,) * channels, std=(1.0,) * channels)
    with pytest.raises(ValueError, match="export to safetensors or pt"):
        png.write(build(images=images, normalization=statistics), tmp_path, "card")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "0-cat/../../outside.png", "", ".", "none.png", "\0"]
)
def test_names_that_leave_the_folder_are_refused(folder, name):
    (folder.parent / "outside.png").write_bytes((folder / "0-cat" / "0000.png").read_bytes())
    lines = entries(folder)
    lines[0]["file_name"] = name
    rewrite(folder, lines)
    refused(folder, "leaves the folder|is missing|null")


def test_absolute_names_are_refused_even_inside(folder):
    lines = entries(folder)
    lines[0]["file_name"] = str(folder / lines[0]["file_name"])
    rewrite(folder, lines)
    refused(folder, "leaves the folder")


def test_links_out_of_the_folder_are_refused(folder):
    inside = folder / "0-cat" / "0000.png"
    outside = folder.parent / "outside.png"
    inside.rename(outside)
    inside.symlink_to(outside)
    refused(folder, "leaves the folder")
    inside.unlink()
    os.mkfifo(inside)
    refused(folder, "is missing")


def test_pictures_of_another_size_are_refused(folder):
    other = folder / "1-ete" / "0000.png"
    other.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    refused(folder, "expected a PNG picture of 5 x 4")
    other.write_bytes(bytes(3 << 20))
    refused(folder, "has more than the")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 9}, "expected int64 labels in 0 to 8"),
        ({"label": -2}, "expected int64 labels in 0 to 8"),
        ({"label": 2**70}, "damaged"),
        ({"label": "0"}, "is no int"),
        ({"label": True}, "is no int"),
        ({"run": 1}, "names image 0 of run 1 twice, or there is no such image"),
        ({"index": 1}, "names image 1 of run 0 twice"),
        ({"index": -1}, "there is no such image"),
        ({"file_name": 3}, "is no str"),
    ],
)
def test_odd_metadata_are_refused(folder, change, message):
    lines = entries(folder)
    rewrite(folder, [lines[0] | change, *lines[1:]])
    refused(folder, message)


def test_missing_and_superfluous_lines_are_refused(folder):
    lines = entries(folder)
    rewrite(folder, lines[1:])
    refused(folder, "has 17 lines for 18 images")
    rewrite(folder, [*lines, lines[0]])
    refused(folder, "has 19 lines for 18 images")
    rewrite(folder, [{name: value for name, value in line.items() if name != "run"} for line in lines])
    refused(folder, "run")
    (folder / METADATA_FILE).write_bytes(b"\xff")
    refused(folder, "damaged")
    (folder / METADATA_FILE).unlink()
    refused(folder, "is missing")


@pytest.mark.parametrize("shape", [(18, 9), (2, 18, 9)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_soft_labels_stand_in_the_metadata_exactly(build, difference, soft_rows, tmp_path, shape, dtype):
    distilled = build(runs=2, labels=soft_rows(*shape, dtype=dtype))
    png.write(distilled, tmp_path, "card")
    rows = distilled.labels.double().expand(2, -1, -1)
    for line in entries(tmp_path):
        assert line["soft_label"] == rows[line["run"], line["index"]].tolist()
        assert line["label"] == line["index"] // 2
        assert line["file_name"].startswith(f"run-{line['run']}/{line['label']}")
    assert difference(png.read(tmp_path), eight_bit(distilled)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_label": [0.5] * 8}, "has a soft label of 8 numbers for 9 classes"),
        (
            {"soft_label": [0.5] * 8 + [float("nan")]},
            "expected finite soft labels, got NaN or infinity in 1 of 36 rows",
        ),
        ({"soft_label": [1e39] + [0.5] * 8}, "expected finite soft labels"),
        ({"soft_label": [10**400] + [0.5] * 8}, "damaged"),
        ({"soft_label": [-1] + [0.5] * 8}, "expected soft labels of at least 0, got -1"),
        ({"soft_label": [True] + [0.5] * 8}, "is no int"),
        ({"soft_label": ["1"] + [0.5] * 8}, "is no int"),
        ({"soft_label": 3}, "is no list"),
        ({"label": 1}, "gives image 0 two labels"),
    ],
)
def test_odd_soft_labels_are_refused(build, tmp_path, change, message):
    png.write(build(runs=2, soft=(2, 18, 9)), tmp_path, "card")
    lines = entries(tmp_path)
    rewrite(tmp_path, [lines[0] | change, *lines[1:]])
    refused(tmp_path, message)


def test_soft_labels_must_be_there_and_in_order(build, tmp_path):
    png.write(build(soft=(18, 9)), tmp_path, "card")
    lines = entries(tmp_path)
    rewrite(tmp_path, [{name: value for name, value in line.items() if name != "soft_label"} for line in lines])
    refused(tmp_path, "soft_label")
    rewrite(tmp_path, [line | {"label": 8 - line["label"]} for line in lines])
    refused(tmp_path, "in another order than that of the classes")


def test_runs_share_soft_labels_unless_they_have_their_own(build, tmp_path):
    png.write(build(runs=2, soft=(18, 9)), tmp_path, "card")
    lines = entries(tmp_path)
    lines[18]["soft_label"] = [0.25] * 9
    rewrite(tmp_path, lines)
    refused(tmp_path, "gives image 0 two labels")


def test_runs_must_agree_on_labels(build, tmp_path):
    png.write(build(runs=2), tmp_path, "card")
    lines = entries(tmp_path)
    lines[18]["label"] = 5
    rewrite(tmp_path, lines)
    refused(tmp_path, "gives image 0 two labels")


def test_a_picture_is_named_once(folder):
    lines = entries(folder)
    lines[1]["file_name"] = lines[0]["file_name"]
    rewrite(folder, lines)
    refused(folder, "names a file twice")


def test_pictures_that_would_decode_to_far_more_than_they_are_are_refused_unread(folder, monkeypatch):
    monkeypatch.setattr(png, "decode_png", None)
    monkeypatch.setattr(png, "_SMALL", 1000)
    monkeypatch.setattr(png, "_RATIO", 0.01)
    refused(folder, "too few for 1080 values")


def test_a_shape_of_billions_is_refused_before_anything_is_made_for_it(build, tmp_path, monkeypatch):
    png.write(build(channels=1), tmp_path, "card")
    values = json.loads((tmp_path / "distilled.json").read_text())
    (tmp_path / "distilled.json").write_text(json.dumps(values | {"shape": [1, 2**31, 1, 1, 1]}))
    monkeypatch.setattr(torch, "zeros", None)
    monkeypatch.setattr(torch, "full", None)
    refused(tmp_path, "has 18 lines for 2147483648 images")
