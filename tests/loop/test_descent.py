"""The outer optimisers against torch's own, in float64."""

import math

import pytest
import torch

from fastdistill.loop.descent import Adam, Momentum


def start():
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(2, 3, 4, generator=generator, dtype=torch.float64),
        "rates": torch.randn(2, 5, generator=generator, dtype=torch.float64),
    }


def gradients(learned):
    """Of a loss with curvature, so that every step has another gradient; those of the rates are tiny at first."""
    return {"images": learned["images"].cos() - 0.3, "rates": learned["rates"] ** 3 * 1e-5}


def walk(descent, optimizer_of, schedule_of=None, steps=9):
    learned = start()
    moments, expected = descent.start(learned), {name: value.clone() for name, value in learned.items()}
    optimizer = optimizer_of(expected)
    schedule = None if schedule_of is None else schedule_of(optimizer)
    for number in range(steps):
        learned, moments = descent.step(learned, gradients(learned), moments, number)
        for name, gradient in gradients(expected).items():
            expected[name].grad = gradient
        optimizer.step()
        if schedule is not None:
            schedule.step()
        for name in learned:
            assert torch.allclose(learned[name], expected[name], rtol=1e-12, atol=0), (name, number)
    assert not torch.allclose(learned["images"], start()["images"], rtol=1e-3)
    assert not torch.equal(learned["rates"], start()["rates"])
    return moments


def test_momentum_is_torch_sgd_with_a_rate_for_every_name():
    moments = walk(
        Momentum(rates={"images": 0.1, "rates": 20.0}, momentum=0.5),
        lambda named: torch.optim.SGD(
            [{"params": [named["images"]], "lr": 0.1}, {"params": [named["rates"]], "lr": 20.0}], momentum=0.5
        ),
    )
    assert moments.keys() == {"images.velocity", "rates.velocity"}


@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.9, 0.99), (0.0, 0.9)])
def test_adam_is_torch_adam(betas):
    moments = walk(
        Adam(rate=0.01, beta1=betas[0], beta2=betas[1]),
        lambda named: torch.optim.Adam(named.values(), lr=0.01, betas=betas),
    )
    assert moments.keys() == {"images.mean", "images.square", "rates.mean", "rates.square"}


def test_the_rate_falls_as_torch_step_lr():
    walk(
        Adam(rate=0.05, beta1=0.5, decay_every=2, decay=0.5),
        lambda named: torch.optim.Adam(named.values(), lr=0.05, betas=(0.5, 0.999)),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_rate_falls_as_torch_cosine_annealing(share):
    walk(
        Adam(rate=0.05, beta1=0.5, final_share=share, steps=9),
        lambda named: torch.optim.Adam(named.values(), lr=0.05, betas=(0.5, 0.999)),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.05 * share),
    )


def test_the_cosine_goes_from_the_rate_to_its_share():
    """``f η + (1 − f) η (1 + cos(π n / N)) / 2``, of the step's number alone; times the decay where there is one."""
    descent = Adam(rate=0.02, final_share=0.1, steps=2000)
    assert descent.rate_at(0) == 0.02
    assert descent.rate_at(1000) == pytest.approx(0.011, rel=1e-12)
    assert descent.rate_at(1500) == pytest.approx(0.002 + 0.018 * (1 - math.sqrt(0.5)) / 2, rel=1e-12)
    assert descent.rate_at(2000) == pytest.approx(0.002, rel=1e-12)
    both = Adam(rate=0.02, final_share=0.1, steps=2000, decay_every=400, decay=0.5)
    assert both.rate_at(1000) == pytest.approx(descent.rate_at(1000) / 4, rel=1e-12)
    assert Adam(rate=0.02).rate_at(1999) == 0.02


def test_the_root_is_kept_from_zero_as_torch_does():
    walk(
        Adam(rate=0.01, epsilon=1e-3),
        lambda named: torch.optim.Adam(named.values(), lr=0.01, eps=1e-3),
    )


@pytest.mark.parametrize("descent", [Momentum(rates={"images": 0.1, "rates": 0.1}, momentum=0.9), Adam(rate=0.1)])
def test_a_run_moves_as_it_would_alone(descent):
    learned = start()
    moments = descent.start(learned)
    alone = {name: value[1:] for name, value in learned.items()}
    own = descent.start(alone)
    for number in range(3):
        learned, moments = descent.step(learned, gradients(learned), moments, number)
        alone, own = descent.step(alone, gradients(alone), own, number)
    assert all(torch.equal(learned[name][1:], alone[name]) for name in learned)
    assert all(torch.equal(moments[name][1:], own[name]) for name in moments)
