import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import jvp, vjp
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels.convolution_cost import cost_dual_convolution
from fastdistill_kernels.linear import (
    dual_linear,
    dual_linear_input_gradient,
    dual_linear_weight_gradient,
    linear,
    linear_input_gradient,
    linear_sizes,
    linear_weight_gradient,
)
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import DTYPES, LIMITS, error

FORWARD = ("x", "dx", "weight", "dweight", "bias", "dbias")
BACKWARD = ("gy", "dgy", "weight", "dweight")
WEIGHTS = ("x", "dx", "gy", "dgy")
# students, groups, images, inputs, outputs
SHAPES = {
    "one": (1, 1, 1, 1, 1),
    "head": (2, 3, 4, 37, 10),
    "blocks": (1, 2, 3, 32, 48),
    "no images": (2, 2, 0, 5, 3),
    "no groups": (2, 0, 4, 5, 3),
}


def tensors(shape, dtype=torch.float64, seed=0):
    students, groups, images, inputs, outputs = shape
    generator = torch.Generator().manual_seed(seed)

    def random(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    lead = (students, groups)
    return {
        "x": random(*lead, images, inputs),
        "dx": random(*lead, images, inputs),
        "weight": random(students, outputs, inputs),
        "dweight": random(*lead, outputs, inputs),
        "bias": random(students, outputs),
        "dbias": random(*lead, outputs),
        "gy": random(*lead, images, outputs),
        "dgy": random(*lead, images, outputs),
    }


def textbook(t):
    """One student and group after another, differentiated by torch."""

    def gradients(x, w, b, gy):
        return vjp(functional.linear, x, w, b)[1](gy)

    found = {name: [] for name in ("y", "dy", "gx", "dgx", "gw", "dgw", "gb", "dgb")}
    lead = t["x"].shape[:2]
    for s in range(lead[0]):
        for g in range(lead[1]):
            primals = (t["x"][s, g], t["weight"][s], t["bias"][s])
            tangents = tuple(t[name][s, g] for name in ("dx", "dweight", "dbias"))
            y, dy = jvp(functional.linear, primals, tangents)
            values, dual = jvp(gradients, (*primals, t["gy"][s, g]), (*tangents, t["dgy"][s, g]))
            parts = (y, dy, values[0], dual[0], values[1], dual[1], values[2], dual[2])
            for name, part in zip(found, parts, strict=True):
                found[name].append(part)
    return {name: torch.stack(parts).unflatten(0, lead) for name, parts in found.items()}


def every_result(t):
    """What the six operators give, by the textbook's names; what they give alone has a second word."""
    y, dy = dual_linear(*(t[name] for name in FORWARD))
    gx, dgx = dual_linear_input_gradient(*(t[name] for name in BACKWARD))
    gw, dgw, gb, dgb = dual_linear_weight_gradient(*(t[name] for name in WEIGHTS), bias=True)
    found = {"y": y, "dy": dy, "gx": gx, "dgx": dgx, "gw": gw, "dgw": dgw, "gb": gb, "dgb": dgb}
    found["y alone"] = linear(t["x"], t["weight"], t["bias"])
    found["gx alone"] = linear_input_gradient(t["gy"], t["weight"])
    found["gw alone"], found["gb alone"] = linear_weight_gradient(t["x"], t["gy"], bias=True)
    nothing, found["dgx alone"] = dual_linear_input_gradient(*(t[name] for name in BACKWARD), value=False)
    assert nothing is None
    parts = dual_linear_weight_gradient(*(t[name] for name in WEIGHTS), bias=True, value=False)
    assert parts[0] is None and parts[2] is None
    found["dgw alone"], found["dgb alone"] = parts[1], parts[3]
    return found


@pytest.mark.parametrize("name", ["one", "head", "blocks"])
def test_the_reference_equals_the_textbook(name):
    t = tensors(SHAPES[name])
    truth = textbook(t)
    for key, found in every_result(t).items():
        assert error(found, truth[key.split()[0]]) <= 1e-10, key


def test_what_is_left_out_or_shared():
    t = tensors(SHAPES["head"])
    whole = t | {name: t[name][:, 1:2].expand_as(t[name]) for name in ("dweight", "dbias")}
    whole |= {
        "x": t["x"][:1, :1].expand_as(t["x"]),
        "dx": torch.zeros_like(t["dx"]),
        "bias": torch.zeros_like(t["bias"]),
    }
    truth = textbook(whole)
    y, dy = dual_linear(t["x"][:1, :1], None, t["weight"], t["dweight"][:, 1], None, t["dbias"][:, 1])
    assert error(y, truth["y"][:, :1]) <= 1e-12 and error(dy, truth["dy"][:, :1]) <= 1e-12
    gx, dgx = dual_linear_input_gradient(t["gy"], t["dgy"], t["weight"], t["dweight"][:, 1])
    assert error(gx, truth["gx"]) <= 1e-12 and error(dgx, truth["dgx"]) <= 1e-12
    found = dual_linear_weight_gradient(t["x"][:1, :1], None, t["gy"], t["dgy"])
    assert error(found[0], truth["gw"]) <= 1e-12 and error(found[1], truth["dgw"]) <= 1e-12
    assert found[2] is None and found[3] is None
    assert linear_weight_gradient(t["x"], t["gy"])[1] is None


def launched(t, precision):
    """What the kernels give, interpreted where there is no GPU."""
    from fastdistill_kernels.gpu import linear as gpu

    y, dy = gpu.dual_linear(*(t[name] for name in FORWARD), precision)
    gx, dgx = gpu.dual_linear_input_gradient(*(t[name] for name in BACKWARD), precision, True)
    gw, dgw, gb, dgb = gpu.dual_linear_weight_gradient(*(t[name] for name in WEIGHTS), True, precision, True)
    found = {"y": y, "dy": dy, "gx": gx, "dgx": dgx, "gw": gw, "dgw": dgw, "gb": gb, "dgb": dgb}
    found["y alone"] = gpu.linear(t["x"], t["weight"], t["bias"], precision)
    found["gx alone"] = gpu.linear_input_gradient(t["gy"], t["weight"], precision)
    found["gw alone"], found["gb alone"] = gpu.linear_weight_gradient(t["x"], t["gy"], True, precision)
    return found


def check_kernels(t, precision, device):
    truth = every_result({key: tensor.double() for key, tensor in t.items()})
    here = {key: tensor.to(device) for key, tensor in t.items()}
    for key, found in launched(here, "tf32" if precision == "tf32" else "ieee").items():
        assert found.dtype == (torch.float32 if key.startswith(("gw", "dgw", "gb", "dgb")) else DTYPES[precision])
        assert found.is_contiguous() or found.numel() == 0, key
        assert error(found.cpu(), truth[key]) <= LIMITS[precision], key


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in SHAPES), ("head", "bf16"), ("head", "tf32")]
)
def test_the_kernels_equal_the_reference(name, precision, device, poisoned):
    check_kernels(tensors(SHAPES[name], DTYPES[precision]), precision, device)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lead=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)),
    extents=st.tuples(st.integers(1, 40), st.integers(1, 20)),
    shared=st.sets(st.sampled_from(["x", "dx", "dweight", "dbias", "gy", "dgy"]), max_size=3),
)
def test_the_kernels_equal_the_reference_on_any_shape(lead, extents, shared):
    t = tensors((*lead, *extents), torch.float32)
    check_kernels(t | {name: t[name][:, :1].expand_as(t[name]) for name in shared}, "float32", "cpu")


