from __future__ import annotations

import torch

from fastdistill.data.class_index import class_index, one_class


def test_index_lists_every_class_in_ascending_order() -> None:
    labels = torch.randint(0, 5, (83,), generator=torch.Generator().manual_seed(0))
    labels[labels == 2] = 4  # an empty class in the middle
    index = class_index(labels, 7)  # and two at the end
    assert index.counts.tolist() == list(index.sizes)
    for label in range(7):
        expected = [position for position, value in enumerate(labels.tolist()) if value == label]
        assert index.of_class(label).tolist() == expected
        assert index.sizes[label] == len(expected)
        start = int(index.starts[label])
        assert index.order[start : start + len(expected)].tolist() == expected


def test_no_image_at_all() -> None:
    index = class_index(torch.zeros(0, dtype=torch.int64), 3)
    assert index.sizes == (0, 0, 0)
    assert index.of_class(1).shape == (0,)


def test_one_class_is_that_of_equal_labels() -> None:
    found, expected = one_class(5, torch.device("cpu")), class_index(torch.zeros(5, dtype=torch.int64), 1)
    assert found.sizes == expected.sizes
    for name in ("order", "starts", "counts"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
