from __future__ import annotations

import pytest
import torch

from fastdistill.data.class_index import class_index
from fastdistill.data.sampler import class_batches, distinct_positions, effective_batch
from fastdistill.draws import Purpose

SIZES = (31, 7, 120, 16)
LABELS = torch.cat([torch.full((size,), label) for label, size in enumerate(SIZES)])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]
INDEX = class_index(LABELS, len(SIZES))


def fisher_yates(draws: list[float], size: int) -> list[int]:
    """The textbook shuffle, one swap after another, stopped after the first B positions."""
    values = list(range(size))
    for position, draw in enumerate(draws):
        target = position + int(draw * (size - position))
        values[position], values[target] = values[target], values[position]
    return values[: len(draws)]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17, 64])
@pytest.mark.parametrize("spare", [0, 1, 5, 1000])
def test_positions_equal_the_sequential_shuffle(batch: int, spare: int) -> None:
    draws = torch.rand(6, 4, batch, generator=torch.Generator().manual_seed(batch))
    sizes = batch + spare * torch.arange(4)
    positions = distinct_positions(draws, sizes)
    assert positions.shape == (6, 4, batch)
    for student in range(6):
        for label in range(4):
            expected = fisher_yates(draws[student, label].tolist(), int(sizes[label]))
            assert positions[student, label].tolist() == expected


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24], ids=["smallest", "largest"])
def test_extreme_draws_stay_in_range(value: float) -> None:
    draws = torch.full((1, 9), value)
    for size in (9, 10, 1_000_003, 2**24 + 1):
        positions = distinct_positions(draws, torch.tensor([size]))[0].tolist()
        assert positions == fisher_yates(draws[0].tolist(), size) if size < 100 else len(set(positions)) == 9
        assert min(positions) >= 0 and max(positions) < size


def test_every_ordered_choice_is_equally_likely() -> None:
    index = class_index(torch.zeros(4, dtype=torch.int64), 1)
    picks = class_batches(index, seed=3, step=0, students=torch.arange(12_000), batch=2)[:, 0]
    counts = torch.bincount(picks[:, 0] * 4 + picks[:, 1], minlength=16).view(4, 4)
    assert counts.diagonal().sum() == 0
    # 1000 expected for each of the 12 pairs with a standard deviation of 30
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 1000).abs().max() < 150


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_batches_are_distinct_images_of_their_class(batch: int) -> None:
    picks = class_batches(INDEX, seed=1, step=2, students=torch.tensor([5, 0, 9]), batch=batch)
    assert picks.shape == (3, 4, batch)
    assert picks.dtype == torch.int64
    for student in range(3):
        for label in range(4):
            chosen = picks[student, label]
            assert LABELS[chosen].unique().tolist() == [label]
            assert len(chosen.unique()) == batch


def test_a_student_is_drawn_alike_in_any_company() -> None:
    together = class_batches(INDEX, seed=1, step=2, students=torch.arange(8), batch=6)
    for students in ([3], [7, 3, 0], [3, 100, 4]):
        picks = class_batches(INDEX, seed=1, step=2, students=torch.tensor(students), batch=6)
        for row, student in enumerate(students):
            if student < 8:
                assert torch.equal(picks[row], together[student])


def test_seed_step_student_and_purpose_all_matter() -> None:
    def picks(seed: int = 1, step: int = 2, student: int = 3, purpose: Purpose = Purpose.REAL_BATCH) -> tuple[int, ...]:
        students = torch.tensor([student])
        return tuple(
            class_batches(INDEX, seed=seed, step=step, students=students, batch=6, purpose=purpose).flatten().tolist()
        )

    variants = [picks(), picks(seed=2), picks(step=3), picks(student=4), picks(purpose=Purpose.RANDOM_REAL)]
    assert len(set(variants)) == 5
    assert picks() == variants[0]


def test_a_whole_class_is_a_permutation() -> None:
    picks = class_batches(INDEX, seed=0, step=0, students=torch.arange(3), batch=7)
    for student in range(3):
        assert picks[student, 1].sort().values.tolist() == INDEX.of_class(1).tolist()


def test_effective_batch_is_bounded_by_the_smallest_class() -> None:
    assert effective_batch(SIZES, 4) == 4
    assert effective_batch(SIZES, 7) == 7
    assert effective_batch(SIZES, 256) == 7


def test_too_large_batches_and_empty_classes_are_refused() -> None:
    students = torch.arange(2)
    with pytest.raises(ValueError, match=r"the 8 .*, got 7 in class 1: ask for effective_batch\(class_sizes, 8\)"):
        class_batches(INDEX, seed=0, step=0, students=students, batch=8)
    with pytest.raises(ValueError, match="B >= 1"):
        class_batches(INDEX, seed=0, step=0, students=students, batch=0)
    with pytest.raises(ValueError, match="an image in every class"):
        effective_batch((3, 0), 1)
