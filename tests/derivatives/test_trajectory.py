"""Steps of a training; the bytes of a trajectory are held to what `unroll` stores in test_unroll."""

import pytest
import torch

from fastdistill.derivatives.inner import SGD, Adam, Momentum
from fastdistill.derivatives.trajectory import Steps


def test_steps_number_on_when_split():
    rates = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    steps = Steps(optimizer=Adam(), rates=rates, momenta=rates / 2, first=5)
    before, window = steps.split(3)
    assert (len(before), before.first, len(window), window.first) == (3, 5, 4, 8)
    assert window.setting(2).number == 10
    assert torch.equal(window.setting(2).rate, steps.rates[5])
    assert torch.equal(window.setting(2).momentum, steps.momenta[5])
    with pytest.raises(ValueError, match="expected a count of 0 to 7 steps, got 8"):
        steps.split(8)


def test_impossible_steps_are_refused():
    rates = torch.full((4, 2), 0.1)
    with pytest.raises(ValueError, match=r"expected learning rates \[T, S\], got \(4,\)"):
        Steps(optimizer=SGD(), rates=rates[:, 0])
    for optimizer, momenta in ((SGD(), rates), (Momentum(), None), (Adam(), rates[:2])):
        with pytest.raises(ValueError, match="expected momenta"):
            Steps(optimizer=optimizer, rates=rates, momenta=momenta)
