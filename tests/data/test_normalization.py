from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdistill.data.normalization import Normalization, channel_normalization, zca_normalization
from fastdistill.data.zca import fit_zca, whiten


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_bytes_give_the_population_statistics_of_pixels_over_255() -> None:
    images = random_bytes(40, 3, 5, 4)
    pixels = images.double().numpy() / 255
    found = channel_normalization(images)
    assert np.allclose(found.mean, pixels.mean((0, 2, 3)), rtol=1e-13, atol=0)
    assert np.allclose(found.std, pixels.std((0, 2, 3)), rtol=1e-13, atol=0)


def test_floats_keep_their_unit() -> None:
    images = torch.randn(30, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * 40 + 1000
    found = channel_normalization(images)
    assert np.allclose(found.mean, images.double().numpy().mean((0, 2, 3)), rtol=1e-12, atol=0)
    assert np.allclose(found.std, images.double().numpy().std((0, 2, 3)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("images", [random_bytes(9, 2, 3, 3), torch.rand(9, 2, 3, 3)], ids=["uint8", "float32"])
def test_a_constant_channel_has_std_one(images: torch.Tensor) -> None:
    images[:, 1] = images[0, 1, 0, 0]
    found = channel_normalization(images)
    assert found.std[1] == 1
    assert 0 < found.std[0] < 1


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training image"):
        channel_normalization(torch.zeros(0, 1, 2, 2))


def test_zca_takes_the_place_of_mean_and_std() -> None:
    images = random_bytes(30, 2, 3, 3)
    found = zca_normalization(images)
    assert found.whitening is not None
    assert (found.mean, found.std) == ((0.0, 0.0), (1.0, 1.0))
    assert torch.equal(found.whitening.matrix, fit_zca(images).matrix)
    moved = found.to("meta").whitening
    assert moved is not None
    assert moved.matrix.device.type == moved.mean.device.type == moved.inverse.device.type == "meta"


@pytest.mark.parametrize(
    ("mean", "std"),
    [((), ()), ((0.1,), (1.0, 1.0)), ((0.1,), (0.0,)), ((0.1,), (-1.0,)), ((float("nan"),), (1.0,))],
)
def test_impossible_statistics_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one finite mean and one positive finite std per channel"):
        Normalization(mean=mean, std=std)


def test_zca_beside_statistics_is_refused() -> None:
    whitening = fit_zca(random_bytes(9, 1, 2, 2))
    with pytest.raises(ValueError, match="beside ZCA, which replaces them"):
        Normalization(mean=(0.5,), std=(1.0,), whitening=whitening)


def test_zca_of_constant_images_is_finite() -> None:
    images = torch.full((9, 2, 3, 3), 7, dtype=torch.uint8)
    whitening = zca_normalization(images).whitening
    assert whitening is not None
    assert whiten(images / 255, whitening).abs().max() < 1e-6
    assert whitening.matrix.isfinite().all() and whitening.inverse.isfinite().all()
