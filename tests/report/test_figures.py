from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdistill.report.figures import image_grid, save_picture

WHITE = (255, 255, 255)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def cells(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (both past the end) of everything of a colour."""
    rows, columns = np.nonzero((pixels(picture) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def flat(*colours: tuple[float, ...], size: int = 8) -> torch.Tensor:
    """One image [D, size, size] per colour."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, size, size)


def test_classes_are_rows_and_images_are_columns_in_their_order() -> None:
    images = flat((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    picture = image_grid(images, torch.tensor([1, 0, 1, 0]))
    green, yellow = cells(picture, (0, 255, 0)), cells(picture, (255, 255, 0))
    red, blue = cells(picture, (255, 0, 0)), cells(picture, (0, 0, 255))
    left = green[0]
    # 8 pixels are enlarged tenfold; 2 pixels lie between images
    assert green == (left, 0, left + 80, 80) and yellow == (left + 82, 0, left + 162, 80)
    assert red == (left, 82, left + 80, 162) and blue == (left + 82, 82, left + 162, 162)
    assert picture.size == (left + 162, 162) and 0 < left < 40


def test_a_pixel_becomes_a_square_and_keeps_its_value() -> None:
    image = torch.arange(64).reshape(1, 1, 8, 8) / 255
    picture = pixels(image_grid(image, torch.tensor([0])))
    sheet = picture[:, -80:]
    assert sheet.shape == (80, 80, 3)
    expected = np.arange(64).reshape(8, 8).repeat(10, 0).repeat(10, 1)
    assert (sheet == expected[..., None]).all()


def test_values_are_clamped_to_the_fixed_range() -> None:
    image = torch.tensor([[-3.0, 0.5], [7.0, math.nan]]).reshape(1, 1, 2, 2)
    sheet = pixels(image_grid(image, torch.tensor([0])))[:, -80:, 0]
    assert [sheet[0, 0], sheet[0, -1], sheet[-1, 0], sheet[-1, -1]] == [0, 128, 255, 0]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((0.2,), (51, 51, 51)),
        ((0.2, 0.6), (102, 102, 102)),
        ((0.2, 0.4, 0.6), (51, 102, 153)),
        ((0.2, 0.4, 0.6, 0.0, 1.0), (51, 102, 153)),
    ],
)
def test_other_numbers_of_channels_are_shown(channels: tuple[float, ...], expected: tuple[int, int, int]) -> None:
    assert tuple(pixels(image_grid(flat(channels), torch.tensor([0])))[0, -1]) == expected


@pytest.mark.parametrize(
    ("size", "enlarged"), [(8, 80), (28, 84), (32, 64), (64, 64), (128, 128)], ids=lambda size: str(size)
)
def test_images_are_enlarged_by_a_whole_factor(size: int, enlarged: int) -> None:
    picture = image_grid(flat((0.0,), size=size), torch.tensor([0]))
    _, top, right, bottom = cells(picture, (0, 0, 0))
    assert picture.height == bottom - top == enlarged
    assert (pixels(picture)[:, -enlarged:] == 0).all() and right == picture.width


def test_a_long_row_shrinks_until_the_sheet_fits() -> None:
    picture = image_grid(torch.zeros(500, 1, 28, 28), torch.arange(10).repeat_interleave(50))
    assert picture.height == 10 * (28 + 2) - 2
    assert 50 * 30 < picture.width <= 2000
    assert (pixels(picture)[:, -1] == 0).any()


def test_many_classes_of_few_images_fold_into_panels() -> None:
    images = torch.zeros(100, 3, 32, 32)
    images[99, 1] = 1
    picture = image_grid(images, torch.arange(100))
    assert picture.width <= 2000 and 1 < picture.width / picture.height < 4
    left, top, right, bottom = cells(picture, (0, 255, 0))
    assert (right, bottom) == picture.size and (right - left, bottom - top) == (64, 64)


def test_few_runs_stand_beside_each_other_in_the_row_of_their_class() -> None:
    first, second = flat((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), flat((0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    picture = image_grid(torch.stack([first, second]), torch.tensor([0, 0]))
    spans = [cells(picture, colour)[::2] for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))]
    left = spans[0][0]
    # a wider gap parts the runs
    assert spans == [(left + at, left + at + 80) for at in (0, 82, 172, 254)]
    assert picture.height == 80


def test_large_runs_stand_below_each_other() -> None:
    images = torch.zeros(3, 200, 3, 28, 28)
    images[2, :, 1] = 1
    picture = image_grid(images, torch.arange(10).repeat_interleave(20))
    one = image_grid(images[0], torch.arange(10).repeat_interleave(20))
    assert picture.size == (one.width, 3 * one.height + 2 * 24)
    assert (pixels(picture.crop((0, 0, *one.size))) == pixels(one)).all()
    assert cells(picture, (0, 255, 0))[1] == 2 * (one.height + 24)


def test_class_names_stand_at_the_left() -> None:
    images, labels = flat((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)), torch.tensor([0, 1])
    short, long = (image_grid(images, labels, class_names=names) for names in (("a", "b"), ("a", "a long name")))
    assert cells(long, (255, 0, 0))[0] > cells(short, (255, 0, 0))[0]
    margin = pixels(long)[:, : cells(long, (255, 0, 0))[0]]
    assert (margin[:80] < 255).any() and (margin[82:] < 255).any()
    longest = image_grid(images, labels, class_names=("a", "a name that\nhas no end " * 9))
    assert longest.width < 400


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 2)])
def test_images_with_soft_labels_stand_in_the_order_of_the_classes(shape: tuple[int, ...]) -> None:
    images = torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.rand(shape, generator=torch.Generator().manual_seed(1))  # the largest entries are anywhere
    found = image_grid(images, rows, class_names=("x", "y"))
    assert (pixels(found) == pixels(image_grid(images, torch.tensor([0, 0, 1, 1]), class_names=("x", "y")))).all()
    with pytest.raises(ValueError, match=r"got \[3, 3, 1, 8, 8\] and .*: give every image one label"):
        image_grid(images[:, :3], rows)


def test_what_is_not_a_set_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \[N\], got \[2, 1, 4, 4\] and \[3\]: give every image one label"):
        image_grid(torch.zeros(2, 1, 4, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \[0, 1, 4, 4\]"):
        image_grid(torch.zeros(0, 1, 4, 4), torch.zeros(0))
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got torch.uint8: divide bytes by 255"):
        image_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2))


def test_images_with_a_graph_and_of_half_precision_are_drawn() -> None:
    images = torch.full((1, 1, 8, 8), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert pixels(image_grid(images, torch.tensor([0])))[0, -1].tolist() == [128, 128, 128]


def test_a_saved_sheet_is_the_sheet(tmp_path: Path) -> None:
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
    save_picture(tmp_path / "images.png", image_grid(images, labels, class_names=("x", "y")))
    with Image.open(tmp_path / "images.png") as saved:
        assert (pixels(saved) == pixels(image_grid(images, labels, class_names=("x", "y")))).all()
    assert [path.name for path in tmp_path.iterdir()] == ["images.png"]


def test_figures_import_neither_torch_nor_matplotlib() -> None:
    code = "import sys, fastdistill.report.figures; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
