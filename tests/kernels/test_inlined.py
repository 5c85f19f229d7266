"""What takes the operators' place in compiled programs, against the operators, in float64."""

import inspect
from functools import partial

import pytest
import torch

import fastdistill_kernels as kernels
from fastdistill_kernels import inlined

S, G, N = 2, 3, 4


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def maps(channels, height, width, seed):
    return random(S, G, N, channels, height, width, seed=seed)


def convolutions(kernel=3, stride=1, padding=1, count=N, channels=4):
    x, dx = (maps(channels, 7, 6, seed)[:, :, :count] for seed in (1, 2))
    weight, dweight = (random(*lead, 5, channels, kernel, kernel, seed=len(lead)) for lead in ((S,), (S, G)))
    bias, dbias = random(S, 5, seed=5), random(S, G, 5, seed=6)
    settings = {"stride": stride, "padding": padding}
    gy = random(*kernels.convolution(x, weight, **settings).shape, seed=7)
    dgy = random(*gy.shape, seed=8)
    yield "convolution", (x, weight, bias), settings
    yield "convolution", (x, weight), settings
    yield "dual_convolution", (x, dx, weight, dweight, bias, dbias), settings
    yield "dual_convolution", (x, None, weight, dweight), settings
    yield "convolution_input_gradient", (gy, weight, (7, 6)), settings
    for value in (False, True):
        yield "dual_convolution_input_gradient", (gy, dgy, weight, dweight, (7, 6)), {**settings, "value": value}
        own = {**settings, "value": value, "bias": True}
        yield "dual_convolution_weight_gradient", (x, dx, gy, dgy, kernel), own
        yield "dual_convolution_weight_gradient", (x, None, gy, dgy, kernel), {**settings, "value": value}
    for bias in (False, True):
        yield "convolution_weight_gradient", (x, gy, kernel), {**settings, "bias": bias}


def heads():
    x, dx, gy, dgy = (random(S, G, N, size, seed=size + k) for k, size in enumerate((6, 6, 3, 3)))
    weight, dweight = random(S, 3, 6, seed=3), random(S, G, 3, 6, seed=4)
    bias, dbias = random(S, 3, seed=5), random(S, G, 3, seed=6)
    yield "linear", (x, weight, bias), {}
    yield "dual_linear", (x, dx, weight, dweight, bias, dbias), {}
    yield "dual_linear", (x, None, weight, dweight), {}
    yield "linear_input_gradient", (gy, weight), {}
    yield "linear_weight_gradient", (x, gy), {"bias": True}
    for value in (False, True):
        yield "dual_linear_input_gradient", (gy, dgy, weight, dweight), {"value": value}
        yield "dual_linear_weight_gradient", (x, dx, gy, dgy), {"value": value, "bias": value}
    for labels in (torch.arange(S * G * N).view(S, G, N) % 3, random(S, G, N, 3, seed=9).abs()):
        yield "softmax_xent", (gy, labels), {}
        yield "dual_softmax_xent", (gy, dgy, labels), {}


def norms(groups, activation, pooling, of_pixels=False):
    x, dx = maps(4, 7, 6, 1), maps(4, 7, 6, 2)
    shape = (4, 7, 6) if of_pixels else (4,)
    affine = [random(S, *shape, seed=3), random(S, *shape, seed=4)] if groups else [None, None]
    along = [random(S, G, *shape, seed=5), random(S, G, *shape, seed=6)] if groups else [None, None]
    settings = {"groups": groups, "activation": activation, "pooling": pooling}
    crossed = (affine[0], along[0], affine[1], along[1])
    y, *statistics = kernels.norm_act_pool(x, *affine, **settings)
    *_, mean, rstd, dmean, drstd = kernels.dual_norm_act_pool(x, dx, *crossed, **settings)
    gy, dgy = random(*y.shape, seed=7), random(*y.shape, seed=8)
    yield "norm_act_pool", (x, *affine), settings
    yield "dual_norm_act_pool", (x, dx, *crossed), settings
    yield "norm_act_pool_backward", (gy, x, *affine, *statistics), settings
    for value in (False, True):
        given = (gy, dgy, x, dx, *crossed, mean, rstd, dmean, drstd)
        yield "dual_norm_act_pool_backward", given, {**settings, "value": value}


FAMILIES = {
    "convolution": convolutions(),
    "one image": convolutions(count=1),
    "strided": convolutions(stride=2, padding=2, kernel=5),
    "pointwise": convolutions(kernel=1, padding=0),
    "head": heads(),
    "grey": convolutions(channels=1),
    "grey strided": convolutions(5, 2, 2, channels=1),
    "instance": norms(4, "relu", "avg"),
    "group": norms(2, "softplus", "max"),
    "layer": norms(1, "swish", "none", of_pixels=True),
    "none": norms(0, "leaky_relu", "max"),
    "sigmoid": norms(0, "sigmoid", "avg"),
}
CASES = [
    pytest.param(name, given, settings, id=f"{family}-{name}-{place}")
    for family, cases in FAMILIES.items()
    for place, (name, given, settings) in enumerate(cases)
]


@pytest.mark.parametrize("traced", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize(("name", "given", "settings"), CASES)
def test_they_equal_the_operators(name, given, settings, traced):
    expected = getattr(kernels, name)(*given, **settings)
    function = partial(getattr(inlined, name), **settings)
    if traced:  # as a compiler sees it, where some of it is written otherwise
        torch._dynamo.reset()  # it keeps few versions of one function
        function = torch.compile(lambda *given, call=function: call(*given), backend="eager", fullgraph=True)
    found = function(*given)
    pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape and one.dtype == other.dtype
            assert (one - other).norm() <= 1e-12 * other.norm().clamp_min(1)


def test_each_takes_what_its_operator_takes():
    names = [name for name, value in vars(inlined).items() if inspect.isfunction(value) and name in kernels.__all__]
    assert len(names) == 18
    for name in names:
        assert list(inspect.signature(getattr(inlined, name)).parameters) == list(
            inspect.signature(getattr(kernels, name)).parameters
        )


def test_maxima_are_the_first_of_equals_and_the_last_of_no_numbers():
    x = torch.zeros(1, 1, 1, 1, 2, 4, dtype=torch.float64)
    x[..., 0, 2], x[..., 1, 3] = float("nan"), float("nan")
    settings = {"groups": 0, "activation": "none", "pooling": "max"}
    gy, nothing = torch.ones(1, 1, 1, 1, 1, 2, dtype=torch.float64), torch.empty(1, 1, 1, 0, dtype=torch.float64)
    given = (gy, x, None, None, nothing, nothing)
    expected = kernels.norm_act_pool_backward(*given, **settings)[0]
    traced = torch.compile(lambda *given: inlined.norm_act_pool_backward(*given, **settings)[0], backend="eager")
    assert torch.equal(traced(*given), expected)
    assert expected.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
