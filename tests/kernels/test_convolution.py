import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels.convolution import (
    convolution,
    convolution_input_gradient,
    dual_convolution,
    dual_convolution_input_gradient,
)
from fastdistill_kernels.convolution_cost import (
    Sizes,
    cost_convolution,
    cost_dual_convolution,
    cost_dual_convolution_input_gradient,
)
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import DTYPES, LIMITS, error, far
from tests.kernels.convolving import BLOCKED, EMPTY, TINY, Problem, channels_last, textbook

FORWARD = ("x", "dx", "weight", "dweight", "bias", "dbias")
BACKWARD = ("gy", "dgy", "weight", "dweight")


def every_result(problem, t, **options):
    """What the four operators give, by the textbook's names; what they give alone has a second word."""
    forward, backward = [t[name] for name in FORWARD], [t[name] for name in BACKWARD]
    options |= problem.settings
    y, dy = dual_convolution(*forward, **options)
    gx, dgx = dual_convolution_input_gradient(*backward, problem.size, **options)
    nothing, alone = dual_convolution_input_gradient(*backward, problem.size, value=False, **options)
    assert nothing is None
    return {
        "y": y,
        "dy": dy,
        "gx": gx,
        "dgx": dgx,
        "y alone": convolution(t["x"], t["weight"], t["bias"], **options),
        "gx alone": convolution_input_gradient(t["gy"], t["weight"], problem.size, **options),
        "dgx alone": alone,
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*TINY, *BLOCKED])
def test_the_reference_equals_the_textbook(name, bias):
    problem = (TINY | BLOCKED)[name]
    t = problem.tensors(bias=bias)
    truth = textbook(problem, t)
    for key, found in every_result(problem, t).items():
        assert error(found, truth[key.split()[0]]) <= 1e-10, key


def test_pieces_give_the_same():
    # pairs of 2^19 bytes: several grouped calls; 45 million products a pair: a call each
    for problem in (Problem(2, 5, 1, 2, 64, 32, 32, 1), Problem(1, 2, 2, 64, 128, 18, 17, 3, 1, 1)):
        t = problem.tensors()
        truth = textbook(problem, t)
        for key, found in every_result(problem, t).items():
            assert error(found, truth[key.split()[0]]) <= 1e-10, key


def test_tangents_that_are_zero_or_shared():
    problem = TINY["grey"]
    t = problem.tensors()
    none = dual_convolution(t["x"], None, *(t[name] for name in FORWARD[2:]), **problem.settings)
    zero = dual_convolution(t["x"], torch.zeros_like(t["x"]), *(t[name] for name in FORWARD[2:]), **problem.settings)
    assert all(error(*both) <= 1e-12 for both in zip(none, zero, strict=True))
    shared = t | {"dweight": t["dweight"][:, 1], "dbias": t["dbias"][:, 1]}
    whole = t | {name: shared[name][:, None].expand_as(t[name]) for name in ("dweight", "dbias")}
    truth = textbook(problem, whole)
    for key, found in every_result(problem, shared).items():
        assert error(found, truth[key.split()[0]]) <= 1e-12, key


def test_images_may_be_shared():
    problem = TINY["grey"]
    t = problem.tensors()
    for lead in ((1, 3), (2, 1), (1, 1)):
        one = {name: t[name][: lead[0], : lead[1]] for name in ("x", "dx", "gy", "dgy")}
        whole = t | {name: one[name].expand_as(t[name]) for name in one}
        truth = textbook(problem, whole)
        y, dy = dual_convolution(one["x"], one["dx"], *(t[name] for name in FORWARD[2:]), **problem.settings)
        assert error(y, truth["y"]) <= 1e-12 and error(dy, truth["dy"]) <= 1e-12
        backward = (one["gy"], one["dgy"], t["weight"], t["dweight"], problem.size)
        gx, dgx = dual_convolution_input_gradient(*backward, **problem.settings)
        assert error(gx, truth["gx"]) <= 1e-12 and error(dgx, truth["dgx"]) <= 1e-12


