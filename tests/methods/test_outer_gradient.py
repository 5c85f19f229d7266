"""How students' derivatives become every run's gradient, against sums written out."""

import pytest
import torch

from fastdistill.methods.outer_gradient import (
    gathered,
    masked,
    per_finite_student,
    runs_of,
    summed_per_run,
)
from fastdistill.students.ensemble import Students

RUNS, PER_RUN = 3, 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def students():
    count = RUNS * PER_RUN
    return Students(indices=torch.arange(count), weights=random(count, 4), buffers={})


def gather(chunk, images, rates, loss):
    """The gradients of given derivatives, and the chunks that were asked for."""
    asked = []
    learned = {"images": random(RUNS, 2, 1, 3, 3, seed=1), "rates": random(RUNS, 5, seed=2)}

    def cotangents(part, start):
        asked.append((start, part.indices.tolist()))
        some = slice(start, start + len(part.indices))
        return {"images": images[some], "rates": rates[some]}, loss[some]

    return gathered(learned, students(), chunk, PER_RUN, cotangents), asked


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 100])
def test_every_run_has_the_mean_of_its_own_students(chunk):
    images, rates, loss = random(6, 2, 1, 3, 3, seed=3), random(6, 5, seed=4), random(6, seed=5)
    found, asked = gather(chunk, images, rates, loss)
    assert asked == [(start, list(range(start, min(start + chunk, 6)))) for start in range(0, 6, chunk)]
    assert torch.equal(found.loss, loss) and found.finite.all()
    for name, each in (("images", images), ("rates", rates)):
        expected = each.unflatten(0, (RUNS, PER_RUN)).mean(1)
        assert torch.allclose(found.gradients[name], expected, rtol=1e-14)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("broken", ["images", "rates", "loss"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_student_that_is_not_finite_anywhere_counts_for_nothing(chunk, broken, value):
    given = {"images": random(6, 2, 1, 3, 3, seed=3), "rates": random(6, 5, seed=4), "loss": random(6, seed=5)}
    whole, _ = gather(chunk, **given)
    given[broken][3].view(-1)[0] = value  # of the second run
    found, _ = gather(chunk, **given)
    assert found.finite.tolist() == [True, True, True, False, True, True]
    for name in ("images", "rates"):
        assert torch.equal(found.gradients[name][[0, 2]], whole.gradients[name][[0, 2]])
        assert torch.equal(found.gradients[name][1], given[name][2])


def test_a_run_without_a_finite_student_has_no_gradient():
    loss = random(6, seed=5)
    loss[:2] = torch.nan
    found, _ = gather(100, random(6, 2, 1, 3, 3, seed=3), random(6, 5, seed=4), loss)
    assert not found.gradients["images"][0].any() and not found.gradients["rates"][0].any()
    assert found.gradients["images"][1:].any(dim=(1, 2, 3, 4)).all()


def test_what_nobody_derives_has_no_gradient():
    learned = {"images": random(1, 2), "labels": random(1, 3)}
    two = Students(indices=torch.arange(2), weights=random(2, 4), buffers={})
    found = gathered(learned, two, 2, 2, lambda part, start: ({"images": random(2, 2)}, random(2, seed=1)))
    assert found.gradients["images"].any() and not found.gradients["labels"].any()
    assert (found.values, found.carried) == ({}, {})


def test_students_belong_to_consecutive_runs():
    assert runs_of(0, 6, 2) == [(0, 2), (1, 2), (2, 2)]
    assert runs_of(1, 4, 2) == [(0, 1), (1, 2), (2, 1)]
    assert runs_of(5, 1, 4) == [(1, 1)]
    assert runs_of(3, 0, 2) == []


def test_sums_are_of_each_runs_students():
    values = random(3, 2, 4)
    found = summed_per_run(values, 1, 3, 2)
    assert torch.equal(found[0], values[0]) and torch.equal(found[1], values[1:].sum(0)) and not found[2].any()


def test_means_count_the_finite_students():
    total, finite = random(2, 3, 4), torch.tensor([True, False, True, False, False, False])
    found = per_finite_student(total, finite, 3)
    assert torch.equal(found[0], total[0] / 2) and torch.equal(found[1], total[1])


def test_masking_hides_what_is_not_finite():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
    assert masked(values, torch.tensor([True, False])).tolist() == [[1.0, 2.0], [0.0, 0.0]]
