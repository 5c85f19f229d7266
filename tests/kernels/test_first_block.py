import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import jvp, vjp
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import fastdistill_kernels as public
from fastdistill_kernels.first_block import cost_first_block
from fastdistill_kernels.reference import first_block as reference
from tests.kernels.comparing import DTYPES, LIMITS, error

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "swish": functional.silu,
}
POOLS = {
    "none": lambda a: a,
    "avg": lambda a: functional.avg_pool2d(a, 2),
    "max": lambda a: functional.max_pool2d(a, 2),
}
OWN = ("weight", "bias", "norm_weight", "norm_bias")


def problem(
    S, G, n, D, H, W, channels, *, shared="", tangents="grouped", bias=True, normed=True, digits=None,
    dtype=torch.float64, seed=0,
):  # fmt: skip
    """Images, weights and tangents; ``shared`` names the axes (of S and G) along which images are expanded.

    ``digits`` is the dtype whose digits numbers have, the same as theirs by default.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, mean=0.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(digits or dtype).to(dtype)

    x = draw(1 if "S" in shared else S, 1 if "G" in shared else G, n, D, H, W, mean=0.5)
    lead = (S, G) if tangents == "grouped" else (S,)
    shapes = ((channels, D, 3, 3), (channels,), (channels,), (channels,))
    present = (True, bias, normed, normed)
    own = [draw(S, *shape) if here else None for shape, here in zip(shapes, present, strict=True)]
    along = [draw(*lead, *shape) if here else None for shape, here in zip(shapes, present, strict=True)]
    return x, own, along


def paired(own, along):
    return [tensor for pair in zip(own, along, strict=True) for tensor in pair]


def textbook(x, weight, bias, norm_weight, norm_bias, padding, activation, pooling, eps=1e-5):
    """One student's and group's images ``[n, D, H, W]``."""
    z = functional.conv2d(x, weight, bias, padding=padding)
    if norm_weight is not None:
        z = torch.group_norm(z, z.shape[1], norm_weight, norm_bias, eps)
    return POOLS[pooling](ACTIVATIONS[activation](z))


def cotangents(x, own, along, padding, pooling, dtype=None, seed=1):
    S, channels = own[0].shape[:2]
    G = reference.group_count(x, along[0])
    extents = [reference.pooled(extent, padding, pooling) for extent in x.shape[-2:]]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, S, G, x.shape[2], channels, *extents, generator=generator, dtype=torch.float64)
    return [one.to(dtype or x.dtype) for one in drawn]


def truth(x, own, along, gy, dgy, *choices):
    """``y``, ``ẏ``, gradients (four of weights, that of images) and their tangents by torch's own derivatives."""
    S, G = gy.shape[:2]
    y, dy, gradients, tangents = torch.empty_like(gy), torch.empty_like(gy), [], []
    for s, g in itertools.product(range(S), range(G)):
        images = x[s if x.shape[0] > 1 else 0, g if x.shape[1] > 1 else 0]
        here = [tensor[s] for tensor in own if tensor is not None]
        there = [tensor[s, g] if along[0].ndim == 6 else tensor[s] for tensor in along if tensor is not None]

        def full(parameters, present=tuple(tensor is not None for tensor in own)):
            left = iter(parameters)
            return [next(left) if here else None for here in present]

        def forward(*parameters, images=images, full=full):
            return textbook(images, *full(parameters), *choices)

        y[s, g], dy[s, g] = jvp(forward, tuple(here), tuple(there))

        def backward(cotangent, *parameters, images=images, full=full):
            def f(images, *parameters):
                return textbook(images, *full(parameters), *choices)

            return vjp(f, images, *parameters)[1](cotangent)

        found, moved = jvp(backward, (gy[s, g], *here), (dgy[s, g], *there))
        gradients.append([*full(found[1:]), found[0]])
        tangents.append([*full(moved[1:]), moved[0]])

    def stacked(results):
        columns = zip(*results, strict=True)
        return [None if c[0] is None else torch.stack(c).unflatten(0, (S, G)) for c in columns]

    return y, dy, stacked(gradients), stacked(tangents)


