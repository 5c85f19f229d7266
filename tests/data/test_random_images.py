import pytest
import torch

from fastdistill.data.random_images import SHAPES, random_data
from fastdistill.data.sources import load_source


def test_random_images_have_the_shape_and_number_of_the_data_set():
    real, found = load_source("digits"), random_data("digits")
    assert found.train.shape == real.train.shape
    assert found.train.num_classes == real.train.num_classes
    assert (len(found.train), len(found.test)) == (len(real.train), len(real.test))
    assert found.train.images.dtype == real.train.images.dtype
    assert found.train.normalization == found.test.normalization
    assert not torch.equal(found.train.images, real.train.images)


def test_they_are_the_same_every_time():
    assert torch.equal(random_data("digits").train.images, random_data("digits").train.images)


def test_they_can_be_whitened():
    assert random_data("digits", zca=True).train.normalization.whitening is not None
    assert random_data("digits").train.normalization.whitening is None


def test_a_data_set_of_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="expected a data set of known shape"):
        random_data("folder:pictures")
    assert "folder:pictures" not in SHAPES