def launched(problem, t, precision="ieee", value=True):
    """The kernels' results, interpreted where there is no GPU."""
    from fastdistill_kernels.gpu import convolution as gpu

    shared = (problem.stride, problem.padding, precision)
    y, dy = gpu.dual_convolution(*(t[name] for name in FORWARD), *shared)
    gx, dgx = gpu.dual_convolution_input_gradient(*(t[name] for name in BACKWARD), *problem.size, *shared, value)
    return {
        "y": y,
        "dy": dy,
        "gx": gx,
        "dgx": dgx,
        "y alone": gpu.convolution(t["x"], t["weight"], t["bias"], *shared),
        "gx alone": gpu.convolution_input_gradient(t["gy"], t["weight"], *problem.size, *shared),
    }


def check_kernel(problem, precision, device, change=lambda t: t, bias=True):
    t = change(problem.tensors(DTYPES[precision], bias=bias))
    wide = {name: None if tensor is None else tensor.double() for name, tensor in t.items()}
    truth = every_result(problem, wide)
    here = {name: None if tensor is None else tensor.to(device) for name, tensor in t.items()}
    for key, found in launched(problem, here, "tf32" if precision == "tf32" else "ieee").items():
        assert found.dtype == DTYPES[precision]
        assert error(found.cpu(), truth[key.split()[0]]) <= LIMITS[precision], key


@pytest.mark.parametrize("name", [*TINY, *BLOCKED, *EMPTY])
def test_the_kernel_equals_the_reference_on_awkward_problems(name, device, poisoned):
    check_kernel((TINY | BLOCKED | EMPTY)[name], "float32", device)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["grey", "one tap, stride 2", "five taps", "blocks, stride 2"])