def assert_close(found, expected, limit, scale=None):
    """Within a share of the norm; a gradient that is zero but for rounding is held to its summands' scale."""
    if expected is None:
        return
    assert found.shape == expected.shape
    if scale is not None and expected.norm() < 1e-9 * scale:
        assert (found.double() - expected.double()).norm() <= limit * scale
    else:
        assert error(found, expected) <= limit


CHOICES = [
    (0, "relu", "avg"),
    (1, "relu", "max"),
    (1, "softplus", "max"),
    (3, "swish", "avg"),
    (3, "swish", "none"),
    (1, "sigmoid", "avg"),
    (2, "leaky_relu", "max"),
    (0, "none", "none"),
]


@pytest.mark.parametrize(("padding", "activation", "pooling"), CHOICES)
@pytest.mark.parametrize("normed", [True, False])
def test_reference_equals_torch_derivatives(padding, activation, pooling, normed):
    for sizes, options in [
        ((2, 2, 3, 1, 6, 7, 4), {}),
        ((2, 3, 2, 3, 5, 5, 3), {"shared": "S", "bias": False}),
        ((2, 2, 2, 2, 4, 5, 1), {"shared": "SG"}),
        ((2, 2, 1, 1, 4, 4, 2), {"shared": "G", "tangents": "student"}),
    ]:
        x, own, along = problem(*sizes, normed=normed, **options)
        if along[0].ndim == 5:
            x = x.expand(-1, sizes[1], *[-1] * 4)
        gy, dgy = cotangents(x, own, along, padding, pooling)
        y, dy, gradients, tangents = truth(x, own, along, gy, dgy, padding, activation, pooling)
        settings = dict(padding=padding, activation=activation, pooling=pooling)
        if x.shape[1] == sizes[1]:
            assert_close(public.first_block(x, *own, **settings), y, 1e-10)
        found = public.dual_first_block(x, *paired(own, along), **settings)
        assert_close(found[0], y, 1e-10)
        assert_close(found[1], dy, 1e-10)
        scale = gy.norm()
        plain = public.first_block_backward(gy, x, *own, **settings, inputs=True)
        dual = public.dual_first_block_backward(gy, dgy, x, *paired(own, along), **settings, inputs=True)
        for one, value, tangent, gradient, moved in zip(
            plain, dual[0::2], dual[1::2], gradients, tangents, strict=True
        ):
            assert_close(one, gradient, 1e-10, scale)
            assert_close(value, gradient, 1e-10, scale)
            assert_close(tangent, moved, 1e-10, scale)


def to(tensors, dtype, device):
    return [None if tensor is None else tensor.to(device, dtype) for tensor in tensors]


def check_kernels(sizes, padding, activation, pooling, precision, device, *, flags=((True, True),), **options):
    """Launches on a device, interpreted where there is none, against the reference in float64."""
    from fastdistill_kernels.gpu import first_block as gpu

    dtype = DTYPES[precision]
    x, own, along = problem(*sizes, **options)
    gy, dgy = cotangents(x, own, along, padding, pooling)
    choices = (padding, activation, pooling, 1e-5, "tf32" if precision == "tf32" else "ieee")
    drawn = {"gy": [gy], "both": [gy, dgy], "x": [x], "own": own, "dual": paired(own, along)}
    here = {name: to(tensors, dtype, device) for name, tensors in drawn.items()}
    # of the very same numbers, so that rounding an input moves no element across a kink of the activation
    true = {name: to(tensors, torch.float64, "cpu") for name, tensors in here.items()}
    calls = [("first_block", "own", "", ()), ("dual_first_block", "dual", "", ())]
    calls += [("first_block_backward", "own", "gy", flags[0][:1])]
    calls += [("dual_first_block_backward", "dual", "both", flag) for flag in flags]
    for name, parameters, outputs, flag in calls:
        if name == "first_block" and x.shape[1] != gy.shape[1]:
            continue

        def call(module, tensors, name=name, parameters=parameters, outputs=outputs, flag=flag):
            given = [*tensors.get(outputs, ()), *tensors["x"], *tensors[parameters]]
            found = getattr(module, name)(*given, *choices, *flag)
            return found if isinstance(found, tuple) else (found,)

        # gradients that are zero but for rounding (of a bias before a norm) are held to their summands
        scale = gy.norm() if outputs else None
        results = call(gpu, here)
        of_images = len(results) if not outputs else 1 if outputs == "gy" else 2  # the last ones
        assert all(found.dtype == dtype for found in results[-of_images:])
        assert all(found.dtype == torch.float32 for found in results[:-of_images])
        for found, expected in zip(results, call(reference, true), strict=True):
            assert_close(found.cpu(), expected, LIMITS[precision], scale)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(
    ("sizes", "padding", "activation", "pooling", "options"),
    [
        ((1, 1, 2, 1, 3, 4, 3), 3, "relu", "avg", {}),
        ((1, 1, 1, 3, 5, 5, 3), 1, "softplus", "max", {"bias": False}),
        ((1, 2, 1, 2, 4, 4, 2), 0, "swish", "none", {"normed": False}),
    ],
)
def test_the_kernels_equal_the_reference(sizes, padding, activation, pooling, options, precision, device, poisoned):
    check_kernels(sizes, padding, activation, pooling, precision, device, **options)


