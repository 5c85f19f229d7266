from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdistill.data.normalization import Normalization, channel_normalization
from fastdistill.data.sources import RealData, load_source
from fastdistill.data.torchvision_sets import NORMALIZATIONS
from fastdistill.data.zca import fit_zca

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def write_archive(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


def test_digits_are_ready_for_use() -> None:
    data = load_source("digits")
    assert data.name == "digits"
    assert (len(data.train), len(data.test), data.train.shape) == (1438, 359, (1, 8, 8))
    assert data.train.class_names == tuple("0123456789")
    computed = channel_normalization(data.train.images)
    assert data.train.normalization.mean == data.test.normalization.mean == computed.mean
    assert data.train.normalization.std == data.test.normalization.std == computed.std


def test_whole_archives_are_split_alike_every_time(tmp_path: Path) -> None:
    source = write_archive(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    data = load_source(source)
    assert data.train.class_sizes == (16, 16, 16)
    assert data.test.class_sizes == (4, 4, 4)
    rows = torch.cat([data.train.images, data.test.images]).flatten(1).numpy()
    assert sorted(map(bytes, rows)) == sorted(map(bytes, IMAGES.transpose(0, 3, 1, 2).reshape(60, -1)))
    assert torch.equal(load_source(source).test.images, data.test.images)
    assert load_source(source, test_fraction=0.5).test.class_sizes == (10, 10, 10)
    # the held-out images must not leak into the statistics
    assert data.train.normalization.mean == channel_normalization(data.train.images).mean


def test_split_archives_keep_their_test_images_in_order(tmp_path: Path) -> None:
    source = write_archive(
        tmp_path / "a.npz", x_train=IMAGES[:50], y_train=LABELS[:50], x_test=IMAGES[50:], y_test=LABELS[50:]
    )
    data = load_source(source)
    assert np.array_equal(data.test.images.numpy(), IMAGES[50:].transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == LABELS[50:].tolist()
    assert data.test.normalization is data.train.normalization


def test_a_test_set_may_lack_a_class(tmp_path: Path) -> None:
    some = LABELS[50:] > 0
    source = write_archive(
        tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[50:][some], y_test=LABELS[50:][some]
    )
    assert load_source(source).test.class_sizes[0] == 0


def test_folders_are_loaded(tmp_path: Path) -> None:
    for index, pixels in enumerate(IMAGES[:30]):
        file = tmp_path / f"class {LABELS[index]}" / f"{index:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(file)
    data = load_source(f"folder:{tmp_path}")
    assert data.train.class_names == ("class 0", "class 1", "class 2")
    assert data.train.class_sizes == (8, 8, 8)
    assert data.test.class_sizes == (2, 2, 2)
    assert data.train.shape == (3, 6, 5)


def test_zca_is_fitted_on_training_images_and_used_for_both(tmp_path: Path) -> None:
    data = load_source(write_archive(tmp_path / "a.npz", images=IMAGES, labels=LABELS), zca=True)
    whitening = data.test.normalization.whitening
    assert whitening is not None
    assert whitening is data.train.normalization.whitening
    assert torch.equal(whitening.matrix, fit_zca(data.train.images).matrix)
    pixels = data.test.images.double().flatten(1) / 255
    truth = (pixels - whitening.mean.double()) @ whitening.matrix.double()
    found = data.test.batch(torch.arange(len(data.test)), torch.float64).flatten(1)
    assert (found - truth).norm() <= 1e-13 * truth.norm()


def test_a_given_normalisation_wins_and_excludes_zca(tmp_path: Path) -> None:
    source = write_archive(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    given = Normalization(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert load_source(source, normalization=given).test.normalization is given
    with pytest.raises(ValueError, match="drop one of them"):
        load_source(source, normalization=given, zca=True)
    with pytest.raises(ValueError, match="as many normalisation values as the images have channels, 3, got 1"):
        load_source(source, normalization=NORMALIZATIONS["mnist"])


def test_sides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    train = {"x_train": IMAGES, "y_train": LABELS, "y_test": LABELS}
    small = write_archive(tmp_path / "a.npz", x_test=IMAGES[:, :5], **train)
    with pytest.raises(ValueError, match=r"\[3, 6, 5\] torch.uint8 .* and \[3, 5, 5\] torch.uint8"):
        load_source(small)
    grey = write_archive(tmp_path / "b.npz", x_test=IMAGES[..., 0], **train)
    with pytest.raises(ValueError, match=r"and \[1, 6, 5\] torch.uint8"):
        load_source(grey)
    floats = write_archive(tmp_path / "c.npz", x_test=IMAGES / 255, **train)
    with pytest.raises(ValueError, match=r"and \[3, 6, 5\] torch.float32"):
        load_source(floats)
    stray = write_archive(tmp_path / "d.npz", x_test=IMAGES, **(train | {"y_test": LABELS + 1}))
    with pytest.raises(ValueError, match=r"3 classes in 0 \.\. 2, got 1 \.\. 3"):
        load_source(stray)


def test_real_data_needs_test_images_and_the_same_class_names() -> None:
    data = load_source("digits")
    with pytest.raises(ValueError, match=r"expected test images of .*, got none"):
        replace(data, test=data.test.subset(torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="the same classes"):
        RealData(train=data.train, test=replace(data.test, class_names=tuple("abcdefghij")), name="digits")


def test_too_few_images_for_a_test_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected test images of .*, got none"):
        load_source(write_archive(tmp_path / "a.npz", images=IMAGES[:6], labels=LABELS[:6]))


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("mnits", "did you mean mnist"),
        ("CIFAR10", "did you mean cifar10"),
        ("fashion-mnist", "did you mean fashionmnist"),
        ("folder", "did you mean folder:PATH"),
        ("folders:/somewhere", "did you mean folder:PATH"),
        ("npz:", "did you mean npz:PATH"),
        ("imagenet1k", "digits, mnist, .*: use one of these"),
        ("", "use one of these"),
    ],
)
def test_unknown_sources_name_the_nearest(source: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest):
        load_source(source)


@pytest.mark.skipif("FASTDISTILL_DATA" not in os.environ, reason="FASTDISTILL_DATA names no folder of data sets")
def test_mnist_is_loaded_whole() -> None:
    data = load_source("mnist", root=os.environ["FASTDISTILL_DATA"])
    assert data.train.class_sizes == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert data.test.class_sizes == (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    assert (data.train.normalization.mean, data.train.normalization.std) == ((0.1307,), (0.3081,))