def test_bfloat16_is_rounded_once_and_its_sums_are_float32():
    t = tensors(SHAPES["head"], torch.bfloat16)
    truth = textbook({name: tensor.double() for name, tensor in t.items()})
    for key, found in every_result(t).items():
        summed = key.startswith(("gw", "dgw", "gb", "dgb"))
        assert found.dtype == (torch.float32 if summed else torch.bfloat16)
        assert error(found, truth[key.split()[0]]) <= (1e-5 if summed else 2**-8 / 3**0.5), key


def test_sums_over_nothing_are_zero():
    for key, found in every_result(tensors(SHAPES["no images"])).items():
        if key.startswith(("gw", "dgw", "gb", "dgb")):
            assert found.shape[:2] == (2, 2) and found.eq(0).all()


def test_the_operators_keep_torchs_contract():
    t = tensors(SHAPES["head"], torch.float32)
    operators = torch.ops.fastdistill
    for name, arguments in {
        "linear": (t["x"], t["weight"], t["bias"], "ieee"),
        "dual_linear": (*(t[name] for name in FORWARD), "ieee"),
        "linear_input_gradient": (t["gy"], t["weight"], "ieee"),
        "dual_linear_input_gradient": (*(t[name] for name in BACKWARD), "ieee", False),
        "linear_weight_gradient": (t["x"], t["gy"], True, "ieee"),
        "dual_linear_weight_gradient": (*(t[name] for name in WEIGHTS), True, "ieee", True),
    }.items():
        torch.library.opcheck(getattr(operators, name).default, arguments)