def channels_last(x):
    return x.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


def test_channels_may_be_last(device, poisoned):
    from fastdistill_kernels.gpu import first_block as gpu

    x, own, along = problem(1, 1, 1, 2, 4, 5, 3, dtype=torch.float32)
    gy, dgy = cotangents(x, own, along, 1, "avg")
    x, gy, dgy, *parameters = to([x, gy, dgy, *own, *along], torch.float64, "cpu")
    own, along = parameters[:4], parameters[4:]
    choices = (1, "relu", "avg", 1e-5, "ieee")
    for module, at in ((reference, torch.device("cpu")), (gpu, device)):
        images, *outer = to([channels_last(x), channels_last(gy), dgy], torch.float32, at)
        pairs = paired(to(own, torch.float32, at), to(along, torch.float32, at))
        found = module.dual_first_block(images, *pairs, *choices)
        expected = reference.dual_first_block(x, *paired(own, along), *choices)
        assert all(one.stride(3) == 1 for one in found)
        assert all(other.is_contiguous() for other in expected)
        found += module.dual_first_block_backward(*outer, images, *pairs, *choices, True, True)
        expected += reference.dual_first_block_backward(gy, dgy, x, *paired(own, along), *choices, True, True)
        for one, other in zip(found, expected, strict=True):
            assert_close(one.cpu(), other, 1e-5, gy.norm())


AWKWARD = {
    # of numbers whose products float32 holds: a norm over one pixel leaves rounding alone, 1/√eps = 316 times as large
    "one pixel": ((1, 1, 1, 1, 3, 3, 1), 0, "relu", "none", {"digits": torch.bfloat16}),
    "one pooled pixel": ((1, 1, 1, 1, 2, 3, 1), 1, "relu", "max", {}),
    "images of all": ((2, 2, 1, 1, 3, 4, 2), 1, "leaky_relu", "avg", {"shared": "SG"}),
    "images of all groups": ((1, 2, 1, 1, 3, 3, 2), 1, "none", "avg", {"shared": "G"}),
    "tangents of all groups": ((2, 2, 1, 1, 3, 3, 2), 1, "relu", "avg", {"tangents": "student"}),
    "no image": ((2, 1, 0, 1, 4, 4, 2), 1, "relu", "avg", {}),
    "no student": ((0, 1, 2, 1, 4, 4, 2), 1, "relu", "avg", {}),
    "no group": ((2, 0, 2, 1, 4, 4, 2), 1, "relu", "avg", {}),
    "more channels than a tile": ((1, 1, 1, 1, 6, 6, 131), 0, "relu", "avg", {}),
    "more images than a run": ((1, 1, 3, 1, 4, 4, 1), 0, "relu", "none", {}),
    "more pixels than a tile": ((1, 1, 1, 1, 15, 11, 1), 0, "relu", "avg", {}),
}


