"""Reflect, crop and mirror, image by image, by numpy."""

import numpy as np
import pytest
import torch

from fastdistill.augmentation.pad_crop_flip import pad_crop_flip
from fastdistill.draws import Purpose, uniform


def pictures(students=3, count=5, size=(8, 10)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(students, count, 2, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 10), (32, 32), (5, 5)])
def test_every_image_is_reflected_cropped_and_mirrored_by_its_draw(size):
    images, students = pictures(size=size), torch.tensor([4, 0, 7])
    found = pad_crop_flip(images, seed=3, step=11, students=students)
    numbers = uniform(3, Purpose.AUGMENTATION, 11, students, 15).view(3, 5, 3)
    for k in range(3):
        for i in range(5):
            top, left = (int(9 * number) for number in numbers[k, i, :2])
            padded = np.pad(images[k, i].numpy(), [(0, 0), (4, 4), (4, 4)], mode="reflect")
            expected = padded[:, top : top + size[0], left : left + size[1]]
            assert np.array_equal(found[k, i], expected[..., ::-1] if numbers[k, i, 2] < 0.5 else expected)


def test_all_places_and_both_ways_are_drawn_alike():
    # an image that says where each pixel comes from
    image = torch.arange(32.0 * 32).view(1, 1, 1, 32, 32).expand(1, 4000, 1, 32, 32)
    found = pad_crop_flip(image, seed=0, step=0, students=torch.zeros(1, dtype=torch.int64))[0, :, 0]
    middle = found[:, 16, 16].long()
    rows, columns = middle // 32 - 16, middle % 32
    mirrored = found[:, 16, 17] < found[:, 16, 16]
    assert abs(float(mirrored.double().mean()) - 0.5) < 0.03
    assert rows.unique().tolist() == list(range(-4, 5))
    assert (rows + 4).bincount().min() > 350  # of 444 expected
    shifts = torch.where(mirrored, columns - 15, columns - 16)
    assert shifts.unique().tolist() == list(range(-4, 5))


def test_a_student_draws_the_same_in_any_batch_and_other_steps_others():
    images = pictures().expand(-1, 5, -1, -1, -1)
    whole = pad_crop_flip(images, seed=1, step=2, students=torch.arange(3))
    assert torch.equal(pad_crop_flip(images[1:2], seed=1, step=2, students=torch.tensor([1])), whole[1:2])
    assert not torch.equal(pad_crop_flip(images, seed=1, step=3, students=torch.arange(3)), whole)


def test_images_too_small_to_be_reflected_are_refused():
    with pytest.raises(ValueError, match=r"^expected images of more than 4 pixels a side .*, got 4×8: choose another "):
        pad_crop_flip(pictures(size=(4, 8)), seed=0, step=0, students=torch.arange(3))
