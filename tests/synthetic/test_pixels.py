import pytest
import torch

from fastdistill.data.arrays import from_arrays
from fastdistill.synthetic.pixels import initial_pixels


def store():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return from_arrays(images, torch.arange(30) % 3)


def draw(kind, runs=2, seed=0, ipc=2):
    return initial_pixels(store(), kind, ipc=ipc, runs=runs, seed=seed, dtype=torch.float64)


def test_noise_is_standard_normal_and_keyed_by_run():
    images = draw("noise", runs=200)
    assert images.shape == (200, 3, 2, 1, 4, 4)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    assert torch.equal(draw("noise", runs=2), images[:2])
    assert not torch.equal(images[0], images[1])


def test_real_images_are_distinct_members_of_their_class():
    data = store()
    normalized = data.batch(torch.arange(30), torch.float64)
    for run in draw("real"):
        for label, group in enumerate(run):
            found = [int((normalized == image).flatten(1).all(1).nonzero()) for image in group]
            assert len(set(found)) == 2
            assert all(int(data.labels[index]) == label for index in found)


def test_too_many_real_images_are_refused():
    with pytest.raises(ValueError, match="expected at least 11 training images in every class"):
        draw("real", ipc=11)
    assert draw("noise", ipc=11).shape[2] == 11
