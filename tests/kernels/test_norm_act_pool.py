from dataclasses import dataclass, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels.norm_act_pool import cost_norm_act_pool, dual_norm_act_pool, norm_act_pool
from fastdistill_kernels.norm_act_pool_backward import dual_norm_act_pool_backward, norm_act_pool_backward
from fastdistill_kernels.reference import norm_act_pool as reference
from fastdistill_kernels.reference.activation import ACTIVATIONS
from fastdistill_kernels.reference.pooling import POOLINGS, pooled_size
from tests.kernels.comparing import DTYPES, LIMITS, error, far
from tests.kernels.test_activation import TEXTBOOK

POOLS = {
    "none": lambda u: u,
    "avg": lambda u: functional.avg_pool2d(u, 2),
    "max": lambda u: functional.max_pool2d(u, 2),
}


@dataclass(frozen=True)
class Layer:
    """A layer and the images it is applied to."""

    shape: tuple[int, ...]
    groups: int
    activation: str = "relu"
    pooling: str = "avg"
    affine: str = "channel"
    by_group: bool = True  # tangents of weights have a G
    last: bool = False  # channels of a pixel lie together

    @property
    def choices(self):
        return {"groups": self.groups, "activation": self.activation, "pooling": self.pooling}

    def in_layout(self, x):
        if not self.last:
            return x
        return x.flatten(0, 2).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:3])

    def tensors(self, dtype=torch.float64, device="cpu", seed=0):
        """``(gy, dgy, x, dx, w, dw, b, db)``; weights are views of one flat tensor, as students have them."""
        generator = torch.Generator().manual_seed(seed)

        def random(*sizes):
            return torch.randn(*sizes, generator=generator, dtype=torch.float64)

        x, dx = (random(*self.shape) + mean for mean in (0.7, -0.4))
        gy, dgy = (random(*self.shape[:4], *pooled_size(x, self.pooling)) for _ in range(2))
        images = [self.in_layout(one.to(dtype).to(device)) for one in (gy, dgy, x, dx)]
        if self.affine == "none":
            return (*images, None, None, None, None)
        students, groups, _, *sizes = self.shape
        sizes = sizes[:1] if self.affine == "channel" else sizes
        length, lead = torch.Size(sizes).numel(), (students, groups) if self.by_group else (students,)
        flat, dflat = random(students, 2 * length + 9), random(*lead, 2 * length + 9)
        whole = [one.to(dtype).to(device) for one in (flat, dflat)]
        affine = [one[..., at : at + length].unflatten(-1, sizes) for at in (3, 5 + length) for one in whole]
        return (*images, *affine)

    def textbook(self, x, w=None, b=None):
        """Of one gradient group, in torch's own words: ``x [S, n, C, H, W]``."""
        students = []
        for student, images in enumerate(x):
            z, channel_affine = images, w is not None and w.ndim == 2
            if self.groups:
                affine = (w[student], b[student]) if channel_affine else (None, None)
                z = functional.group_norm(images, self.groups, *affine)
            if w is not None and not channel_affine and self.groups == 1:
                z = functional.layer_norm(images, images.shape[1:], w[student], b[student])
            elif w is not None and not channel_affine:
                z = z * w[student] + b[student]
            students.append(POOLS[self.pooling](TEXTBOOK[self.activation](z)))
        return torch.stack(students)


def both(layer, tensors):
    """Everything the four operators return, by name."""
    gy, dgy, x, dx, w, dw, b, db = tensors
    y, mean, rstd = norm_act_pool(x, w, b, **layer.choices)
    dual = dual_norm_act_pool(x, dx, w, dw, b, db, **layer.choices)
    value = norm_act_pool_backward(gy, x, w, b, mean, rstd, **layer.choices)
    whole = dual_norm_act_pool_backward(gy, dgy, x, dx, w, dw, b, db, *dual[2:], **layer.choices)
    return named((y, mean, rstd), dual, value, whole)


def named(forward, dual, backward, dual_backward):
    found = dict(zip(("value y", "value mean", "value rstd"), forward, strict=True))
    found |= dict(zip(("y", "dy", "mean", "rstd", "dmean", "drstd"), dual, strict=True))
    found |= dict(zip(("value gx", "value gweight", "value gbias"), backward, strict=True))
    names = ("gx", "dgx", "gweight", "dgweight", "gbias", "dgbias")
    return found | dict(zip(names, dual_backward, strict=True))


