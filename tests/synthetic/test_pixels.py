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


def test_uniform_numbers_are_keyed_by_run():
    images = draw("uniform", runs=200)
    assert images.shape == (200, 3, 2, 1, 4, 4)
    assert 0 <= images.min() < 0.001 and 0.999 < images.max() < 1
    assert abs(images.mean() - 0.5) < 0.01
    assert torch.equal(draw("uniform", runs=2), images[:2])
    assert not torch.equal(images[0], images[1])


def test_unit_noise_is_the_noise_with_every_image_at_length_one():
    noise, unit = draw("noise"), draw("unit")
    lengths = noise.flatten(3).norm(dim=3)
    assert torch.allclose(unit.flatten(3), noise.flatten(3) / lengths[..., None], rtol=1e-12)
    assert torch.allclose(unit.flatten(3).norm(dim=3), torch.ones(2, 3, 2, dtype=torch.float64), rtol=1e-12)
    assert lengths.std() > 0.1


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
