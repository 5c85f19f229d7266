from __future__ import annotations

import pytest
import torch

from fastdistill.data.split import stratified_split
from fastdistill.draws import Purpose

LABELS = torch.cat([torch.full((size,), label) for label, size in enumerate((100, 37, 3, 1, 0, 20))])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, [0, 0, 0, 0, 0, 0]),
        (0.1, [10, 4, 0, 0, 0, 2]),
        (0.29, [29, 11, 1, 0, 0, 6]),
        (0.99, [99, 36, 2, 0, 0, 19]),
    ],
)
def test_every_class_gives_its_share_and_keeps_one(fraction: float, expected: list[int]) -> None:
    training, validation = stratified_split(LABELS, fraction, 5)
    assert torch.bincount(LABELS[validation], minlength=6).tolist() == expected
    assert torch.cat([training, validation]).sort().values.tolist() == list(range(len(LABELS)))
    assert training.dtype == validation.dtype == torch.int64
    assert training.tolist() == sorted(training.tolist())
    assert validation.tolist() == sorted(validation.tolist())


def test_split_is_a_function_of_seed_and_purpose() -> None:
    def held_out(seed: int, purpose: Purpose = Purpose.VALIDATION_SPLIT) -> list[int]:
        return stratified_split(LABELS, 0.3, seed, purpose=purpose)[1].tolist()

    assert held_out(5) == held_out(5)
    assert held_out(5) != held_out(6)
    assert held_out(5) != held_out(5, Purpose.TEST_SPLIT)


def test_every_image_is_held_out_about_equally_often() -> None:
    labels = torch.arange(20) % 2
    counts = torch.zeros(20)
    for seed in range(1000):
        counts[stratified_split(labels, 0.3, seed)[1]] += 1
    assert counts.sum() == 6000
    # 300 expected each with a standard deviation of 14.5
    assert (counts - 300).abs().max() < 5 * 14.5


def test_no_image_and_impossible_fractions() -> None:
    training, validation = stratified_split(torch.zeros(0, dtype=torch.int64), 0.5, 0)
    assert len(training) == len(validation) == 0
    for fraction in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction in \[0, 1\)"):
            stratified_split(LABELS, fraction, 0)
