"""Layers with weight norm against their formula."""

import pytest
import torch
from torch.nn.functional import conv2d

from fastdistill.weight_norm import WeightNormed


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_the_output_is_scaled_bias_included(flat, bias):
    layer = WeightNormed(*((4, 3) if flat else (4, 3, 3, 3)), padding=0 if flat else 1, bias=bias).double()
    assert set(dict(layer.named_parameters())) == {"weight", "gain"} | ({"bias"} if bias else set())
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    inputs = random(*((2, 3) if flat else (2, 3, 5, 6)), seed=9)
    found = layer(inputs)
    for unit in range(4):
        weight = layer.weight[unit]
        plain = inputs @ weight if flat else conv2d(inputs, weight[None], padding=1)[:, 0]
        plain = plain + layer.bias[unit] if bias else plain
        expected = layer.gain[unit] / weight.square().sum().sqrt() * plain
        torch.testing.assert_close(found[:, unit], expected, rtol=1e-12, atol=1e-13)


def test_a_layer_begins_as_one_without_weight_norm():
    torch.manual_seed(0)
    layer = WeightNormed(500, 40, bias=True)
    inputs = random(3, 40, seed=1).float()
    torch.testing.assert_close(layer(inputs), inputs @ layer.weight.T, rtol=1e-5, atol=1e-6)
    assert abs(float(layer.weight.detach().var()) / (2 / 40) - 1) < 0.05
    assert not layer.bias.any()
