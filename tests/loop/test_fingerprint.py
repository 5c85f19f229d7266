"""Any change of the real images is noticed."""

from dataclasses import replace

import pytest

from fastdistill.data.sources import load_source
from fastdistill.data.split import stratified_split
from fastdistill.loop.fingerprint import data_hash, seen_hash


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


def test_what_is_held_out_is_not_seen(digits):
    assert seen_hash(digits, 0.0, 0) == data_hash(digits)
    hashes = {seen_hash(digits, fraction, seed) for fraction, seed in ((0.0, 0), (0.1, 0), (0.2, 0), (0.1, 1))}
    assert len(hashes) == 4
    assert seen_hash(digits, 0.1, 1) == seen_hash(load_source("digits"), 0.1, 1)
    _, held_out = stratified_split(digits.train.labels, 0.1, 0)
    images = digits.train.images.clone()
    images[held_out] = 0
    blind = replace(digits, train=replace(digits.train, images=images))
    assert seen_hash(blind, 0.1, 0) == seen_hash(digits, 0.1, 0)
    assert seen_hash(blind, 0.1, 1) != seen_hash(digits, 0.1, 1)


def test_the_last_bits_of_a_whitening_are_no_other_images(digits):
    whitened = load_source("digits", zca=True)
    statistics = whitened.train.normalization
    rounded = replace(statistics, whitening=replace(statistics.whitening, matrix=statistics.whitening.matrix * 1.0001))
    other = replace(whitened, train=replace(whitened.train, normalization=rounded))
    assert data_hash(other) != data_hash(whitened)
    assert seen_hash(other, 0.1, 0) == seen_hash(whitened, 0.1, 0)
