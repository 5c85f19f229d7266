from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdistill.data.arrays import from_arrays
from fastdistill.data.datasets import from_dataset

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 5, 6, 3), dtype=np.uint8)
LABELS = [0, 1, 2] * 3


class Pairs:
    def __init__(self, images: Any, labels: Any) -> None:
        self.images = images
        self.labels = labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.images[index], self.labels[index]


@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(pixels) for pixels in PIXELS],
        list(PIXELS),
        list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)),
    ],
    ids=["pillow", "array", "tensor"],
)
@pytest.mark.parametrize("labels", [LABELS, np.array(LABELS), torch.tensor(LABELS)], ids=["int", "numpy", "torch"])
def test_every_kind_of_item_gives_the_same_store(images: Any, labels: Any) -> None:
    dataset = Pairs(images, labels)
    data = from_dataset(dataset)
    expected = from_arrays(PIXELS, LABELS)
    assert torch.equal(data.images, expected.images)
    assert torch.equal(data.labels, expected.labels)
    assert dataset.reads == len(images)


def test_torch_datasets_and_grey_pictures() -> None:
    tensors = torch.utils.data.TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 2)
    data = from_dataset(tensors)
    assert torch.equal(data.images, tensors.tensors[0])
    assert from_dataset(Pairs([Image.new("L", (4, 3), grey) for grey in (7, 9)], [0, 1])).shape == (1, 3, 4)
    mixed = [Image.new("L", (4, 3), 7), Image.new("RGB", (4, 3), (1, 2, 3))]
    assert from_dataset(Pairs(mixed, [0, 1])).images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_class_names_come_from_the_data_set_unless_given() -> None:
    dataset = Pairs(list(PIXELS), LABELS)
    dataset.classes = ["ant", "bee", "cat"]  # type: ignore[attr-defined]
    assert from_dataset(dataset).class_names == ("ant", "bee", "cat")
    assert from_dataset(dataset, class_names=("x", "y", "z")).class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([]), "a length and an .* pair at every index, got list_iterator"),
        ([PIXELS[0], PIXELS[1]], "expected an image and an integer label, got item 0 of the data set"),
        (Pairs(PIXELS[:2], [0, 0.5]), "item 1 of the data set"),
        (Pairs([PIXELS[0], "picture"], [0, 1]), "item 1 of the data set"),
        (Pairs([Image.new("F", (3, 3))], [0]), "item 0 .* got Pillow mode F"),
        (Pairs([PIXELS[0], PIXELS[1][:4]], [0, 1]), r"image 0 of \(5, 6, 3\) and image 1 of \(4, 6, 3\)"),
        (Pairs([], []), "at least one image, got none"),
        (Pairs(list(PIXELS[:2]), [0, 2]), r"first \[1\]"),
    ],
)
def test_impossible_data_sets_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dataset(dataset)