def test_they_compile_whole_and_once():
    t, again = tensors(SHAPES["head"], torch.float32), tensors(SHAPES["head"], torch.float32, seed=1)
    compiled = torch.compile(every_result, fullgraph=True, backend="aot_eager")
    expected, found = every_result(t), compiled(t)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(again)


def test_shapes_are_known_without_values():
    for dtype in (torch.float64, torch.bfloat16):
        t = tensors(SHAPES["head"], dtype)
        expected = every_result(t)
        with FakeTensorMode() as mode:
            found = every_result({name: mode.from_tensor(tensor) for name, tensor in t.items()})
        for key, part in found.items():
            assert part.shape == expected[key].shape and part.dtype == expected[key].dtype
            assert part.stride() == expected[key].stride()


def test_work_is_counted():
    t = tensors((2, 3, 4, 5, 7))

    def counted(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    # one product is 2·(2·3·4)·5·7 = 1680, y has 168 elements
    assert counted(lambda: linear(t["x"], t["weight"], t["bias"])) == 1680 + 168
    assert counted(lambda: dual_linear(*(t[name] for name in FORWARD))) == 5040 + 336
    assert counted(lambda: linear_input_gradient(t["gy"], t["weight"])) == 1680
    assert counted(lambda: dual_linear_input_gradient(*(t[name] for name in BACKWARD), value=False)) == 3360
    assert counted(lambda: linear_weight_gradient(t["x"], t["gy"], bias=True)) == 1680 + 168
    assert counted(lambda: dual_linear_weight_gradient(t["x"], None, t["gy"], t["dgy"])) == 3360
    sizes = linear_sizes(2, 3, 4, 5, 7)
    assert cost_dual_convolution(sizes, 2).bytes == 2 * (2 * 120 + 4 * 70 + 2 * 168)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4, 36)}, r"expected x \[S, G, n, F\] = \[2, 3, 4, 37\], got"),
        ({"x": torch.ones(2, 3, 37)}, "expected x"),
        ({"weight": torch.ones(2, 10, 37, 1)}, r"expected weight \[S, O, F\], got"),
        ({"weight": torch.ones(2, 10, 0)}, "at least one input"),
        ({"dweight": torch.ones(2, 2, 10, 37)}, "expected one number of groups, .* got 3 of x, 3 of dx, 2 of dweight"),
        ({"bias": torch.ones(2, 9)}, r"expected bias \[S, O\] = \[2, 10\], got \[2, 9\]"),
        ({"dbias": torch.ones(2, 3, 9)}, r"expected dbias \[S, G, O\]"),
        ({"dx": torch.ones(2, 3, 4, 37).double()}, "expected dx like x"),
        ({"weight": torch.ones(2, 10, 37, device="meta")}, "on cpu, got .* on meta"),
        ({"precision": "tf16"}, "expected a precision among ieee, tf32"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    t = tensors(SHAPES["head"], torch.float32)
    options = {"precision": change.get("precision", "ieee")}
    with pytest.raises(ValueError, match=sentence):
        dual_linear(*({**t, **change}[name] for name in FORWARD), **options)


def test_gradients_that_do_not_fit_are_named():
    t = tensors(SHAPES["head"], torch.float32)
    with pytest.raises(ValueError, match=r"expected gy \[S, G, n, O\] = \[2, 3, 4, 10\], got"):
        linear_input_gradient(t["gy"][..., :9], t["weight"])
    with pytest.raises(ValueError, match="expected dgy"):
        dual_linear_input_gradient(t["gy"], t["dgy"][..., :9], t["weight"], t["dweight"])
    with pytest.raises(ValueError, match="expected gy"):
        linear_weight_gradient(t["x"], t["gy"][:, :, :3])
    with pytest.raises(ValueError, match="expected one number of students"):
        dual_linear_weight_gradient(t["x"], t["dx"], t["gy"], tensors((3, 3, 4, 37, 10), torch.float32)["dgy"])


def test_derivatives_are_refused():
    t = tensors(SHAPES["head"], torch.float32)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(t["x"], t["dx"])
        with pytest.raises(TypeError, match="linear expected a plain tensor, got a dual tensor"):
            linear(dual, t["weight"])
    with pytest.raises(TypeError, match="dual_linear_weight_gradient expected a plain tensor, got one that requires"):
        dual_linear_weight_gradient(t["x"], t["dx"], t["gy"].requires_grad_(), t["dgy"])
