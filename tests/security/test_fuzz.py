"""Ten thousand damaged files for every reader of data and of pretrained weights."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from fastdistill.data.folder import read_folder, read_picture
from fastdistill.data.sources import load_source
from fastdistill.data.torchvision_sets import read_torchvision, torchvision_datasets
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import load_pretrained
from tests.fuzz import fuzz

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (8, 3, 4), dtype=np.uint8)
LABELS = np.arange(8) % 2


def archive(save_to: Any = np.savez, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    save_to(stream, **arrays)
    return stream.getvalue()


def test_archives(tmp_path: Path) -> None:
    seeds = [
        archive(images=IMAGES, labels=LABELS),
        archive(np.savez_compressed, images=IMAGES, labels=LABELS),
        archive(images=np.asfortranarray(IMAGES / 7), labels=LABELS.astype(">i2")),
        archive(x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:2], y_test=LABELS[:2]),
    ]

    def read(path: Path) -> None:
        data = load_source(f"npz:{path}", test_fraction=0.25)
        for side in (data.train, data.test):
            assert side.batch(torch.arange(len(side))).isfinite().all()

    fuzz(read, seeds, tmp_path / "a.npz")


def test_pictures(tmp_path: Path) -> None:
    colour = Image.fromarray(RANDOM.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    seeds = []
    for picture, options in [
        (colour, {"format": "PNG"}),
        (colour.convert("P"), {"format": "PNG", "transparency": b"\x00\x80"}),
        (colour, {"format": "JPEG"}),
        (colour.convert("L"), {"format": "JPEG", "progressive": True}),
        (colour, {"format": "GIF"}),
        (colour, {"format": "BMP"}),
        (colour, {"format": "PPM"}),
        (colour, {"format": "TIFF"}),
        (colour, {"format": "TIFF", "compression": "tiff_lzw"}),
        (colour.convert("L"), {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        (colour, {"format": "WEBP"}),
        (colour, {"format": "WEBP", "lossless": True}),
    ]:
        stream = io.BytesIO()
        picture.save(stream, **options)
        seeds.append(stream.getvalue())

    def read(path: Path) -> None:
        pixels = read_picture(path)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and len(pixels) in (1, 3)

    fuzz(read, seeds, tmp_path / "picture")


def test_layouts_of_a_folder(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (2, 2), 7).save(stream, "PNG")
    (tmp_path / "picture").write_bytes(stream.getvalue())
    root = tmp_path / "root"

    def read(path: Path) -> None:
        """Makes the files that `path` lists, NUL between them, as ``name`` or, for a link, ``name>target``."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for entry in path.read_bytes().split(b"\0"):
            name, *target = entry.split(b">")
            file = Path(root, *(os.fsdecode(part) for part in name.split(b"/") if part not in (b"", b".", b"..")))
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                if target:
                    os.symlink(target[0], file)
                else:
                    os.link(tmp_path / "picture", file)
            except (OSError, ValueError):  # no file system would hold such a file
                continue
        raw = read_folder(root)
        assert raw.class_names is not None and set(raw.train[1]) == set(range(len(raw.class_names)))

    seeds = [
        b"a/1.png\0a/2.png\0b/1.png",
        b"train/a/1.png\0train/b/1.jpg\0test/a/1.png\0val/b/1.png",
        b"a/1.png\0b/2.png>../a/1.png\0b/deep/3.PNG\0c>a",
    ]
    fuzz(read, seeds, tmp_path / "layout", refused=0.1)


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.mark.parametrize("part", ["images-idx3-ubyte", "labels-idx1-ubyte", "images-idx3-ubyte.gz"])
def test_mnist(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    good = {"images-idx3-ubyte": idx(IMAGES), "labels-idx1-ubyte": idx(LABELS.astype(np.uint8))}
    for name, content in good.items():
        (folder / f"t10k-{name}").write_bytes(content)
        if not part.startswith(name):
            (folder / f"train-{name}").write_bytes(content)
    content = good[part.removesuffix(".gz")]
    seeds = [gzip.compress(content, mtime=0)] if part.endswith(".gz") else [content, idx(IMAGES[:, :1, :1])]
    if part.startswith("labels"):
        seeds = [content]
    # most damage of a plain file is of its pixels
    fuzz(lambda path: read_torchvision("mnist", tmp_path, download=False), seeds, folder / f"train-{part}", count=4_000)


def test_cifar_behind_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = torchvision_datasets().CIFAR10
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]})
    meta = pickle.dumps({"label_names": list("abcd")})
    for name, content in (("test", batch), ("meta", meta)):
        (folder / name).write_bytes(content)
    monkeypatch.setattr(cifar, "train_list", [["train", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(cifar, "test_list", [["test", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()})
    fuzz(lambda path: read_torchvision("cifar10", tmp_path, download=False), [batch], folder / "train", refused=0.9)


def test_svhn_behind_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"X": RANDOM.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8), "y": [[1], [2], [10], [3]]})
    content = stream.getvalue()
    (tmp_path / "test.mat").write_bytes(content)
    checksum = hashlib.md5(content).hexdigest()
    splits = {side: ["", f"{side}.mat", checksum] for side in ("train", "test")}
    monkeypatch.setattr(torchvision_datasets().SVHN, "split_list", splits)
    fuzz(
        lambda path: read_torchvision("svhn", tmp_path, download=False), [content], tmp_path / "train.mat", refused=0.9
    )


def test_pretrained_weights(tmp_path: Path) -> None:
    module = build_student("convnet", channels=1, height=4, width=4, num_classes=2, depth=1, net_width=2, norm="batch")
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    seeds = [
        save({name: torch.full(tensor.shape, 0.5).to(dtype if tensor.is_floating_point() else tensor.dtype)
              for name, tensor in tensors.items()})
        for dtype in (torch.float32, torch.float16, torch.float64)
    ]  # fmt: skip

    def read(path: Path) -> None:
        weights, buffers = load_pretrained(path.parent, module)
        assert weights.isfinite().all() and all(tensor.isfinite().all() for tensor in buffers.values())

    assert isinstance(module, nn.Module)
    fuzz(read, seeds, tmp_path / "net.safetensors")