def test_shared_images_are_padded_once_for_all_who_share_them():
    from fastdistill_kernels.gpu.first_block_parts import padded

    x = torch.randn(1, 1, 2, 1, 4, 4)
    for shared in (x, x.expand(3, 2, 2, 1, 4, 4)):
        assert padded(shared, 1).shape == (1, 1, 2, 1, 6, 6)
    assert padded(x.expand(3, 1, 2, 1, 4, 4).clone().expand(3, 2, 2, 1, 4, 4), 1).shape == (3, 1, 2, 1, 6, 6)


@pytest.mark.parametrize("name", AWKWARD)
def test_the_kernels_equal_the_reference_on_awkward_sizes(name, device, poisoned, monkeypatch):
    monkeypatch.setattr("fastdistill_kernels.gpu.first_block_backward.RUN", 2)  # as 16 images take long interpreted
    *arguments, options = AWKWARD[name]
    check_kernels(*arguments, "float32", device, **options)


@pytest.mark.parametrize("flags", list(itertools.product([True, False], repeat=2)))
def test_what_is_not_wanted_is_empty(flags, device, poisoned):
    check_kernels((1, 1, 1, 1, 3, 3, 2), 1, "relu", "avg", "float32", device, flags=(flags,))


def tied(value):
    """An image of equal pixels with a corner of its own, under weights that keep ties: a norm-free block of one tap."""
    x = torch.zeros(1, 1, 1, 1, 4, 4)
    x[..., :2, :2] = torch.tensor([[value, 3.0], [3.0, 1.0]])
    weight = torch.zeros(1, 1, 1, 3, 3)
    weight[..., 1, 1] = 1
    return x, weight


@pytest.mark.parametrize("value", [3.0, float("nan")])
def test_the_first_of_equal_maxima_and_what_is_no_number_win(value, device):
    from fastdistill_kernels.gpu import first_block as gpu

    x, weight = tied(value)
    along = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    gy = torch.ones(1, 1, 1, 1, 2, 2)
    choices = (1, "none", "max", 1e-5, "ieee")
    z = functional.conv2d(x[0, 0], weight[0], padding=1)
    y, place = functional.max_pool2d(z, 2, return_indices=True)
    dz = functional.conv2d(x[0, 0], along[0], padding=1)
    for module, at in ((reference, "cpu"), (gpu, device)):
        given = (x.to(at), weight.to(at), None, None, None)
        found, moved = module.dual_first_block(*given[:2], along.to(at), *[None] * 6, *choices)
        assert torch.equal(found[0, 0].cpu().nan_to_num(7), y.nan_to_num(7))
        if value == 3.0:
            assert torch.allclose(moved[0, 0].cpu(), dz.flatten(2).gather(2, place.flatten(2)).view(y.shape))
            gx = module.first_block_backward(gy.to(at), *given, *choices, True)[-1].cpu()
            assert gx.flatten().nonzero().flatten().tolist() == sorted(place.flatten().tolist())


def test_a_student_that_is_no_number_stays_so_and_alone(device):
    from fastdistill_kernels.gpu import first_block as gpu

    x, own, _ = problem(2, 1, 1, 1, 4, 4, 2, dtype=torch.float32)
    own[0][0, 1] = float("nan")
    for module, at in ((reference, "cpu"), (gpu, device)):
        y = module.first_block(x.to(at), *to(own, torch.float32, at), 1, "relu", "avg", 1e-5, "ieee").cpu()
        assert y[0, :, :, 1].isnan().all()
        assert y[0, :, :, 0].isfinite().all() and y[1].isfinite().all()


