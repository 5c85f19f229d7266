from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdistill.data.normalization import Normalization, zca_normalization
from fastdistill.data.store import ImageStore

MEAN, STD = (0.3, 0.5, 0.7), (0.2, 0.4, 0.9)


def store(*, whitened: bool = False, floats: bool = False) -> ImageStore:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 4, 5), dtype=torch.uint8, generator=generator)
    if floats:
        images = images.float() * 0.01 - 3
    normalization = zca_normalization(images) if whitened else Normalization(mean=MEAN, std=STD)
    labels = torch.arange(40).flip(0) % 4
    return ImageStore(images=images, labels=labels, class_names=("a", "b", "c", "d"), normalization=normalization)


def textbook(data: ImageStore, index: int) -> torch.Tensor:
    """One normalised image in float64, channel by channel or by one matrix product."""
    pixels = data.images[index].double() / (255 if data.images.dtype == torch.uint8 else 1)
    whitening = data.normalization.whitening
    if whitening is not None:
        flat = (pixels.flatten() - whitening.mean.double()) @ whitening.matrix.double()
        return flat.view(pixels.shape)
    return torch.stack([(pixels[c] - MEAN[c]) / STD[c] for c in range(3)])


INDICES = torch.tensor([[[3, 39], [3, 0]], [[7, 8], [9, 9]]])


@pytest.mark.parametrize("whitened", [False, True], ids=["mean-std", "zca"])
@pytest.mark.parametrize("floats", [False, True], ids=["uint8", "float32"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 5e-3)], ids=str
)
def test_batch_equals_the_textbook(whitened: bool, floats: bool, dtype: torch.dtype, tolerance: float) -> None:
    data = store(whitened=whitened, floats=floats)
    before = data.images.clone()
    batch = data.batch(INDICES, dtype)
    assert batch.shape == (2, 2, 2, 3, 4, 5)
    assert batch.dtype == dtype
    truth = torch.stack([textbook(data, int(index)) for index in INDICES.flatten()]).view(batch.shape)
    assert (batch.double() - truth).norm() <= tolerance * truth.norm()
    assert torch.equal(data.images, before)


@pytest.mark.parametrize("whitened", [False, True], ids=["mean-std", "zca"])
@pytest.mark.parametrize("floats", [False, True], ids=["uint8", "float32"])
def test_inverting_the_normalisation_returns_the_pixels(whitened: bool, floats: bool) -> None:
    data = store(whitened=whitened, floats=floats)
    pixels = data.images[INDICES].double() / (1 if floats else 255)
    back = data.normalization.invert(data.batch(INDICES, torch.float64))
    # the two float32 matrices of ZCA are inverse to each other to float32 only
    assert (back - pixels).norm() <= (2e-5 if whitened else 1e-14) * pixels.norm()


def test_inverting_the_normalisation_is_differentiable() -> None:
    images = torch.zeros(2, 3, 4, 5, requires_grad=True)
    store().normalization.invert(images).sum().backward()
    assert images.grad is not None
    assert images.grad[0, :, 0, 0].tolist() == pytest.approx(STD)


def test_classes_and_sizes() -> None:
    data = store()
    assert (len(data), data.num_classes, data.shape) == (40, 4, (3, 4, 5))
    assert data.class_sizes == (10, 10, 10, 10)
    assert data.class_indices(3).tolist() == list(range(0, 40, 4))
    assert data.labels[data.class_indices(1)].unique().tolist() == [1]


def test_subset_keeps_classes_and_normalisation() -> None:
    data = store()
    part = data.subset(data.class_indices(2)[:3])
    assert part.class_sizes == (0, 0, 3, 0)
    assert part.class_names == data.class_names
    assert torch.equal(part.batch(torch.arange(3)), data.batch(data.class_indices(2)[:3]))
    assert len(data.subset(torch.zeros(0, dtype=torch.int64))) == 0


def test_to_moves_whitening_too() -> None:
    data = store(whitened=True)
    moved = data.to("cpu")
    assert torch.equal(moved.batch(INDICES), data.batch(INDICES))
    assert moved.normalization.whitening is not None
    assert data.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(40, 4, 5)}, "uint8 or float32 images"),
        ({"images": torch.zeros(40, 3, 4, 5, dtype=torch.float64)}, "uint8 or float32 images"),
        ({"labels": torch.zeros(39, dtype=torch.int64)}, r"int64 labels \[40\]"),
        ({"labels": torch.zeros(40)}, r"int64 labels \[40\]"),
        ({"labels": torch.zeros(40, dtype=torch.int64, device="meta")}, "labels beside the images on cpu, got meta"),
        ({"labels": torch.full((40,), 4)}, r"in 0 \.\. 3, got 4 \.\. 4"),
        ({"labels": torch.full((40,), -1)}, r"in 0 \.\. 3, got -1 \.\. -1"),
        (
            {"normalization": Normalization(mean=(0.0,), std=(1.0,))},
            r"as many normalisation values .*, 3, got 1",
        ),
        ({"normalization": zca_normalization(torch.rand(9, 3, 2, 2))}, "expected a ZCA of 60 values"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    data = store()
    parts: dict[str, Any] = {name: getattr(data, name) for name in ("images", "labels", "class_names", "normalization")}
    with pytest.raises(ValueError, match=message):
        ImageStore(**(parts | change))
