from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from fastdistill.data import zca
from fastdistill.data.zca import Whitening, fit_zca, unwhiten, whiten


def dense_zca(pixels: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, (cov + εI)^-½ and (cov + εI)^½ in float64 by a general matrix square root."""
    covariance = np.cov(pixels.numpy(), rowvar=False)
    root = torch.from_numpy(scipy.linalg.sqrtm(covariance + epsilon * np.eye(len(covariance))))
    return pixels.mean(0), torch.linalg.inv(root), root


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_fit_equals_dense_float64(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zca, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 4, 3), dtype=torch.uint8, generator=generator)
    images[:, 1, 2] = 9  # constant pixels have a singular covariance
    pixels = images.double() / 255
    if kind == "float32":
        images = pixels.float()
        pixels = images.double()
    fitted = fit_zca(images)
    mean, matrix, inverse = dense_zca(pixels.flatten(1), 0.1)
    assert all(tensor.dtype == torch.float32 for tensor in (fitted.mean, fitted.matrix, fitted.inverse))
    for ours, truth in ((fitted.mean, mean), (fitted.matrix, matrix), (fitted.inverse, inverse)):
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=3e-7)


def test_whitened_covariance_is_the_regularised_identity() -> None:
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(400, 1, 3, 3, generator=generator) * 30).cumsum(-1)
    whitened = whiten(images.double(), fit_zca(images, epsilon=1e-3))
    covariance = torch.cov(whitened.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(9, dtype=torch.float64), rtol=0, atol=2e-4)


def test_unwhiten_inverts_whiten_with_leading_axes() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(60, 2, 3, 4, generator=generator)
    fitted = fit_zca(images)
    batch = images.view(3, 4, 5, 2, 3, 4)
    whitened = whiten(batch, fitted)
    assert whitened.shape == batch.shape
    torch.testing.assert_close(whitened[1, 2, 3], whiten(batch[1, 2, 3], fitted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unwhiten(whitened, fitted), batch, rtol=0, atol=2e-6)


def test_refuses_too_few_images_and_mismatched_tensors() -> None:
    with pytest.raises(ValueError, match="at least 2 training images"):
        fit_zca(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="positive epsilon"):
        fit_zca(torch.zeros(5, 1, 2, 2), epsilon=0)
    with pytest.raises(ValueError, match=r"two matrices \[d, d\]"):
        Whitening(mean=torch.zeros(4), matrix=torch.eye(4), inverse=torch.eye(3))
