"""Files made to run code, to fill the memory or to leave their folder: refused within a second and 100 MB."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from fastdistill.data.archive import read_archive
from fastdistill.data.folder import read_folder, read_picture
from fastdistill.data.torchvision_sets import read_torchvision, torchvision_datasets
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import load_pretrained

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
LABELS = np.arange(8) % 2


def resident(kind: str) -> int:
    """A line of the process's memory in bytes: VmRSS, what it holds, or VmHWM, the most it has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def assert_refused(read: Callable[[], object], message: str) -> None:
    """Asserts that reading fails as documented, within a second of computing and 100 MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the most that was held so far
    except OSError:
        pytest.skip("measuring needs Linux's /proc/self/clear_refs")
    held, begin = resident("VmRSS"), time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read()
    assert time.process_time() - begin < 1
    assert resident("VmHWM") - held < 100e6
    assert "\n" not in str(caught.value)


def test_the_measure_sees_memory(tmp_path: Path) -> None:
    def hungry() -> None:
        np.ones(400_000_000, np.uint8)  # far above what a system reclaims meanwhile
        raise ValueError("expected")

    with pytest.raises(AssertionError):
        assert_refused(hungry, "expected")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("compress", [False, True])
def test_an_archive_of_objects_runs_no_code(tmp_path: Path, compress: bool) -> None:
    objects = np.empty(1, object)
    objects[0] = Payload(tmp_path / "trace")
    (np.savez_compressed if compress else np.savez)(tmp_path / "a.npz", images=objects, labels=LABELS)
    assert_refused(lambda: read_archive(tmp_path / "a.npz"), "images holds Python objects")
    assert not (tmp_path / "trace").exists()


def npy(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4000000, 1000, 1000)", "(-8, -4, 4)", f"({2**64 + 128},)"])
def test_an_archive_that_claims_terabytes(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy(shape) + bytes(128))
        archive.writestr("labels.npy", npy("(8,)") + bytes(8))
    assert_refused(lambda: read_archive(path), r"images claims -?\d+ bytes and holds 128")


def test_a_directory_that_claims_terabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy("(128,)") + bytes(128))
        archive.writestr("labels.npy", npy("(8,)") + bytes(8))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)  # both sizes
    path.write_bytes(content)
    assert_refused(lambda: read_archive(path), "images claims to expand from [0-9]+ bytes to 4294967294")


def test_an_archive_that_does_expand_hugely(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((2**18, 32, 32), np.uint8), labels=LABELS)
    assert path.stat().st_size < 400_000
    assert_refused(lambda: read_archive(path), "images claims to expand from .* write it again with numpy.savez")


def test_an_archive_in_a_packing_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", npy("(128,)") + bytes(128))
    assert_refused(lambda: read_archive(path), "images is packed in a way numpy does not write")


def test_names_that_leave_the_archive_are_not_files(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "a.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../images.npy", npy("(8,)") + bytes(8))
    assert_refused(lambda: read_archive(path), r"got \['../images'\]: rename them")
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def bomb(kind: str) -> bytes:
    """A picture file of 12000 x 12000 pixels and a few kilobytes."""
    side = 12_000
    stream = io.BytesIO()
    if kind == "tiff":
        return tiff(side, [], zlib.compress(bytes(1000)))
    if kind == "webp":
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    else:
        Image.new("L", (8, 8)).save(stream, kind)
    content = bytearray(stream.getvalue())
    match kind:
        case "png":  # a whole one: the sizes, their checksum and the pixels
            pixels = zlib.compress(bytes(side * (side + 1)))
            content[16:24] = struct.pack(">II", side, side)
            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
            data = b"IDAT" + pixels
            content[33:] = struct.pack(">I", len(pixels)) + data + struct.pack(">I", zlib.crc32(data))
        case "gif":
            content[6:10] = struct.pack("<HH", side, side)
        case "webp":
            content[24:30] = (side - 1).to_bytes(3, "little") * 2
        case "bmp":
            content[18:26] = struct.pack("<ii", side, side)
        case "jpeg":
            frame = content.index(b"\xff\xc0")
            content[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
        case "ppm":
            content = bytearray(content.replace(b"8 8", f"{side} {side}".encode()))
    return bytes(content)


def tiff(side: int, tags: list[tuple[int, int]], data: bytes) -> bytes:
    """A grey deflated TIFF, its data from byte 8 on."""
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, **dict(tags)}
    if 322 not in values:
        values |= {273: 8, 278: side, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in sorted(values))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(values)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "webp", "bmp", "jpeg", "ppm"])
def test_a_bomb_of_a_picture(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "1.png"
    path.write_bytes(bomb(kind))
    assert path.stat().st_size < 200_000
    assert_refused(lambda: read_folder(tmp_path), r"1\.png.*12000 x 12000 pixels are more than")


def test_a_small_picture_of_one_huge_tile(tmp_path: Path) -> None:
    side = 16_384
    data = zlib.compress(bytes(side * side))
    (tmp_path / "x.tif").write_bytes(tiff(8, [(322, side), (323, side), (324, 8), (325, len(data))], data))
    assert_refused(lambda: read_picture(tmp_path / "x.tif"), "tiles of 16384 x 16384 pixels are more than")
    usual = zlib.compress(bytes(range(256)) * 256)
    (tmp_path / "x.tif").write_bytes(tiff(8, [(322, 256), (323, 256), (324, 8), (325, len(usual))], usual))
    assert read_picture(tmp_path / "x.tif")[0, 0].tolist() == list(range(8))


def test_a_program_is_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    assert_refused(lambda: read_picture(tmp_path / "x.png"), "cannot identify image file")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    for place in ("set/a", "set/b", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (4, 4), len(place)).save(tmp_path / place / "1.png")
    (tmp_path / "set" / "b" / "2.png").symlink_to(tmp_path / "set" / "a" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert read_folder(tmp_path / "link").train[1] == [0, 1, 1]
    for link, target in [("a/2.png", "elsewhere/1.png"), ("c", "elsewhere")]:
        (tmp_path / "set" / link).symlink_to(tmp_path / target)
        message = f"expected files that lie in .*set, got '.*{link}.*', a link to '.*elsewhere.*': copy or hard-link"
        assert_refused(lambda: read_folder(tmp_path / "set"), message)
        (tmp_path / "set" / link).unlink()


@pytest.mark.parametrize("name", [b"two\nlines", b"\x1b[31m", b"no\xfftext"])
def test_class_names_that_would_garble_the_output(tmp_path: Path, name: bytes) -> None:
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    assert_refused(lambda: read_folder(tmp_path), "expected class folders with plain names in .*: rename it")


def test_packed_digits_that_expand_hugely(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    count = 2**18
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", count, 28, 28)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(count * 28 * 28)))
    assert_refused(lambda: read_torchvision("mnist", tmp_path, download=False), "claims to expand from")


def test_what_older_versions_pickled_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), tmp_path / "MNIST" / "processed" / name)
    assert_refused(lambda: read_torchvision("mnist", tmp_path, download=False), "mnist files .* missing")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_tampered_pickle_is_not_opened(tmp_path: Path, name: str) -> None:
    cifar = getattr(torchvision_datasets(), name.upper())
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    for file in [*(entry[0] for entry in cifar.train_list + cifar.test_list), cifar.meta["filename"]]:
        (folder / file).write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    assert_refused(lambda: read_torchvision(name, tmp_path, download=False), f"{name} files .* cannot be read")
    assert not (tmp_path / "trace").exists()


def test_a_tampered_name_list_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = torchvision_datasets().CIFAR10
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    monkeypatch.setattr(cifar, "_check_integrity", lambda self: True)
    monkeypatch.setattr(cifar, "train_list", [["batch", ""]])
    monkeypatch.setattr(cifar, "test_list", [["batch", ""]])
    (folder / "batch").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}))
    (folder / cifar.meta["filename"]).write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    assert_refused(lambda: read_torchvision("cifar10", tmp_path, download=False), "metadata file not found")
    assert not (tmp_path / "trace").exists()


STUDENT = build_student("mlp", channels=1, height=2, width=2, num_classes=2)


def attacked(header: dict[str, Any] | bytes, data: bytes = b"", *, claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        attacked(b"{}", claimed=2**32),
        attacked(b"{}", claimed=2**64 - 1),
        attacked({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        attacked({"a": entry(0, 8, [2])}, bytes(7)),
        attacked({"a": entry(0, 8, [2**40])}, bytes(8)),
        attacked({"a": entry(0, 8, [2**32, 2**32])}, bytes(8)),
        attacked(b"[" * 100_000),
        attacked({"a": entry(0, 8, [1], "O")}, bytes(8)),
        save({"classifier.bias": torch.zeros(2)})[:-1],
        b"",
    ],
    ids=[
        "header of 4 GB", "header of 2^64", "overlap", "truncated", "terabytes", "overflow", "nested", "objects", "cut",
        "empty",
    ],
)  # fmt: skip
def test_weights_that_lie_about_themselves(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    assert_refused(lambda: load_pretrained(tmp_path, STUDENT), r"net\.safetensors, got one that cannot be read \(.+\)")


def test_a_file_of_terabytes_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "net.safetensors").open("wb") as file:
        file.write(attacked(b"{}", claimed=90_000_000))
        file.truncate(2**40)
    assert_refused(lambda: load_pretrained(tmp_path, STUDENT), "it has 1099511627776 bytes, this architecture at most")