def check_reference(layer):
    tensors = layer.tensors()
    found = both(layer, tensors)
    gy, dgy, x, dx, w, dw, b, db = tensors
    for group in range(layer.shape[1]):
        # torch's backward of a group norm takes no channels-last images inside a transform
        point, tangent = [x[:, group].contiguous()], [dx[:, group].contiguous()]
        if w is not None:
            point += [w, b]
            tangent += [dw[:, group], db[:, group]] if layer.by_group else [dw, db]

        def pull(cotangent, *point):
            return torch.func.vjp(layer.textbook, *point)[1](cotangent)

        y, dy = torch.func.jvp(layer.textbook, tuple(point), tuple(tangent))
        values, tangents = torch.func.jvp(pull, (gy[:, group], *point), (dgy[:, group], *tangent))
        truth = {"y": y, "dy": dy, "gx": values[0], "dgx": tangents[0], "value y": y, "value gx": values[0]}
        if w is not None:
            truth |= {"gweight": values[1], "value gweight": values[1], "dgweight": tangents[1]}
            truth |= {"gbias": values[2], "value gbias": values[2], "dgbias": tangents[2]}
        for name, expected in truth.items():
            assert error(found[name][:, group], expected) <= 1e-10, name


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_tangents_are_those_of_torch(activation, pooling):
    check_reference(Layer((2, 2, 3, 6, 5, 7), 2, activation, pooling))
    check_reference(Layer((1, 2, 2, 4, 6, 4), 0, activation, pooling, "none", last=True))


@pytest.mark.parametrize("affine", ["none", "channel", "element"])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("last", [False, True])
def test_norms_are_those_of_torch(groups, affine, last):
    for by_group in (False, True):
        check_reference(Layer((2, 3, 2, 6, 5, 4), groups, "swish", "avg", affine, by_group, last))


def test_pieces_change_no_value(monkeypatch):
    layer = Layer((3, 2, 5, 4, 6, 6), 2, "softplus", "max")
    whole = both(layer, layer.tensors())
    for piece in (1, 3 * 144, 5 * 144, 10 * 144, 25 * 144):  # an image, some, a group, a student, two students
        monkeypatch.setattr(reference, "PIECE", piece)
        found = both(layer, layer.tensors())
        assert all(error(found[name], whole[name]) <= 1e-14 for name in whole)


def launched(layer, tensors):
    """The kernels' results, interpreted where there is no GPU."""
    from fastdistill_kernels.gpu import norm_act_pool as forward
    from fastdistill_kernels.gpu import norm_act_pool_backward as backward

    gy, dgy, x, dx, w, dw, b, db = tensors
    choices = (layer.groups, layer.activation, layer.pooling)
    value = forward.norm_act_pool(x, w, b, *choices, 1e-5)
    dual = forward.dual_norm_act_pool(x, dx, w, dw, b, db, *choices, 1e-5)
    pulled = backward.norm_act_pool_backward(gy, x, w, b, *value[1:], *choices)
    whole = backward.dual_norm_act_pool_backward(gy, dgy, x, dx, w, dw, b, db, *dual[2:], *choices, True)
    return named(value, dual, pulled, whole)


def check_kernel(layer, precision, device):
    tensors = layer.tensors(DTYPES[precision], device)
    plain = [None if one is None else one.cpu().double() for one in tensors]
    truth, found = both(layer, plain), launched(layer, tensors)
    for name, expected in truth.items():
        images = name.split()[-1] in ("y", "dy", "gx", "dgx")
        assert found[name].dtype == (DTYPES[precision] if images else torch.float32), name
        if expected is None:
            assert found[name].numel() == 0
            continue
        assert found[name].stride() == expected.stride() or found[name].numel() == 0, name
        if (
            expected.numel() and expected.norm() < 1e-12
        ):  # a norm group of one element: what is left in float64 is rounding
            assert found[name].abs().max() <= LIMITS[precision], name
            continue
        assert error(found[name].cpu(), expected) <= LIMITS[precision if images else "float32"], name
    for name in ("y", "mean", "rstd", "gx", "gweight", "gbias"):
        assert error(found["value " + name], found[name].cpu().to(device)) <= LIMITS[precision] / 10, name


