"""What students see and the way back from it, against autograd through the picking written out."""

import pytest
import torch

from fastdistill.methods.inner_batches import InnerBatches

RUNS, PER_RUN, CLASSES, IPC, STEPS, COUNT, SHAPE = 2, 2, 3, 4, 5, 6, (1, 3, 3)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(soft=False):
    values = {"images": random(RUNS, CLASSES, IPC, *SHAPE)}
    return {**values, "labels": random(RUNS, CLASSES, IPC, CLASSES, seed=1).abs()} if soft else values


def view(number, images):
    """Another view in every step, and of every student and image."""
    return (1 + number) * images.sin() * torch.arange(1.0, len(images) + 1).view(-1, 1, 1, 1, 1)


def orders(students, own):
    rows = [
        torch.randperm(CLASSES * IPC, generator=torch.Generator().manual_seed(seed))[:COUNT]
        for seed in range(STEPS * (students if own else 1))
    ]
    return torch.stack(rows).view(*([students] if own else []), STEPS, COUNT)


def seen(images, labels, runs, order, number, shown):
    """Images and labels of every student in a step, by a loop over students."""
    members = [order[number] if order.ndim == 2 else order[k, number] for k in range(len(runs))]
    picked = torch.stack([images[run].flatten(0, 1)[own] for run, own in zip(runs, members, strict=True)])
    rows = torch.stack([labels[run].flatten(0, 1)[own] for run, own in zip(runs, members, strict=True)])
    return (picked if shown is None else shown(number, picked)), rows


CASES = [
    pytest.param(runs, own, shown, soft, id=f"{name}-{'own' if own else 'common'}-{shown and 'view'}-{soft}")
    for name, runs in (("one", [1, 1, 1]), ("two", [0, 0, 1, 1]))
    for own in (False, True)
    for shown in (None, view)
    for soft in ("hard", "learned")
]


@pytest.mark.parametrize(("runs", "own", "shown", "soft"), CASES)
def test_cotangents_are_those_of_autograd(runs, own, shown, soft):
    runs = torch.tensor(runs)
    values, order = learned(soft == "learned"), orders(len(runs), own)
    hard = torch.arange(CLASSES).repeat_interleave(IPC)
    one = int(runs[0]) if len(runs.unique()) == 1 else None
    batches = InnerBatches(values, hard, runs, order, run=one, view=shown)
    assert batches.steps == STEPS
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    labels = leaves.get("labels", hard.view(1, CLASSES, IPC).expand(RUNS, -1, -1))
    total = torch.zeros(len(runs), dtype=torch.float64)
    for number in reversed(range(STEPS)):
        images, targets = batches(number)
        expected, rows = seen(leaves["images"], labels, runs, order, number, shown)
        assert torch.equal(images.expand_as(expected), expected)
        assert torch.equal(targets.expand_as(rows), rows)
        along, at = random(*expected.shape, seed=50 + number), random(*rows.shape, seed=80 + number)
        total = total + (along * expected).flatten(1).sum(1)
        if soft == "learned":
            total = total + (at * rows).flatten(1).sum(1)
            batches.pull(number, along, at)
        else:
            batches.pull(number, along)
    assert batches.found.keys() == values.keys()
    for k, run in enumerate(runs):
        expected = torch.autograd.grad(total[k], list(leaves.values()), retain_graph=True)
        for name, gradient in zip(leaves, expected, strict=True):
            found = batches.found[name][k]
            assert torch.allclose(found, gradient[run], rtol=1e-12, atol=1e-14), name
            assert found.any()


def test_what_all_students_share_has_no_student_axis():
    runs, hard = torch.tensor([1, 1, 1]), torch.arange(CLASSES).repeat_interleave(IPC)
    for soft in (False, True):
        images, labels = InnerBatches(learned(soft), hard, runs, orders(3, False), run=1)(0)
        assert images.shape == (COUNT, *SHAPE)
        assert labels.shape == ((COUNT, CLASSES) if soft else (COUNT,))
    images, labels = InnerBatches(learned(), hard, runs, orders(3, True), run=1)(0)
    assert (images.shape, labels.shape) == ((3, COUNT, *SHAPE), (3, COUNT))


def test_soft_labels_that_are_not_learned_are_every_students_own():
    runs, rows, order = torch.tensor([0, 0, 1]), random(3, CLASSES * IPC, CLASSES, seed=2), orders(3, True)
    batches = InnerBatches(learned(), rows, runs, order, run=None)
    for k in range(3):
        assert torch.equal(batches(2)[1][k], rows[k, order[k, 2]])
    common = InnerBatches(learned(), rows, runs, order[0], run=None)
    assert torch.equal(common(2)[1], rows[:, order[0, 2]])
    batches.pull(2, batches(2)[0])
    assert batches.found.keys() == {"images"}


def test_a_students_broken_cotangent_stays_its_own():
    runs, hard = torch.tensor([0, 0, 1]), torch.arange(CLASSES).repeat_interleave(IPC)
    batches = InnerBatches(learned(), hard, runs, orders(3, False), run=None, view=view)
    along = random(3, COUNT, *SHAPE, seed=4)
    along[1] = torch.nan
    batches.pull(0, along)
    finite = batches.found["images"].flatten(1).isfinite().all(1)
    assert finite.tolist() == [True, False, True]


def test_what_is_learned_is_looked_at_without_a_graph():
    values = {name: value.requires_grad_() for name, value in learned(True).items()}
    hard = torch.arange(CLASSES).repeat_interleave(IPC)
    batches = InnerBatches(values, hard, torch.tensor([0, 1]), orders(2, False), run=None, view=view)
    batches.pull(1, random(2, COUNT, *SHAPE), random(2, COUNT, CLASSES))
    assert not any(tensor.requires_grad for tensor in (*batches(1), *batches.found.values()))
