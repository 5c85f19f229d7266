"""A request to stop, which a signal raises anywhere, goes through every reader: no error handling keeps it."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import save_file

from fastdistill.data import archive, folder
from fastdistill.data.datasets import from_dataset
from fastdistill.data.digits import read_digits
from fastdistill.data.sources import load_source
from fastdistill.data.torchvision_sets import read_torchvision, torchvision_datasets
from fastdistill.failures import Stopped
from fastdistill.students import weights
from fastdistill.students.architectures import build_student
from fastdistill.synthetic.formats import eight_bit, tensor_file

Patch = pytest.MonkeyPatch


def stops(*_: object, **__: object) -> Any:
    raise Stopped("SIGTERM")


def assert_stops(read: Callable[[], object]) -> None:
    with pytest.raises(BaseException) as caught:  # whatever it is: it must be this one, and as it was raised
        read()
    assert type(caught.value) is Stopped and str(caught.value) == "SIGTERM"
    assert caught.value.__cause__ is None


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "set" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "set" / "a" / "1.png")
    return tmp_path / "set" / "a" / "1.png"


@pytest.mark.parametrize("where", [(Image, "open"), (ImageFile.ImageFile, "load"), (Image.Image, "convert")])
def test_pictures(picture: Path, monkeypatch: Patch, where: tuple[Any, str]) -> None:
    monkeypatch.setattr(*where, stops)
    assert_stops(lambda: folder.read_picture(picture))
    assert_stops(lambda: folder.read_folder(picture.parent.parent))
    assert_stops(lambda: load_source(f"folder:{picture.parent.parent}"))


def test_exported_pictures(picture: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", stops)
    assert_stops(lambda: eight_bit.decode_png(picture.read_bytes(), (3, 4, 4)))


def test_a_data_set_object(monkeypatch: Patch) -> None:
    class Pictures(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return stops()

    assert_stops(lambda: from_dataset(Pictures([0, 1])))
    monkeypatch.setattr(Image.Image, "convert", stops)
    assert_stops(lambda: from_dataset([(Image.new("RGB", (4, 4)), 0)]))


@pytest.mark.parametrize(
    "where", ["zipfile.ZipFile.__init__", "zipfile.ZipExtFile.read", "numpy.lib.format.read_magic"]
)
def test_archives(tmp_path: Path, monkeypatch: Patch, where: str) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 2, 2), np.uint8), labels=np.arange(4) % 2)
    monkeypatch.setattr(where, stops)
    assert_stops(lambda: archive.read_archive(tmp_path / "a.npz"))
    assert_stops(lambda: load_source(f"npz:{tmp_path / 'a.npz'}"))


def test_numpy(monkeypatch: Patch) -> None:
    monkeypatch.setattr(np, "asarray", stops)
    assert_stops(lambda: from_dataset([([[0]], 0)]))


@pytest.mark.parametrize("where", [(gzip.GzipFile, "read"), (np, "frombuffer")])
def test_mnist(tmp_path: Path, monkeypatch: Patch, where: tuple[Any, str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 7])
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(*where, stops)
    assert_stops(lambda: read_torchvision("mnist", tmp_path, download=False))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    cifar = getattr(torchvision_datasets(), name.upper())
    monkeypatch.setattr(cifar, "_check_integrity", lambda self: True)
    for file in [entry[0] for entry in cifar.train_list]:
        (tmp_path / cifar.base_folder).mkdir(exist_ok=True)
        (tmp_path / cifar.base_folder / file).write_bytes(b"")
    monkeypatch.setattr("torchvision.datasets.cifar.pickle.load", stops)
    assert_stops(lambda: read_torchvision(name, tmp_path, download=False))


def test_svhn(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "train.mat").write_bytes(b"x")
    split = ["", "train.mat", hashlib.md5(b"x").hexdigest()]
    monkeypatch.setattr(torchvision_datasets().SVHN, "split_list", {"train": split, "test": split})
    monkeypatch.setattr("scipy.io.loadmat", stops)
    assert_stops(lambda: read_torchvision("svhn", tmp_path, download=False))


def test_a_download(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torchvision_datasets().MNIST, "download", stops)
    assert_stops(lambda: read_torchvision("mnist", tmp_path, download=True))


def test_digits(monkeypatch: Patch) -> None:
    monkeypatch.setattr("sklearn.datasets.load_digits", stops)
    assert_stops(read_digits)


def test_pretrained_weights(tmp_path: Path, monkeypatch: Patch) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    monkeypatch.setattr("safetensors.torch.load_file", stops)
    student = build_student("mlp", channels=1, height=2, width=2, num_classes=2)
    assert_stops(lambda: weights.load_pretrained(tmp_path, student))


def test_files_of_other_programs(tmp_path: Path, monkeypatch: Patch) -> None:
    stream = io.BytesIO()
    torch.save(torch.zeros(1), stream)
    (tmp_path / "x.pt").write_bytes(stream.getvalue())
    monkeypatch.setattr(torch, "load", stops)
    assert_stops(lambda: tensor_file.read_tensors(tmp_path / "x.pt"))