AWKWARD = {
    "one": Layer((1, 1, 1, 1, 1, 1), 1, pooling="none"),
    "one pixel": Layer((1, 2, 1, 3, 1, 1), 3, "swish", "none", last=True),
    "one window": Layer((2, 1, 1, 1, 2, 2), 1, "relu", "max"),
    "cropped column": Layer((1, 2, 2, 7, 2, 3), 7, "leaky_relu", "avg"),
    "cropped corner": Layer((2, 1, 1, 5, 7, 5), 5, "leaky_relu", "max", by_group=False, last=True),
    "three groups of five": Layer((1, 1, 1, 15, 3, 5), 3, "swish", "max", last=True),
    "groups without affine": Layer((1, 1, 2, 6, 5, 3), 2, "sigmoid", "avg", "none"),
    "layer": Layer((1, 2, 1, 6, 4, 7), 1, "sigmoid", "avg", "element"),
    "layer last": Layer((2, 1, 2, 3, 5, 5), 1, "softplus", "none", "element", by_group=False, last=True),
    "no norm": Layer((1, 1, 2, 5, 5, 4), 0, "relu", "max", "none"),
    "no norm, no activation": Layer((1, 1, 1, 3, 3, 3), 0, "none", "none", "none", last=True),
    "tiles of pixels": Layer((1, 1, 1, 1, 102, 97), 1, "relu", "avg"),
    "pixels and channels in tiles": Layer((1, 1, 1, 34, 15, 13), 1, "swish", "max", last=True),
    "tiles without pooling": Layer((1, 1, 1, 34, 19, 17), 2, "leaky_relu", "none"),
    "pixel affine in tiles": Layer((1, 1, 1, 9, 21, 23), 1, "softplus", "avg", "element"),
}
TILED = {
    "tiles of pixels": (1, 5),
    "pixels and channels in tiles": (2, 4),
    "tiles without pooling": (5, 1),
    "pixel affine in tiles": (5, 1),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_the_kernels_equal_the_reference_on_awkward_shapes(name, device, poisoned):
    check_kernel(AWKWARD[name], "float32", device)


@pytest.mark.parametrize("name", ["cropped corner", "three groups of five", "layer last"])
def test_the_kernels_equal_the_reference_in_bfloat16(name, device, poisoned):
    check_kernel(AWKWARD[name], "bf16", device)


def test_what_fits_no_tile_is_looped_over():
    from fastdistill_kernels.gpu.norm_act_pool_plan import plan

    for name, layer in AWKWARD.items():
        cut = plan(layer.shape, layer.groups, layer.pooling, last=layer.last, itemsize=4)
        assert (cut.tiles_of_channels, cut.tiles_of_windows) == TILED.get(name, (1, 1)), name
    for side in (32, 16, 8):  # a ConvNet's instance norms are read once in either layout
        for last in (False, True):
            for itemsize in (2, 4):
                cut = plan((16, 10, 256, 128, side, side), 128, "avg", last=last, itemsize=itemsize)
                assert cut.tiles_of_channels * cut.tiles_of_windows == 1


def test_what_holds_more_of_an_element_holds_fewer_elements():
    from fastdistill_kernels.gpu.norm_act_pool_plan import plan

    for last, itemsize, sides in ((False, 4, 32), (True, 4, 32), (True, 2, 16), (True, 2, 32)):
        shape, held = (16, 10, 256, 128, sides, sides), []
        for crowded in (False, True):
            cut = plan(shape, 128, "avg", last=last, itemsize=itemsize, crowded=crowded)
            held.append(4 * cut.block_channels * cut.block_windows / (32 * cut.warps))
        assert held[1] <= held[0] / 2


def test_images_that_32_bits_do_not_reach_are_refused():
    from fastdistill_kernels.gpu.norm_act_pool import prepare_norm_act_pool

    x = torch.empty(1, 1, 1, 1, 1, 1, device="meta").expand(1, 1, 1, 3, 30_000, 30_000)
    with pytest.raises(
        ValueError, match=r"at most 2147483648 elements of one image, .* got 3 × 30000 × 30000: use fewer"
    ):
        prepare_norm_act_pool(x, None, None, 3, "relu", "avg", 1e-5)


def test_a_large_mean_costs_no_digits(device):
    layer = Layer((1, 1, 1, 4, 6, 6), 2, "none", "none")
    for tiles in (layer, replace(layer, shape=(1, 1, 1, 2, 72, 67))):
        tensors = list(tiles.tensors(torch.float32, device))
        tensors[3] = tensors[3] + tensors[2]
        tensors[2] = tensors[2] + 4096  # in float32 a mean of squares would keep one digit of the variance
        truth = both(tiles, [one.cpu().double() for one in tensors])
        found = launched(tiles, tensors)
        assert error(found["rstd"].cpu(), truth["rstd"]) <= 1e-5
        assert error(found["drstd"].cpu(), truth["drstd"]) <= 1e-5


def test_ties_and_what_is_no_number_are_chosen_as_torch_does(device):
    nan, inf = float("nan"), float("inf")
    windows = [(1, 1, 1, 1), (0, 2, 2, 0), (-inf,) * 4, (nan, 5, nan, 9), (3, nan, inf, 1), (-1, -2, -1, -3)]
    x = torch.tensor(windows).view(6, 1, 2, 2)
    gy = torch.arange(1.0, 7.0).view(6, 1, 1, 1)
    point = x.clone().requires_grad_()
    y = functional.max_pool2d(point, 2)
    (expected,) = torch.autograd.grad(y, point, gy)
    images, cotangent = x.view(1, 1, 6, 1, 2, 2), gy.view(1, 1, 6, 1, 1, 1)
    tangent = torch.arange(24.0).view_as(images)
    tensors = (cotangent, 2 * cotangent, images, tangent, None, None, None, None)
    layer = Layer(images.shape, 0, "none", "max", "none")
    on_device = [None if one is None else one.to(device) for one in tensors]
    for found in (both(layer, tensors), launched(layer, on_device)):
        assert torch.equal(found["y"].cpu().view(6).nan_to_num(7), y.detach().view(6).nan_to_num(7))
        assert torch.equal(found["gx"].cpu().view(x.shape), expected)
        assert torch.equal(found["dgx"].cpu().view(x.shape), 2 * expected)
        chosen = tangent.view(6, 4)[expected.view(6, 4) > 0]
        assert torch.equal(found["dy"].cpu().view(6), chosen)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_empty_axes_make_empty_images_and_no_gradient(empty, device, poisoned):
    shape = [2, 3, 2, 4, 6, 6]
    shape[empty] = 0
    for affine in ("channel", "element"):
        layer = Layer(tuple(shape), 2, affine=affine)
        for found in (both(layer, layer.tensors(torch.float32)), launched(layer, layer.tensors(torch.float32, device))):
            assert found["dgx"].shape == layer.shape
            assert found["y"].shape == (*shape[:4], 3, 3)
            for name in ("gweight", "dgweight", "gbias", "dgbias", "value gweight", "value gbias"):
                assert found[name].shape[:2] == tuple(shape[:2]) and found[name].eq(0).all()


def test_any_strides_are_taken(device):
    layer = Layer((2, 2, 1, 3, 4, 4), 3)
    tensors = layer.tensors(torch.float32, device)
    truth = both(layer, [one.cpu() for one in tensors])
    gy, dgy, x, dx, *affine = tensors
    wide = torch.stack((x, x), -1)[..., 0]
    mixed = (gy.transpose(0, 2).contiguous().transpose(0, 2), replace(layer, last=True).in_layout(dgy), wide, dx)
    strided = [torch.stack((one, one), -1)[..., 0] for one in affine]
    for found in (both(layer, (*mixed, *strided)), launched(layer, (*mixed, *strided))):
        assert all(error(found[name].cpu(), truth[name]) <= 1e-6 for name in truth)


@pytest.mark.parametrize("index", range(4, 8), ids=["w", "dw", "b", "db"])  # images are made dense
def test_students_lie_as_far_apart_as_they_like(index, device):
    layer = Layer((3, 1, 1, 3, 4, 4), 3)
    tensors = list(layer.tensors(torch.bfloat16, device))
    expected = launched(layer, tensors)
    tensors[index] = far(tensors[index])
    assert all(torch.equal(one, expected[name]) for name, one in launched(layer, tensors).items())


def test_bfloat16_images_take_float32_weights():
    layer = Layer((1, 2, 2, 4, 4, 4), 4)
    tensors = layer.tensors(torch.float32)
    images = [one.bfloat16() for one in tensors[:4]]
    found = both(layer, (*images, *tensors[4:]))
    truth = both(layer, [one.double() for one in (*images, *tensors[4:])])
    assert all(error(found[name], truth[name]) <= LIMITS["bf16"] for name in truth)
    assert found["y"].dtype == found["dgx"].dtype == torch.bfloat16
    assert found["gweight"].dtype == found["rstd"].dtype == torch.float32


def test_value_gradients_can_be_left_out():
    from fastdistill_kernels.gpu import norm_act_pool_backward as gpu

    for affine in ("channel", "element"):
        layer = Layer((1, 2, 2, 4, 4, 4), 4, affine=affine)
        gy, dgy, x, dx, *affine_tensors = layer.tensors(torch.float32)
        statistics = dual_norm_act_pool(x, dx, *affine_tensors, **layer.choices)[2:]
        arguments = (gy, dgy, x, dx, *affine_tensors, *statistics)
        whole = dual_norm_act_pool_backward(*arguments, **layer.choices)
        found = dual_norm_act_pool_backward(*arguments, **layer.choices, value=False)
        kernel = gpu.dual_norm_act_pool_backward(*arguments, *layer.choices.values(), False)
        assert found[2] is found[4] is None and kernel[2].numel() == kernel[4].numel() == 0
        for index in (0, 1, 3, 5):
            assert torch.equal(found[index], whole[index])
            assert error(kernel[index], whole[index]) <= 1e-5


OPERATORS = torch.ops.fastdistill


def calls(layer, dtype=torch.float32):
    """Every operator with its arguments."""
    gy, dgy, x, dx, w, dw, b, db = layer.tensors(dtype)
    choices = tuple(layer.choices.values())
    statistics = dual_norm_act_pool(x, dx, w, dw, b, db, **layer.choices)[2:]
    dual = (gy, dgy, x, dx, w, dw, b, db, *statistics, *choices)
    return (
        (OPERATORS.norm_act_pool, (x, w, b, *choices, 1e-5)),
        (OPERATORS.dual_norm_act_pool, (x, dx, w, dw, b, db, *choices, 1e-5)),
        (OPERATORS.norm_act_pool_backward, (gy, x, w, b, *statistics[:2], *choices)),
        (OPERATORS.dual_norm_act_pool_backward, (*dual, True)),
        (OPERATORS.dual_norm_act_pool_backward, (*dual, False)),
    )


def test_the_operators_keep_torchs_contract():
    for operator, arguments in calls(Layer((1, 2, 3, 4, 5, 4), 4, last=True))[:4]:
        torch.library.opcheck(operator.default, arguments)
    for operator, arguments in calls(Layer((1, 2, 2, 4, 4, 4), 0, affine="none"))[3:]:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_they_compile_whole_and_once():
    layer = Layer((2, 2, 3, 4, 5, 4), 2, "swish")
    tensors = layer.tensors(torch.float32)
    expected = both(layer, tensors)
    compiled = torch.compile(lambda *tensors: both(layer, tensors), fullgraph=True, backend="aot_eager")
    found = compiled(*tensors)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(*layer.tensors(torch.float32, seed=1))


def test_shapes_are_known_without_values():
    for layer in (AWKWARD["cropped corner"], AWKWARD["layer last"], AWKWARD["no norm"]):
        for dtype in (torch.bfloat16, torch.float64):
            for operator, arguments in calls(layer, dtype):
                with FakeTensorMode() as mode:
                    faked = [mode.from_tensor(one) if isinstance(one, torch.Tensor) else one for one in arguments]
                    found = operator(*faked)
                for one, truth in zip(found, operator(*arguments), strict=True):
                    assert (one.shape, one.dtype, one.stride()) == (truth.shape, truth.dtype, truth.stride())


def test_work_is_counted():
    layer = Layer((2, 3, 4, 6, 5, 4), 3)  # 2880 elements, 576 behind the pool, 24 images, 3 norm groups, 6 channels
    for (operator, arguments), flops in zip(calls(layer), (25920, 66240, 43200, 129600, 129600), strict=True):
        with FlopCounterMode(display=False) as counter:
            operator(*arguments)
        assert counter.get_total_flops() == flops
    plain = {"groups": 3, "parameters": 6, "pooling": "avg", "itemsize": 2}
    # x and y; weight and bias of two students; mean and 1/std in float32
    assert cost_norm_act_pool(layer.shape, **plain).bytes == 2 * (2880 + 576 + 2 * 12) + 4 * 2 * 72
    dual = cost_norm_act_pool(layer.shape, **plain, dual=True, backward=True)
    # x, gx, gy; weights, and tangents of six pairs; statistics; two gradients of six pairs: all twice
    assert dual.bytes == 2 * (2 * (2 * 2880 + 576) + 2 * (12 + 36)) + 4 * (2 * 2 * 36 + 4 * 72)
    assert cost_norm_act_pool(layer.shape, groups=0, parameters=0, pooling="none", itemsize=4).flops == 2 * 2880


def test_wrong_input_is_named():
    layer = Layer((2, 3, 2, 6, 4, 4), 2)
    gy, dgy, x, dx, w, dw, b, db = layer.tensors()
    choices = layer.choices
    for change, sentence in (
        ({"activation": "gelu"}, "expected activation among none, relu"),
        ({"pooling": "sum"}, "expected pooling among none, avg, max, got 'sum'"),
        ({"groups": 4}, "norm groups that divide 6 channels"),
        ({"groups": -1}, "norm groups that divide 6 channels"),
        ({"groups": 0}, "none without a norm"),
    ):
        with pytest.raises(ValueError, match=sentence):
            norm_act_pool(x, w, b, **(choices | change))
    for arguments, sentence in (
        ((x[0], w, b), r"expected x \[S, G, n, C, H, W\], got"),
        ((x[..., :1], w, b), "at least one channel and 2×2 pixels for pooling 'avg'"),
        ((x.long(), w, b), "in float32, bfloat16 or float64"),
        ((x, w, None), "expected weight and bias together"),
        ((x, w[:1], b), r"expected weight \[S, C\] = \[2, 6\] or"),
        ((x, w, b[:, :3]), "expected bias as weight"),
        ((x, w.float(), b), "expected weight in torch.float64 on cpu, got torch.float32"),
        ((x, w.to("meta"), b), "expected weight in torch.float64 on cpu, got torch.float64 on meta"),
    ):
        with pytest.raises(ValueError, match=sentence):
            norm_act_pool(*arguments, **choices)
    for arguments, sentence in (
        ((x, dx[:1], w, dw, b, db), r"expected dx \[S, G, n, C, H, W\]"),
        ((x, dx.float(), w, dw, b, db), "expected dx like x"),
        ((x, dx, w, None, b, db), "a tangent of weight where there is a weight"),
        ((x, dx, w, dw[:, :2], b, db), "expected dweight like weight"),
        ((x, dx, w, dw, b, db[:, 0]), "expected dbias as dweight"),
    ):
        with pytest.raises(ValueError, match=sentence):
            dual_norm_act_pool(*arguments, **choices)
    _, mean, rstd = norm_act_pool(x, w, b, **choices)
    for arguments, sentence in (
        ((x, x, w, b, mean, rstd), r"expected gy \[S, G, n, C, H′, W′\] = \[2, 3, 2, 6, 2, 2\]"),
        ((gy.float(), x, w, b, mean, rstd), "expected gy like x"),
        ((gy, x, w, b, mean[..., :1], rstd), r"expected mean \[S, G, n, groups\]"),
        ((gy, x, w, b, mean, rstd.float()), "expected rstd in torch.float64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            norm_act_pool_backward(*arguments, **choices)
    for position in range(8):
        arguments = [gy, dgy, x, dx, w, dw, b, db, mean, rstd, mean, rstd]
        arguments[position] = arguments[position].clone().requires_grad_()
        with pytest.raises(TypeError, match="requires grad"):
            dual_norm_act_pool_backward(*arguments, **choices)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="dual tensor"):
        norm_act_pool(torch.autograd.forward_ad.make_dual(x, dx), w, b, **choices)
