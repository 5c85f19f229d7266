"""Own data as image files, one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastdistill.data.arrays import RawData
from fastdistill.data.pictures import picture_array, stack_pictures

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
TEST_SIDES = ("test", "val", "valid", "validation")  # the first one there is; ImageNet has only val labelled
MAX_PIXELS = 4096 * 4096  # a small file can claim a huge picture; this one decodes to 50 MB


def read_folder(path: Path) -> RawData:
    """Reads ``path/CLASS/*``, or ``path/train/CLASS/*`` and ``path/test/CLASS/*`` if both exist.

    Without ``test``, a ``val``, ``valid`` or ``validation`` folder beside ``train`` is the test side. Classes are the
    sub-folders in sorted order, their files those with a picture's suffix, in sub-folders too; hidden ones and other
    files are left out. Pictures are grey if every one is, else RGB.

    Raises:
        ValueError: if there is no such folder, class or picture, a file cannot be read or is over `MAX_PIXELS`,
            sizes differ, the test folder has a class the training folder lacks, or every class folder has its
            pictures in sub-folders only.
    """
    if not path.is_dir():
        raise ValueError(f"Expected a folder with one sub-folder per class at {path}, found none: check the path.")
    test_side = next((path / name for name in TEST_SIDES if (path / name).is_dir()), None)
    if test_side is None or not (path / "train").is_dir():
        class_names = _class_folders(path)
        return RawData(train=_read_pictures(_training_files(path, class_names)), class_names=class_names)
    class_names = _class_folders(path / "train")
    unknown = sorted(set(_class_folders(test_side)) - set(class_names))
    if unknown:
        raise ValueError(
            f"Every class of {test_side} needs training images, but {', '.join(unknown)} has none in "
            f"{path / 'train'}: add or remove it."
        )
    train, train_labels = _read_pictures(_training_files(path / "train", class_names))
    test_files = _files(test_side, class_names)
    if not any(test_files):
        raise ValueError(f"Expected pictures in the class folders of {test_side}, found none: add some.")
    test, test_labels = _read_pictures(test_files)
    # grey on one side only: both sides get the channels of the richer one
    channels = max(train.shape[1], test.shape[1])
    train, test = (np.broadcast_to(side, (len(side), channels, *side.shape[2:])) for side in (train, test))
    return RawData(train=(train, train_labels), test=(test, test_labels), class_names=class_names)


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes one file to ``[1, H, W]`` or ``[3, H, W]``.

    Raises:
        ValueError: naming the file, if it cannot be decoded or is over `MAX_PIXELS`.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
            return picture_array(picture)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(
            f"Expected a readable picture of at most {MAX_PIXELS} pixels at {path}, got an error ({error}): "
            "repair or remove the file."
        ) from error


def _class_folders(path: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise ValueError(f"Expected one sub-folder per class in {path}, found none: put each class's images in one.")
    return names


def _files(path: Path, class_names: tuple[str, ...]) -> list[list[Path]]:
    files = [
        sorted(
            file
            for file in (path / name).rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        for name in class_names
    ]
    # splits under other names, or a set of data sets, would pass as classes
    if any(files) and not any(file.parent.parent == path for of_class in files for file in of_class):
        raise ValueError(
            f"Expected pictures directly in the class folders of {path}, got only sub-folders in all of them "
            f"({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''}): name the splits train and test "
            "or val, or move the pictures up."
        )
    return files


def _training_files(path: Path, class_names: tuple[str, ...]) -> list[list[Path]]:
    files = _files(path, class_names)
    for name, of_class in zip(class_names, files, strict=True):
        if not of_class:
            raise ValueError(
                f"Expected pictures ({', '.join(sorted(SUFFIXES))}) in {path / name}, found none: "
                "add some or remove the folder."
            )
    return files


def _read_pictures(files: list[list[Path]]) -> tuple[npt.NDArray[Any], list[int]]:
    images = stack_pictures((str(file), read_picture(file)) for of_class in files for file in of_class)
    return images, [label for label, of_class in enumerate(files) for _ in of_class]
