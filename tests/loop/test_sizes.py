import pytest
import torch

from fastdistill.config import RunConfig
from fastdistill.data.sources import load_source
from fastdistill.data.split import stratified_split
from fastdistill.loop.sizes import Sizes, Unseen


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def test_the_split_is_that_of_the_run(digits):
    kept, held_out = stratified_split(digits.train.labels, 0.3, 0)
    sizes = Sizes.of(digits)
    assert sizes.split(0.3) == (digits.train.subset(kept).class_sizes, len(held_out))


def test_bytes_are_those_of_the_store(digits):
    train, sizes = digits.train, Sizes.of(digits)
    held = train.images.nbytes + train.labels.nbytes + train.class_index.order.nbytes
    assert sizes.stored(len(train)) == held
    assert sizes.test == len(digits.test)


def test_images_without_values_have_every_shape(digits):
    sizes = Sizes.of(digits)
    unseen = Unseen.of(RunConfig(), sizes, sizes.classes)
    assert (len(unseen), unseen.shape, unseen.class_sizes) == (len(digits.train), (1, 8, 8), digits.train.class_sizes)
    assert unseen.batch(torch.empty(2, 3, dtype=torch.int64, device="meta")).shape == (2, 3, 1, 8, 8)
