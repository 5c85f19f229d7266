"""The figure's two claims, in float64: what is left for fewer pairs than features, and nothing for as many."""

import pytest
import torch

from bench.naive.unrolled import linear_distillation
from docs.make_linear_bound import Regression, diabetes, draw, learned_pairs, one_step

DRAWS = torch.randn(10, 20000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def features(count):
    """The regression on the first features alone."""
    data = diabetes()
    return Regression(inputs=data.inputs[:, :count], targets=data.targets)


def test_the_excess_is_the_loss_above_the_optimum():
    data = features(4)
    weights = DRAWS[:4, :3]

    def loss(weights):
        return 0.5 * (data.inputs @ weights - data.targets).square().mean(0)

    torch.testing.assert_close(data.excess(weights), loss(weights) - loss(data.optimum), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_learned_pairs_come_near_the_bound_and_never_below(count):
    data = features(4)
    bound = data.least_excess(count)
    assert bound > 1e-3
    axes = 2 * torch.eye(4, dtype=torch.float64)
    # the mean over these 8 is exactly that over standard normal weights, which 20000 draws come near
    for starts, above, below in ((torch.cat([axes, -axes], dim=1), 1.1, 1.0), (DRAWS[:4], 1.15, 0.95)):
        left = data.excess(one_step(starts, *learned_pairs(data, count))).mean().item()
        assert below * bound <= left <= above * bound


def test_random_pairs_never_go_below_the_bound():
    data = features(4)
    generator = torch.Generator().manual_seed(6)
    for count in (1, 2, 3):
        for _ in range(20):
            inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
            targets = torch.randn(count, 1, generator=generator, dtype=torch.float64)
            assert data.excess(one_step(DRAWS[:4], inputs, targets)).mean() > data.least_excess(count)


@pytest.mark.parametrize("pairs", ["learned", "closed form"])
def test_as_many_pairs_as_features_leave_nothing(pairs):
    data = features(4)
    found = learned_pairs(data, 4, tries=1) if pairs == "learned" else linear_distillation(data.inputs, data.targets, 1)
    assert found[0].shape == (4, 4)
    after = one_step(DRAWS[:4], *found)
    assert (after - data.optimum).abs().max() <= 1e-10
    assert data.excess(after).max() <= 1e-20
    assert data.least_excess(4) == data.least_excess(5) == 0


def test_the_figure_shows_the_drop():
    axes = draw(features(3), range(1, 6), DRAWS[:3, :100]).axes[0]
    points = next(line for line in axes.lines if line.get_label().startswith("M pairs")).get_ydata()
    bound = next(line for line in axes.lines if line.get_label().startswith("least")).get_ydata()
    assert len(points) == 5
    assert len(bound) == 2
    assert min(points[:2]) > 1e-4
    assert max(points[2:]) < 1e-15
    assert axes.get_yscale() == "log"
