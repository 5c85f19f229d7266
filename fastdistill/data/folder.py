"""Own data as image files, one sub-folder per class."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastdistill.data.arrays import RawData
from fastdistill.data.causes import cause_of
from fastdistill.data.pictures import picture_array, stack_pictures

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# Pillow would try all it knows, whatever the suffix, some by running programs
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
TEST_SIDES = ("test", "val", "valid", "validation")  # the first one there is; ImageNet has only val labelled
MAX_PIXELS = 4096 * 4096  # a small file can claim a huge picture; this one decodes to 50 MB
MAX_TILE = 1024 * 1024  # pixels of a tile larger than its picture, which are decoded all the same
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # and bytes that are no text in the file system's encoding


def read_folder(path: Path) -> RawData:
    """Reads ``path/CLASS/*``, or ``path/train/CLASS/*`` and ``path/test/CLASS/*`` if both exist.

    Without ``test``, a ``val``, ``valid`` or ``validation`` folder beside ``train`` is the test side. Classes are the
    sub-folders in sorted order, their files those with a picture's suffix, in sub-folders too; hidden ones and other
    files are left out. Links may point to anything inside `path`, but not out of it. Pictures are grey if every one is,
    else RGB.

    Raises:
        ValueError: if there is no such folder, class or picture, a file cannot be read or is over `MAX_PIXELS`,
            sizes differ, a link leads out of `path`, the test folder has a class the training folder lacks, or every
            class folder has its pictures in sub-folders only.
    """
    if not path.is_dir():
        raise ValueError(f"expected a folder with one sub-folder per class at {path}, got none: check the path")
    test_side = next((path / name for name in TEST_SIDES if (path / name).is_dir()), None)
    if test_side is None or not (path / "train").is_dir():
        class_names = _class_folders(path)
        return RawData(train=_read_pictures(path, _training_files(path, class_names)), class_names=class_names)
    class_names = _class_folders(path / "train")
    unknown = sorted(set(_class_folders(test_side)) - set(class_names))
    if unknown:
        raise ValueError(
            f"expected training images of every class of {test_side}, got none of {', '.join(unknown)} in "
            f"{path / 'train'}: add or remove it"
        )
    train, train_labels = _read_pictures(path, _training_files(path / "train", class_names))
    test_files = _files(test_side, class_names)
    if not any(test_files):
        raise ValueError(f"expected pictures in the class folders of {test_side}, got none: add some")
    test, test_labels = _read_pictures(path, test_files)
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
        # Pillow warns of what it can repair, such as a camera's broken notes, and of sizes refused below
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
            pixels = picture.width * picture.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
            tile_width, tile_height = (getattr(picture, "tag_v2", {}).get(tag, 0) for tag in (322, 323))
            if tile_width * tile_height > max(pixels, MAX_TILE):
                raise ValueError(
                    f"tiles of {tile_width} x {tile_height} pixels are more than the picture and {MAX_TILE}"
                )
            return picture_array(picture)
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(
            f"expected a readable picture of at most {MAX_PIXELS} pixels at {str(path)!r}, got an error "
            f"({cause_of(error)}): repair or remove the file"
        ) from error


def _class_folders(path: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise ValueError(f"expected one sub-folder per class in {path}, got none: put each class's images in one")
    unreadable = [name for name in names if CONTROL.search(name)]
    if unreadable:
        raise ValueError(f"expected class folders with plain names in {path}, got {unreadable[0]!r}: rename it")
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
            f"expected pictures directly in the class folders of {path}, got only sub-folders in all of them "
            f"({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''}): name the splits train and test "
            "or val, or move the pictures up"
        )
    return files


def _training_files(path: Path, class_names: tuple[str, ...]) -> list[list[Path]]:
    files = _files(path, class_names)
    for name, of_class in zip(class_names, files, strict=True):
        if not of_class:
            raise ValueError(
                f"expected pictures ({', '.join(sorted(SUFFIXES))}) in {path / name}, got none: "
                "add some or remove the folder"
            )
    return files


def _read_pictures(path: Path, files: list[list[Path]]) -> tuple[npt.NDArray[Any], list[int]]:
    inside = path.resolve()
    for file in (file for of_class in files for file in of_class):
        if not file.resolve().is_relative_to(inside):
            raise ValueError(
                f"expected files that lie in {path}, got {str(file)!r}, a link to {str(file.resolve())!r}: copy or "
                "hard-link it into the folder"
            )
    images = stack_pictures((repr(str(file)), read_picture(file)) for of_class in files for file in of_class)
    return images, [label for label, of_class in enumerate(files) for _ in of_class]
