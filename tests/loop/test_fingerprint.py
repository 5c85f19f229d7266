"""Any change of the real images is noticed."""

from dataclasses import replace

import pytest

from fastdistill.data.sources import load_source
from fastdistill.loop.fingerprint import data_hash


@pytest.fixture(scope="module")
def digits():
    return load_source("digits")


def test_equal_images_have_equal_hashes(digits):
    assert data_hash(digits) == data_hash(load_source("digits"))
    assert data_hash(load_source("digits", zca=True)) != data_hash(digits)


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_any_value_counts(digits, side, part):
    store = getattr(digits, side)
    changed = getattr(store, part).clone()
    changed[-1] = changed[-1] ^ 1
    assert data_hash(replace(digits, **{side: replace(store, **{part: changed})})) != data_hash(digits)