def test_pixels_far_from_zero_lose_no_digits(device):
    """Covariances are taken of shifted pixels; of unshifted ones, nothing of a variance of 1 would be left here.

    Products are of pixels as they are: one of a filter w whose taps add up to nothing is a sum of terms that cancel, of
    which float32 loses 2⁻²⁴·512·|w|₁ at least, of torch's own just as well. The norm takes that by its 1/std.
    """
    from fastdistill_kernels.gpu import first_block as gpu

    x, own, _ = problem(1, 1, 1, 1, 6, 6, 3, dtype=torch.float32)
    own[0] -= own[0].mean((-2, -1), keepdim=True)
    x, *own = to([x + 512, *own], torch.float64, "cpu")
    choices = (0, "none", "none", 1e-5, "ieee")
    expected = reference.first_block(x, *own, *choices)
    found = gpu.first_block(x.float().to(device), *to(own, torch.float32, device), *choices)
    std = functional.conv2d(x[0, 0], own[0][0]).std((0, 2, 3), correction=0)
    limit = (2**-24 * 512 * own[0][0].abs().sum((1, 2, 3)) / std).max()
    assert limit < 1.2e-4
    assert error(found.cpu(), expected) <= limit


@pytest.mark.parametrize("noise", [0.3, 0.03])
def test_a_filter_that_sees_little_errs_by_no_more_than_is_said(noise, device):
    """A Laplacian of a ramp sees its noise alone, and wᵀCw is a sum of terms that cancel down to it.

    They are |w|² tr C in size, so that rounding them errs by up to 2⁻²⁴ of that, by |w|² tr C / var z times as much of
    var z, and 1/std by half as much: with a factor of 1000, more than the limit of all other results of float32.
    """
    from fastdistill_kernels.gpu import first_block as gpu

    x, own, _ = problem(1, 1, 2, 1, 12, 12, 3)
    ramp = torch.arange(12, dtype=torch.float64)[:, None] + torch.arange(12, dtype=torch.float64)
    x, *own = to([ramp / 12 + noise * x, *own], torch.float32, "cpu")
    x, *own = to([x, *own], torch.float64, "cpu")
    own[0][:] = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    choices = (0, "relu", "avg", 1e-5, "ieee")
    expected = reference.first_block(x, *own, *choices)
    found = gpu.first_block(x.float().to(device), *to(own, torch.float32, device), *choices)
    patches = torch.nn.functional.unfold(x.flatten(0, 2), 3)
    spread = patches.var(-1, correction=0).sum(-1)
    seen = torch.nn.functional.conv2d(x.flatten(0, 2), own[0][0, :1]).var((-3, -2, -1), correction=0)
    times = (own[0][0, 0].square().sum() * spread / seen).max().item()
    assert times > 20  # or it would not be the case that is meant
    assert error(found.cpu(), expected) <= 1e-6 + 2**-25 * times


@pytest.mark.parametrize("precision", LIMITS)
def test_statistics_are_float32_whatever_products_are(precision, device, poisoned):
    """Means, 1/std and their tangents, by launches of their own: they hold to float32's limit in every precision."""
    from fastdistill_kernels.gpu.first_block_forward import prepare_forward
    from fastdistill_kernels.gpu.launching import capability

    drawn, own, along = problem(1, 1, 2, 2, 5, 6, 3, dtype=DTYPES[precision])
    wide, *weights = to([drawn, own[0], along[0][:, 0]], torch.float64, "cpu")
    z, dz = (functional.conv2d(wide[0, 0], weight[0], padding=1).flatten(2) for weight in weights)
    mean, dmean = z.mean(2), dz.mean(2)
    r = (z.var(2, correction=0) + 1e-5) ** -0.5
    expected = torch.stack([mean, r, dmean, -(r**3) * ((z - mean[..., None]) * dz).mean(2)], 1)
    parameters = [to(given, DTYPES[precision], device) for given in (own, along)]
    choices = (1, "relu", "avg", 1e-5, "tf32" if precision == "tf32" else "ieee")
    launches = prepare_forward(drawn.to(device), *parameters, *choices, capability(device))[1]
    for launch in launches[:-1]:
        launch.run()
    found = launches[-1].arguments["p_statistics"]
    assert found.dtype == torch.float32
    for kind in range(4):
        assert error(found[:, kind].cpu(), expected[:, kind]) <= LIMITS["float32"]


