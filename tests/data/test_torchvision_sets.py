from __future__ import annotations

import builtins
import gzip
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdistill.data.sources import load_source
from fastdistill.data.torchvision_sets import NORMALIZATIONS, read_torchvision, torchvision_datasets


def write_idx(path: Path, values: np.ndarray) -> None:
    """Writes the file format of MNIST: a magic number, the sizes, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def write_mnist(root: Path, *, name: str = "MNIST") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("t10k", 20)):
        arrays[f"{split}-images-idx3"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1"] = (np.arange(count) % 10).astype(np.uint8)
    for file, values in arrays.items():
        write_idx(root / name / "raw" / f"{file}-ubyte", values)
    return arrays


def test_torchvision_is_imported_only_when_asked_for_and_works_beside_this_torch() -> None:
    code = (
        "import sys, fastdistill.data.sources\n"
        "from fastdistill.data.torchvision_sets import torchvision_datasets\n"
        "assert not {'torchvision', 'sklearn'} & set(sys.modules)\n"
        "first = torchvision_datasets()\n"
        "assert first is torchvision_datasets() and first.CIFAR10.__name__ == 'CIFAR10'\n"
        "import torchvision.transforms\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_import_failures_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchvision"):
            raise RuntimeError("another operator does not exist")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(RuntimeError, match="another operator"):
        torchvision_datasets()


@pytest.mark.parametrize("name", ["mnist", "fashionmnist"])
def test_files_in_torchvisions_layout_are_read(tmp_path: Path, name: str) -> None:
    arrays = write_mnist(tmp_path, name={"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name])
    raw = read_torchvision(name, tmp_path, download=False)
    assert raw.test is not None
    assert raw.class_names is not None and len(raw.class_names) == 10
    assert raw.normalization is NORMALIZATIONS[name]
    for (images, labels), split in ((raw.train, "train"), (raw.test, "t10k")):
        assert np.array_equal(np.asarray(images), arrays[f"{split}-images-idx3"])
        assert np.array_equal(np.asarray(labels), arrays[f"{split}-labels-idx1"])


@pytest.mark.parametrize(
    ("name", "keyword", "targets", "classes"),
    [("cifar10", "train", "targets", 10), ("cifar100", "train", "targets", 100), ("svhn", "split", "labels", None)],
)
def test_other_readers_are_asked_in_their_own_words(
    name: str, keyword: str, targets: str, classes: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[dict[str, Any]] = []

    def reader(root: str, *, download: bool, **split: Any) -> SimpleNamespace:
        calls.append({"root": root, "download": download, **split})
        parts: dict[str, Any] = {"data": np.full(2, len(calls)), targets: [len(calls)]}
        return SimpleNamespace(**parts, **({"classes": list(map(str, range(classes)))} if classes else {}))

    monkeypatch.setattr(torchvision_datasets(), name.upper(), reader)
    raw = read_torchvision(name, tmp_path, download=True)
    values = ("train", "test") if keyword == "split" else (True, False)
    assert calls == [{"root": str(tmp_path), "download": True, keyword: value} for value in values]
    assert raw.test is not None and raw.class_names is not None
    assert (list(raw.train[0]), raw.train[1], list(raw.test[0]), raw.test[1]) == ([1, 1], [1], [2, 2], [2])
    assert len(raw.class_names) == (classes or 10)


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_missing_files_are_answered_with_the_folder_and_the_flag(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} files .* under {tmp_path}, .*--data.download true") as caught:
        read_torchvision(name, tmp_path, download=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_packed_files_are_read_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_mnist(tmp_path)
    for file in (tmp_path / "MNIST" / "raw").iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    monkeypatch.setattr("fastdistill.data.torchvision_sets.torchvision_datasets", None)
    raw = read_torchvision("mnist", tmp_path, download=False)
    assert np.array_equal(np.asarray(raw.train[0]), arrays["train-images-idx3"])
    assert raw.test is not None and np.array_equal(np.asarray(raw.test[1]), arrays["t10k-labels-idx1"])


@pytest.mark.parametrize("name", ["mnist", "fashionmnist"])
def test_class_names_are_torchvisions(tmp_path: Path, name: str) -> None:
    folder = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name]
    write_mnist(tmp_path, name=folder)
    found = read_torchvision(name, tmp_path, download=False).class_names
    assert found == tuple(getattr(torchvision_datasets(), folder).classes)


def test_torchvision_fetches_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def fetch(root: str, *, download: bool) -> None:
        calls.append(download)
        write_mnist(Path(root))

    monkeypatch.setattr(torchvision_datasets(), "MNIST", fetch)
    for _ in range(2):
        assert len(read_torchvision("mnist", tmp_path, download=True).train[0]) == 40
    assert calls == [True]


def test_files_of_another_set_or_split_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(40, dtype=np.uint8) % 20)
    with pytest.raises(ValueError, match=r"expected labels of 10 classes in 0 \.\. 9, got 0 \.\. 19"):
        load_source("mnist", root=str(tmp_path))
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match=r"expected 40 integer labels, one per image, got .* \[20\]"):
        load_source("mnist", root=str(tmp_path))
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes())
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte does not begin as an IDX file of 1 axes"):
        load_source("mnist", root=str(tmp_path))


def test_damaged_files_are_answered_alike(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mnist files .* cannot be read"):
        read_torchvision("mnist", tmp_path, download=False)


def test_failed_downloads_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_datasets(), "CIFAR10", offline)
    with pytest.raises(ValueError, match=r"\(no route to host\): check the connection"):
        read_torchvision("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("name", ["mnist", "fashionmnist"])
@pytest.mark.skipif("FASTDISTILL_DATA" not in os.environ, reason="FASTDISTILL_DATA names no folder of data sets")
def test_the_constants_are_those_of_the_real_files(name: str) -> None:
    raw = read_torchvision(name, Path(os.environ["FASTDISTILL_DATA"]), download=False)
    pixels = torch.tensor(raw.train[0]).double() / 255
    assert pixels.shape == (60_000, 28, 28)
    assert raw.test is not None and len(raw.test[1]) == 10_000
    normalization = NORMALIZATIONS[name]
    assert float(pixels.mean()) == pytest.approx(normalization.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(normalization.std[0], abs=1e-4)
