"""Bounds of the outer optimiser against the loops of the published codes."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from fastdistill.loop.descent import Adam, Momentum
from fastdistill.loop.limits import Limited

PLAIN = Momentum(rates={"images": 0.1, "labels": 0.1}, momentum=0.0)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(runs=2):
    return {"images": random(runs, 3, 2, 1, 4, 4, seed=0), "labels": random(runs, 3, 2, 3, seed=1).abs()}


def gradients(step, runs=2):
    """Mostly of one length, at times far longer; every run has its own."""
    length = 50.0 if step in (2, 5) else 1.0
    scale = torch.tensor([length, 1.0, 0.3], dtype=torch.float64)[:runs].view(-1, 1, 1, 1, 1, 1)
    return {
        "images": scale * random(runs, 3, 2, 1, 4, 4, seed=10 + step),
        "labels": random(runs, 3, 2, 3, seed=30 + step),
    }


def walk(descent, steps=8, runs=2):
    learned, every = start(runs), []
    moments = descent.start(learned)
    for step in range(steps):
        learned, moments = descent.step(learned, gradients(step, runs), moments, step)
        every.append((learned, moments))
    return every


def test_long_gradients_are_clipped_as_by_the_code_of_rat_bptt():
    """Its lines: update the running average by the gradient's length, then `clip_grad_norm_` to twice the average."""
    found = walk(Limited(descent=Adam(rate=0.01), factor=2.0))
    for run in range(2):
        images = start()["images"][run].requires_grad_()
        optimizer = torch.optim.Adam([images], lr=0.01)
        average, clipped = None, 0
        for step, (learned, _) in enumerate(found):
            images.grad = gradients(step)["images"][run].clone()
            length = float(images.grad.norm())
            average = length if average is None else average - 0.1 * (average - length)
            clipped += length > 2 * average
            clip_grad_norm_([images], 2 * average)
            optimizer.step()
            # its 1e-6 beside the length is the only difference
            assert torch.allclose(learned["images"][run], images, rtol=0, atol=1e-8)
            assert float(found[step][1]["images.average_norm"][run]) == pytest.approx(average, rel=1e-12)
        assert clipped == (2, 0)[run]


def test_a_gradient_is_never_longer_than_the_norm():
    before, every = start(), walk(Limited(descent=PLAIN, norm=3.0), steps=4)
    for step, (learned, _) in enumerate(every):
        way = before["images"] - learned["images"]
        for run, gradient in enumerate(gradients(step)["images"]):
            length = float(gradient.norm())
            assert torch.allclose(way[run], 0.1 * gradient * min(1, 3 / length), rtol=1e-12, atol=1e-15)
        before = learned
    assert {float(gradient.norm()) > 3 for step in range(4) for gradient in gradients(step)["images"]} == {True}


def test_short_gradients_and_other_names_keep_their_bits():
    free, bounded = walk(PLAIN), walk(Limited(descent=PLAIN, norm=1e6, factor=1e6))
    for (learned, _), (other, moments) in zip(free, bounded, strict=True):
        assert all(torch.equal(learned[name], other[name]) for name in learned)
        assert moments.keys() == {"images.velocity", "labels.velocity", "images.average_norm"}
    clipped = walk(Limited(descent=PLAIN, norm=0.1))
    assert not torch.equal(clipped[0][0]["images"], free[0][0]["images"])
    assert torch.equal(clipped[-1][0]["labels"], free[-1][0]["labels"])


def test_without_bounds_it_is_the_descent_itself():
    limited = Limited(descent=PLAIN)
    assert limited.start(start()).keys() == PLAIN.start(start()).keys()
    for (learned, moments), (expected, kept) in zip(walk(limited), walk(PLAIN), strict=True):
        assert all(torch.equal(learned[name], expected[name]) for name in learned)
        assert moments.keys() == kept.keys()


def test_values_stay_above_their_floor():
    free, floored = (walk(Limited(descent=PLAIN, floors=floors)) for floors in ({}, {"labels": 0.0}))
    assert float(free[-1][0]["labels"].min()) < 0
    assert all(float(learned["labels"].min()) == 0 for learned, _ in floored[3:])
    assert torch.equal(free[-1][0]["images"], floored[-1][0]["images"])


def test_a_run_is_bounded_as_it_would_be_alone():
    limited = Limited(descent=Adam(rate=0.1), factor=2.0, norm=20.0, floors={"labels": 0.0})
    learned, given = start(), gradients(2)
    moments = limited.start(learned)
    whole, after = limited.step(learned, given, moments, 1)
    for run in range(2):
        part = slice(run, run + 1)
        moved, kept = limited.step(
            *({name: t[part] for name, t in named.items()} for named in (learned, given, moments)), 1
        )
        assert all(torch.equal(whole[name][part], moved[name]) for name in whole)
        assert all(torch.equal(after[name][part], kept[name]) for name in after)


def test_a_run_without_a_gradient_stays_where_it_is():
    limited = Limited(descent=PLAIN, factor=2.0, norm=1.0)
    learned = start()
    nothing = {name: torch.zeros_like(value) for name, value in learned.items()}
    moved, moments = limited.step(learned, nothing, limited.start(learned), 0)
    moved, moments = limited.step(moved, nothing, moments, 1)
    assert all(torch.equal(moved[name], learned[name]) for name in learned)
    assert moments["images.average_norm"].eq(0).all()


def test_a_gradient_that_is_not_finite_is_not_hidden():
    """The outer step finds it by what it makes of the images."""
    limited = Limited(descent=PLAIN, factor=2.0, norm=1.0)
    for bad in (torch.nan, torch.inf):
        given = gradients(0)
        given["images"][0, 0, 0, 0, 0, 0] = bad
        moved, _ = limited.step(start(), given, limited.start(start()), 0)
        assert not moved["images"][0].isfinite().all()
        assert moved["images"][1].isfinite().all()