def test_what_32_bits_do_not_reach_is_refused():
    from fastdistill_kernels.gpu.first_block_parts import sizes_of

    def sizes(depth, channels, side):
        x = torch.empty(1, 1, 1, 1, 1, 1, device="meta").expand(1, 1, 1, depth, side, side)
        return sizes_of(x, (torch.empty(1, channels, depth, 3, 3, device="meta"), None, None, None), 1, 1, "none")

    assert sizes(3, 1, 20_000).width == 20_000
    with pytest.raises(ValueError, match=r"at most 2147483648 elements of one padded image, .* got 3 × 30002 × 30002"):
        sizes(3, 1, 30_000)
    with pytest.raises(ValueError, match=r"of a first block's results for one image, .* got 6 × 20000 × 20000"):
        sizes(1, 6, 20_000)


def arguments_of(name, dtype=torch.float32):
    x, own, along = problem(2, 2, 2, 1, 5, 4, 3, dtype=dtype)
    gy, dgy = cotangents(x, own, along, 1, "avg")
    choices = (1, "swish", "avg", 1e-5, "ieee")
    return {
        "first_block": (x, *own, *choices),
        "first_block_backward": (gy, x, *own, *choices, True),
        "dual_first_block": (x, *paired(own, along), *choices),
        "dual_first_block_backward": (gy, dgy, x, *paired(own, along), *choices, True, True),
    }[name]


OPERATORS = ("first_block", "first_block_backward", "dual_first_block", "dual_first_block_backward")
CHOSEN = ("padding", "activation", "pooling", "eps", "precision", "inputs", "value")


def called(name, arguments):
    """The public function, with an operator's arguments."""
    tensors = [argument for argument in arguments if argument is None or isinstance(argument, torch.Tensor)]
    return getattr(public, name)(*tensors, **dict(zip(CHOSEN, arguments[len(tensors) :], strict=False)))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operators_keep_torchs_contract(name):
    arguments = arguments_of(name)
    torch.compiler.reset()  # one function for all operators: what was compiled for another is no concern here
    torch.library.opcheck(getattr(torch.ops.fastdistill, name).default, arguments)
    choices = [argument for argument in arguments if not isinstance(argument, torch.Tensor)]
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    compiled = torch.compile(lambda *given: called(name, (*given, *choices)), fullgraph=True, backend="aot_eager")

    def results(function, *given):
        found = function(*given)
        return found if isinstance(found, tuple) else (found,)

    expected = results(lambda *given: called(name, (*given, *choices)), *tensors)
    assert all(torch.equal(*both) for both in zip(results(compiled, *tensors), expected, strict=True))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(*[tensor * 2 for tensor in tensors])


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_are_known_without_values(name):
    for dtype in (torch.float32, torch.bfloat16):
        arguments = arguments_of(name, dtype)
        real = called(name, arguments)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            found = called(name, fakes)
        for fake, one in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, real)), strict=True):
            assert fake.shape == one.shape and fake.dtype == one.dtype