def test_the_kernel_equals_the_reference_in_every_precision(name, precision, device, poisoned):
    check_kernel((TINY | BLOCKED)[name], precision, device)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    leading=st.tuples(st.just(1), st.integers(1, 2), st.integers(1, 2)),
    channels=st.tuples(st.sampled_from([1, 3, 16]), st.integers(1, 18)),
    sides=st.tuples(st.integers(3, 4), st.integers(3, 5)),
    taps=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.integers(0, 2)),
)
def test_the_kernel_equals_the_reference_on_any_problem(leading, channels, sides, taps):
    kernel, stride, padding = taps
    fitting = max(padding, -(-(kernel - min(sides)) // 2))  # a kernel has a place to be in
    check_kernel(Problem(*leading, *channels, *sides, kernel, stride, fitting), "float32", "cpu")


def views(t):
    """The same tensors in layouts that students have: images channels-last or expanded, weights in a flat vector."""
    flat = torch.cat([torch.zeros(t["weight"].shape[0], 7, dtype=t["weight"].dtype), t["weight"].flatten(1)], 1)
    return t | {
        "x": channels_last(t["x"]),
        "weight": flat[:, 7:].view_as(t["weight"]),
        "gy": channels_last(t["gy"]),
        "dgy": channels_last(t["dgy"]),
    }


def shared(t):
    return t | {
        "x": t["x"][:1, :1].expand_as(t["x"]),
        "dweight": t["dweight"][:, :1].expand_as(t["dweight"]),
        "dbias": t["dbias"][:, :1].expand_as(t["dbias"]),
        "gy": channels_last(t["gy"])[:, :1].expand_as(t["gy"]),
    }


@pytest.mark.parametrize("change", [views, shared])
@pytest.mark.parametrize("name", ["grey", "blocks both ways"])
def test_the_kernel_takes_any_strides(name, change, device, poisoned):
    check_kernel((TINY | BLOCKED)[name], "float32", device, change)


@pytest.mark.parametrize("name", ["x", "dx", "weight", "dweight", "bias", "dbias", "gy", "dgy"])
def test_students_lie_as_far_apart_as_they_like(name, device):
    problem = Problem(3, 1, 1, 2, 3, 3, 3, 3, 1, 1)
    t = {key: one.to(device) for key, one in problem.tensors(torch.bfloat16).items()}
    expected, found = launched(problem, t), launched(problem, t | {name: far(t[name])})
    assert all(torch.equal(one, expected[key]) for key, one in found.items())


def test_the_kernel_leaves_out_what_is_not_asked_for(device, poisoned):
    problem = TINY["five taps"]
    t = problem.tensors(torch.float32)
    whole = launched(problem, {name: tensor.to(device) for name, tensor in t.items()})
    t |= {"bias": None, "dbias": None, "dx": None}
    here = {name: None if tensor is None else tensor.to(device) for name, tensor in t.items()}
    found = launched(problem, here, value=False)
    expected = dual_convolution(*(t[name] for name in FORWARD), **problem.settings)
    assert error(found["y"].cpu(), expected[0]) <= 1e-5 and error(found["dy"].cpu(), expected[1]) <= 1e-5
    assert found["gx"].numel() == 0 and torch.equal(found["dgx"], whole["dgx"])


def test_shared_images_are_not_copied():
    from fastdistill_kernels.gpu.convolution import prepare_gather

    t = Problem(3, 2, 2, 16, 16, 4, 4, 3, 1, 1).tensors(torch.float32)
    x = channels_last(t["x"])[:1, :1].expand_as(t["x"])
    arguments = (x, None, t["weight"], t["dweight"], None, None, (4, 4), 1, 1, "ieee")
    launch = prepare_gather(*arguments, transposed=False, value=True)[2][0]
    assert launch.arguments["x"].data_ptr() == x.data_ptr() and launch.arguments["x_s"] == 0


def test_results_lie_where_the_first_argument_does():
    problem = BLOCKED["blocks"]
    t = problem.tensors(torch.float32)
    y = convolution(t["x"], t["weight"], **problem.settings)
    assert y.is_contiguous()
    y = convolution(channels_last(t["x"]), t["weight"], **problem.settings)
    assert y.movedim(3, -1).is_contiguous()
    # one channel fits both layouts: on a device, the faster one is made of it
    with FakeTensorMode():
        images = torch.empty(2, 3, 4, 1, 6, 6, device="cuda")
        y = convolution(images, torch.empty(2, 5, 1, 3, 3, device="cuda"))
    assert y.movedim(3, -1).is_contiguous()


def test_bfloat16_is_rounded_once():
    problem = TINY["grey"]
    t = problem.tensors(torch.bfloat16)
    truth = textbook(problem, {name: tensor.double() for name, tensor in t.items()})
    for key, found in every_result(problem, t).items():
        assert found.dtype == torch.bfloat16
        assert error(found, truth[key.split()[0]]) <= 2**-8 / 3**0.5, key


def test_the_operators_keep_torchs_contract():
    problem = TINY["colour, stride 2"]
    t = problem.tensors(torch.float32)
    shared = (problem.stride, problem.padding, "ieee")
    operators = torch.ops.fastdistill
    torch.library.opcheck(operators.convolution.default, (t["x"], t["weight"], t["bias"], *shared))
    torch.library.opcheck(operators.dual_convolution.default, (*(t[name] for name in FORWARD), *shared))
    backward = (t["gy"], t["weight"], *problem.size, *shared)
    torch.library.opcheck(operators.convolution_input_gradient.default, backward)
    backward = (*(t[name] for name in BACKWARD), *problem.size, *shared, False)
    torch.library.opcheck(operators.dual_convolution_input_gradient.default, backward)


def test_they_compile_whole_and_once():
    problem = TINY["colour, stride 2"]
    t, again = problem.tensors(torch.float32), problem.tensors(torch.float32, seed=1)
    compiled = torch.compile(lambda t: every_result(problem, t), fullgraph=True, backend="aot_eager")
    expected, found = every_result(problem, t), compiled(t)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(again)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_shapes_and_strides_are_known_without_values(layout):
    problem = BLOCKED["blocks, stride 2"]
    t = {name: tensor if tensor.ndim != 6 else layout(tensor) for name, tensor in problem.tensors().items()}
    expected = every_result(problem, t)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in t.items()}
        y, dy = dual_convolution(*(fake[name] for name in FORWARD), **problem.settings)
        backward = [fake[name] for name in BACKWARD]
        gx, dgx = dual_convolution_input_gradient(*backward, problem.size, **problem.settings)
    for key, found in {"y": y, "dy": dy, "gx": gx, "dgx": dgx}.items():
        assert found.shape == expected[key].shape and found.stride() == expected[key].stride()
        assert found.dtype == torch.float64


def test_work_is_counted():
    problem = Problem(2, 3, 4, 5, 6, 8, 7, 3, 2, 1)  # y is 2·3·4·6·4·4 = 2304 elements of 5·9 taps each
    t = problem.tensors()

    def counted(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    forward, backward = [t[name] for name in FORWARD], [t[name] for name in BACKWARD]
    assert counted(lambda: convolution(t["x"], t["weight"], **problem.settings)) == 207_360
    assert counted(lambda: convolution(t["x"], t["weight"], t["bias"], **problem.settings)) == 207_360 + 2304
    assert counted(lambda: dual_convolution(*forward, **problem.settings)) == 622_080 + 4608
    assert counted(lambda: dual_convolution(forward[0], None, *forward[2:4], **problem.settings)) == 414_720
    gradient = convolution_input_gradient
    assert counted(lambda: gradient(t["gy"], t["weight"], problem.size, **problem.settings)) == 207_360
    dual = dual_convolution_input_gradient
    assert counted(lambda: dual(*backward, problem.size, **problem.settings)) == 622_080
    assert counted(lambda: dual(*backward, problem.size, value=False, **problem.settings)) == 414_720


def test_bytes_count_every_operand_once():
    sizes = Sizes(students=2, groups=3, images=4, channels=5, features=6, height=8, width=7, kernel=3, padding=1)
    x, w, y = 2 * 3 * 4 * 5 * 56, 2 * 6 * 5 * 9, 2 * 3 * 4 * 6 * 56
    assert cost_convolution(sizes, 2, bias=True).bytes == 2 * (x + w + y + 12)
    assert cost_dual_convolution(sizes, 2).bytes == 2 * (2 * x + 4 * w + 2 * y)
    assert cost_dual_convolution(sizes, 2, dx=False, bias=True, dbias=True, shared=True).bytes == 2 * (
        x + 2 * w + 2 * y + 24
    )
    assert cost_dual_convolution_input_gradient(sizes, 4, value=False).bytes == 4 * (x + 4 * w + 2 * y)
    assert cost_dual_convolution(sizes, 2).products == 3 * 2 * y * 45


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(2, 3, 2, 4, 6, 7)}, r"expected x \[S, G, n, I, H, W\] = \[2, 3, 2, 1, 6, 7\], got"),
        ({"x": torch.ones(2, 2, 1, 6, 7)}, r"expected x \[S, G, n, I, H, W\], got"),
        ({"dx": torch.ones(2, 3, 1, 1, 6, 7)}, "expected dx .* got"),
        ({"dx": torch.ones(2, 2, 2, 1, 6, 7)}, "expected one number of groups, .* got 3 of x, 2 of dx"),
        ({"weight": torch.ones(2, 5, 1, 3, 2)}, r"expected weight \[S, O, I, k, k\] = \[2, 5, 1, 3, 3\]"),
        ({"weight": torch.ones(2, 0, 1, 3, 3)}, "at least one input and one output channel"),
        ({"dweight": torch.ones(2, 3, 5, 2, 3, 3)}, "expected dweight"),
        ({"bias": torch.ones(2, 4)}, r"expected bias \[S, O\] = \[2, 5\], got \[2, 4\]"),
        ({"dbias": torch.ones(5)}, "expected dbias"),
        ({"dweight": torch.ones(2, 3, 5, 1, 3, 3).double()}, "expected dweight like x in torch.float32"),
        ({"weight": torch.ones(2, 5, 1, 3, 3, device="meta")}, "expected weight like x in .* on cpu, got .* on meta"),
        ({"stride": 0}, "stride of at least 1"),
        ({"padding": -1}, "padding of at least 0"),
        ({"precision": "tf16"}, "expected a precision among ieee, tf32, got 'tf16'"),
        ({"x": torch.ones(2, 3, 2, 1, 2, 7), "padding": 0}, "images that a kernel of 3 fits in"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    problem = TINY["grey"]
    t = problem.tensors(torch.float32)
    options = {"stride": 1, "padding": 1, "precision": "ieee"} | {k: v for k, v in change.items() if k not in FORWARD}
    arguments = [{**t, **change}[name] for name in FORWARD]
    with pytest.raises(ValueError, match=sentence):
        dual_convolution(*arguments, **options)


def test_gradients_that_do_not_fit_are_named():
    problem = TINY["grey"]
    t = problem.tensors(torch.float32)
    backward = [t[name] for name in BACKWARD]
    with pytest.raises(ValueError, match=r"expected gy \[S, G, n, O, H', W'\] = \[2, 3, 2, 5, 7, 7\], got"):
        convolution_input_gradient(t["gy"], t["weight"], (7, 7), **problem.settings)
    with pytest.raises(ValueError, match="expected gy"):
        dual_convolution_input_gradient(*backward, (7, 7), **problem.settings)
    with pytest.raises(ValueError, match="expected dweight"):
        dual_convolution_input_gradient(*backward[:3], t["dweight"][..., :2], problem.size, **problem.settings)


def test_derivatives_are_refused():
    problem = TINY["grey"]
    t = problem.tensors(torch.float32)
    with pytest.raises(TypeError, match="dual_convolution expected a plain tensor, got one that requires grad"):
        dual_convolution(*(t[name] for name in FORWARD[:3]), t["dweight"].requires_grad_(), **problem.settings)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(t["x"], t["dx"])
        with pytest.raises(TypeError, match="convolution expected a plain tensor, got a dual tensor"):
            convolution(dual, t["weight"], **problem.settings)
        dual = torch.autograd.forward_ad.make_dual(t["gy"], t["dgy"])
        with pytest.raises(TypeError, match="convolution_input_gradient expected a plain tensor, got a dual tensor"):
            convolution_input_gradient(dual, t["weight"], problem.size, **problem.settings)


def test_what_32_bits_do_not_reach_is_refused():
    from fastdistill_kernels.gpu.convolution import prepare_gather

    def prepare(channels, features, side, kernel=1):
        x = torch.empty(1, 1, 1, 1, 1, 1, device="meta").expand(1, 1, 1, channels, side, side)
        weight = torch.empty(1, features, channels, kernel, kernel, device="meta")
        size = (side, side)
        prepare_gather(x, None, weight, None, None, None, size, 1, kernel // 2, "ieee", transposed=False, value=True)

    # an image of one pixel that is all of them is read where it lies, whatever its size; what comes of it is not
    prepare(3, 1, 30_000)
    with pytest.raises(ValueError, match=r"of a convolution's results for one image, .* got 3 × 30000 × 30000"):
        prepare(1, 3, 30_000)
    with pytest.raises(ValueError, match=r"of one student's weights, .* got 40000 × 40000 × 3 × 3: use fewer channels"):
        prepare(40_000, 40_000, 2, kernel=3)
    x = torch.empty(1, 1, 1, 3, 30_000, 30_000, device="meta")
    arguments = (x, None, torch.empty(1, 1, 3, 1, 1, device="meta"), None, None, None, (1, 1), 30_000, 0, "ieee")
    with pytest.raises(ValueError, match=r"at most 2147483648 elements of one image, .* got 3 × 30000 × 30000"):
        prepare_gather(*arguments, transposed=False, value=True)


def test_positions_are_counted_in_32_bits():
    from fastdistill_kernels.gpu.convolution import expect_indexable

    expect_indexable(2**31 - 2**16)
    with pytest.raises(ValueError, match="hand over fewer images"):
        expect_indexable(2**31 - 2**16 + 1)