def test_work_is_counted():
    # z has 2·2·2·3·5·4 = 480 elements, a product 2·9 = 18 FLOPs of each
    for name, flops in (
        ("first_block", 480 * (18 + 10)),
        ("first_block_backward", 480 * (3 * 18 + 20)),
        ("dual_first_block", 480 * (2 * 18 + 25)),
        ("dual_first_block_backward", 480 * (7 * 18 + 59)),
    ):
        with FlopCounterMode(display=False) as counter:
            called(name, arguments_of(name))
        assert counter.get_total_flops() == flops
    # what is not wanted is not counted: gradients of images, those beside tangents, the norm's arithmetic
    for wanted, flops in (
        (dict(kind="backward", inputs=True), 480 * (3 * 18 + 20)),
        (dict(kind="backward"), 480 * (2 * 18 + 20)),
        (dict(kind="backward", normed=False), 480 * (2 * 18 + 5)),
        (dict(kind="dual_backward", inputs=True), 480 * (7 * 18 + 59)),
        (dict(kind="dual_backward", inputs=True, value=False), 480 * (5 * 18 + 59)),
        (dict(kind="dual_backward"), 480 * (4 * 18 + 59)),
        (dict(kind="dual_backward", value=False, normed=False), 480 * (3 * 18 + 13)),
    ):
        assert cost_first_block(2, 2, 2, 1, 5, 4, 3, 1, "avg", 4, **wanted).flops == flops, wanted
    # four pairs' two images of 5·4 and outputs of 3·2·2, two students' 3·(9 + 3) weights; gradients of each pair's
    read, own = 4 * 2 * (20 + 12) + 2 * 36, 4 * 36
    assert cost_first_block(2, 2, 2, 1, 5, 4, 3, 1, "avg", 4, kind="backward").bytes == 4 * (read + own)
    images = cost_first_block(2, 2, 2, 1, 5, 4, 3, 1, "avg", 4, kind="backward", inputs=True)
    assert images.bytes == 4 * (read + own + 4 * 2 * 20)
    # and without a norm 3·(9 + 1): output and weights twice, one gradient of the two
    alone = cost_first_block(2, 2, 2, 1, 5, 4, 3, 1, "avg", 4, kind="dual_backward", value=False, normed=False)
    assert alone.bytes == 4 * (4 * 2 * (20 + 2 * 12) + (2 + 4 + 4) * 30)
    cost = cost_first_block(16, 10, 256, 1, 28, 28, 128, 3, "avg", 2)
    # images of 28x28, sixteen students' 128·(9 + 3) weights, and 128 channels of 16x16
    assert cost.bytes == 2 * (16 * 10 * 256 * (28 * 28 + 128 * 16 * 16) + 16 * 128 * 12)
    assert cost.products == 2 * 9 * 16 * 10 * 256 * 128 * 32 * 32


def test_wrong_input_is_named():
    x, own, along = problem(2, 3, 2, 1, 5, 4, 3, dtype=torch.float32)
    gy, _ = cotangents(x, own, along, 1, "avg")
    fine = dict(padding=1, activation="relu", pooling="avg")

    def refused(match, *arguments, name="first_block", kind=ValueError, **changes):
        with pytest.raises(kind, match=match):
            getattr(public, name)(*arguments, **(fine | changes))

    refused("expected activation among", x, *own, activation="elu")
    refused("expected pooling among", x, *own, pooling="average")
    refused("expected precision among", x, *own, precision="bf16")
    refused("D = 1 to 3 channels", x.expand(-1, -1, -1, 4, -1, -1), *own)
    refused("images of 2 students as the weights, or of 1, got 4", x.repeat(2, 1, 1, 1, 1, 1), *own)
    refused("expected weight .S, O, D, 3, 3. = ", x, own[0][..., :2], *own[1:])
    refused("expected bias .S, O. = ", x, own[0], own[1][:1], *own[2:])
    refused("expected norm_weight and norm_bias, or neither", x, *own[:3], None)
    refused("images that leave an output", x[..., :1], *own, padding=0)
    refused("padding of at least 0", x, *own, padding=-1)
    refused("expected weight like x in torch.float32", x, own[0].double(), *own[1:])
    refused("expected norm_bias like x in torch.float32 on cpu", x, *own[:3], own[3].to("meta"))
    refused("in float32, bfloat16 or float64, got", x.half(), *[tensor.half() for tensor in own])
    refused("expected gy .S, G, n, O", gy[..., :1], x, *own, name="first_block_backward", inputs=False)
    dual = {"name": "dual_first_block"}
    refused("expected a dbias exactly where", x, *paired(own, [along[0], None, *along[2:]]), **dual)
    refused("expected dnorm_bias .S, G, ...", x, *paired(own, [*along[:3], along[3][:, :1]]), **dual)
    refused("images of 2 groups as the tangents, or of 1, got 3", x, *paired(own, [t[:, :2] for t in along]), **dual)
    refused("requires grad", x.clone().requires_grad_(), *own, kind=TypeError)
    with torch.autograd.forward_ad.dual_level():
        refused("dual tensor", torch.autograd.forward_ad.make_dual(x, x), *own, kind=TypeError)
