import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastdistill_kernels.convolution_cost import (
    Sizes,
    cost_convolution_weight_gradient,
    cost_dual_convolution_weight_gradient,
)
from fastdistill_kernels.convolution_weight import convolution_weight_gradient, dual_convolution_weight_gradient
from tests.kernels.any_shape import given, settings, st
from tests.kernels.comparing import DTYPES, LIMITS, error, far
from tests.kernels.convolving import BLOCKED, EMPTY, TINY, Problem, channels_last, textbook

NAMES = ("x", "dx", "gy", "dgy")
RESULTS = ("gw", "dgw", "gb", "dgb")
# columns in whole tiles of one tap, where a bias has no column to spare; more positions than one split takes
WIDE = Problem(1, 1, 2, 32, 5, 4, 3, 3, 1, 1)
SPLIT = Problem(1, 1, 5, 3, 4, 12, 11, 3, 1, 1)


def every_result(problem, t, bias=True):
    """What the two operators give, by the textbook's names; what they give alone has a second word."""
    options = {"bias": bias, **problem.settings}
    both = dual_convolution_weight_gradient(*(t[n] for n in NAMES), problem.kernel, **options)
    found = dict(zip(RESULTS, both, strict=True))
    alone = dual_convolution_weight_gradient(*(t[n] for n in NAMES), problem.kernel, value=False, **options)
    assert alone[0] is None and alone[2] is None
    found |= {"dgw alone": alone[1], "dgb alone": alone[3]}
    found["gw alone"], found["gb alone"] = convolution_weight_gradient(t["x"], t["gy"], problem.kernel, **options)
    if not bias:
        assert all(found.pop(name) is None for name in list(found) if "gb" in name)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*TINY, *BLOCKED])
def test_the_reference_equals_the_textbook(name, bias):
    problem = (TINY | BLOCKED)[name]
    t = problem.tensors()
    truth = textbook(problem, t)
    for key, found in every_result(problem, t, bias).items():
        assert error(found, truth[key.split()[0]]) <= 1e-10, key


def test_pieces_give_the_same():
    for problem in (Problem(2, 5, 1, 2, 64, 32, 32, 1), Problem(1, 2, 2, 64, 128, 18, 17, 3, 1, 1)):
        t = problem.tensors()
        truth = textbook(problem, t)
        for key, found in every_result(problem, t).items():
            assert error(found, truth[key.split()[0]]) <= 1e-10, key


def test_images_may_be_shared_and_have_no_tangent():
    problem = TINY["grey"]
    t = problem.tensors()
    for lead in ((1, 3), (2, 1), (1, 1)):
        one = t["x"][: lead[0], : lead[1]]
        truth = textbook(problem, t | {"x": one.expand_as(t["x"]), "dx": torch.zeros_like(t["x"])})
        arguments = (one, None, t["gy"], t["dgy"], problem.kernel)
        found = dual_convolution_weight_gradient(*arguments, bias=True, **problem.settings)
        assert all(error(part, truth[name]) <= 1e-12 for name, part in zip(RESULTS, found, strict=True))


def test_sums_over_nothing_are_zero():
    problem = EMPTY["no images"]
    for found in every_result(problem, problem.tensors()).values():
        assert found.shape[:2] == (2, 2) and found.eq(0).all()


def launched(problem, t, precision="ieee", bias=True, value=True):
    """The kernel's results, interpreted where there is no GPU."""
    from fastdistill_kernels.gpu import convolution_weight as gpu

    options = (problem.kernel, problem.stride, problem.padding, bias, precision)
    both = gpu.dual_convolution_weight_gradient(*(t[n] for n in NAMES), *options, value)
    found = dict(zip(RESULTS, both, strict=True))
    if value and bias:
        found["gw alone"], found["gb alone"] = gpu.convolution_weight_gradient(t["x"], t["gy"], *options)
    return found


def check_kernel(problem, precision, device, change=lambda t: t):
    t = change({name: tensor for name, tensor in problem.tensors(DTYPES[precision]).items() if name in NAMES})
    truth = every_result(problem, {name: tensor.double() for name, tensor in t.items()})
    here = {name: tensor.to(device) for name, tensor in t.items()}
    for key, found in launched(problem, here, "tf32" if precision == "tf32" else "ieee").items():
        assert found.dtype == torch.float32
        assert error(found.cpu(), truth[key]) <= LIMITS[precision], key


@pytest.mark.parametrize("name", [*TINY, *BLOCKED, *EMPTY])
def test_the_kernel_equals_the_reference_on_awkward_problems(name, device, poisoned):
    check_kernel((TINY | BLOCKED | EMPTY)[name], "float32", device)


@pytest.mark.parametrize("problem", [WIDE, SPLIT], ids=["wide", "split"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_kernel_equals_the_reference_in_every_precision(problem, precision, device, poisoned):
    check_kernel(problem, precision, device)


@pytest.mark.parametrize("problem", [TINY["five taps"], TINY["one tap, stride 2"]], ids=["five taps", "one tap"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_kernel_equals_the_reference_of_every_kernel_size(problem, precision, device, poisoned):
    check_kernel(problem, precision, device)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    leading=st.tuples(st.just(1), st.integers(1, 2), st.integers(0, 3)),
    channels=st.tuples(st.sampled_from([1, 3, 16, 32]), st.integers(1, 18)),
    sides=st.tuples(st.integers(3, 5), st.integers(3, 6)),
    taps=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.integers(0, 2)),
)
def test_the_kernel_equals_the_reference_on_any_problem(leading, channels, sides, taps):
    check_kernel(Problem(*leading, *channels, *sides, *taps), "float32", "cpu")


def mixed(t):
    return t | {"x": channels_last(t["x"]), "dgy": channels_last(t["dgy"])}


def shared(t):
    return t | {"x": t["x"][:1, :1].expand_as(t["x"]), "gy": channels_last(t["gy"])[:, :1].expand_as(t["gy"])}


@pytest.mark.parametrize("change", [mixed, shared])
@pytest.mark.parametrize("name", ["grey", "blocks"])
def test_the_kernel_takes_any_strides(name, change, device, poisoned):
    check_kernel((TINY | BLOCKED)[name], "float32", device, change)


@pytest.mark.parametrize("name", NAMES)
def test_students_lie_as_far_apart_as_they_like(name, device):
    problem = Problem(3, 1, 1, 2, 3, 3, 3, 3, 1, 1)
    t = {key: one.to(device) for key, one in problem.tensors(torch.bfloat16).items()}
    expected, found = launched(problem, t), launched(problem, t | {name: far(t[name])})
    assert all(torch.equal(one, expected[key]) for key, one in found.items())


def test_the_kernel_leaves_out_what_is_not_asked_for(device, poisoned):
    t = {name: tensor.to(device) for name, tensor in WIDE.tensors(torch.float32).items()}
    whole = launched(WIDE, t)
    found = launched(WIDE, t, value=False)
    assert found["gw"].numel() == 0 and found["gb"].numel() == 0
    assert torch.equal(found["dgw"], whole["dgw"]) and torch.equal(found["dgb"], whole["dgb"])
    found = launched(WIDE, t | {"dx": None}, bias=False)
    assert found["gb"].numel() == 0 and found["dgb"].numel() == 0
    assert error(found["dgw"], whole["dgw"]) > 1e-3  # the product with the tangent is gone
    zero = launched(WIDE, t | {"dx": torch.zeros_like(t["x"])})
    assert torch.equal(found["gw"], whole["gw"]) and torch.equal(found["dgw"], zero["dgw"])


def test_shared_images_are_not_copied():
    from fastdistill_kernels.gpu.convolution_weight import prepare_weight_gradient

    t = Problem(3, 2, 2, 16, 16, 4, 4, 3, 1, 1).tensors(torch.float32)
    images = {name: channels_last(t[name])[:1, :1].expand_as(t[name]) for name in NAMES}
    launch = prepare_weight_gradient(*images.values(), 3, 1, 1, True, "ieee", value=True)[-1][0]
    for name, image in images.items():
        assert launch.arguments[name].data_ptr() == image.data_ptr()
        assert launch.arguments[f"{name}_s"] == launch.arguments[f"{name}_g"] == 0


def test_what_32_bits_do_not_reach_is_refused():
    from fastdistill_kernels.gpu.convolution_weight import prepare_weight_gradient

    def prepare(features, channels, side, kernel=1):
        x, gy = (torch.empty(1, 1, 1, width, side, side, device="meta") for width in (channels, features))
        prepare_weight_gradient(x, None, gy, None, kernel, 1, kernel // 2, False, "ieee", value=True)

    with pytest.raises(
        ValueError, match=r"at most 2147483648 elements of one image, .* got 3 × 30000 × 30000: use fewer"
    ):
        prepare(1, 3, 30_000)
    with pytest.raises(ValueError, match=r"of one image, .* got 2 × 40000 × 40000"):
        prepare(2, 1, 40_000)
    with pytest.raises(ValueError, match=r"of one student's weight gradient, .* got 40000 × 40000 × 3 × 3"):
        prepare(40_000, 40_000, 2, kernel=3)


def test_positions_are_split_only_where_programs_are_few():
    from fastdistill_kernels.gpu.convolution_weight import prepare_weight_gradient

    def splits(problem):
        t = {n: torch.empty(tensor.shape, device="meta") for n, tensor in problem.tensors().items() if n in ("x", "gy")}
        arguments = (t["x"], None, t["gy"], None, problem.kernel, problem.stride, problem.padding, False, "ieee")
        return prepare_weight_gradient(*arguments, value=True)[0].shape[0]

    assert splits(WIDE) == 1  # too few positions
    assert splits(SPLIT) == 5
    assert splits(Problem(512, 1, 1, 1, 1, 32, 32, 1)) == 1  # enough programs


def test_results_are_the_same_bits_every_time(device):
    t = {name: tensor.to(device) for name, tensor in SPLIT.tensors(torch.float32).items()}
    first, second = launched(SPLIT, t), launched(SPLIT, t)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bfloat16_sums_are_float32():
    problem = TINY["grey"]
    t = problem.tensors(torch.bfloat16)
    truth = textbook(problem, {name: tensor.double() for name, tensor in t.items()})
    for key, found in every_result(problem, t).items():
        assert found.dtype == torch.float32
        assert error(found, truth[key.split()[0]]) <= 1e-5, key


def test_the_operators_keep_torchs_contract():
    problem = TINY["colour, stride 2"]
    t = problem.tensors(torch.float32)
    options = (problem.kernel, problem.stride, problem.padding, True, "ieee")
    operators = torch.ops.fastdistill
    torch.library.opcheck(operators.convolution_weight_gradient.default, (t["x"], t["gy"], *options))
    for value in (True, False):
        arguments = (*(t[name] for name in NAMES), *options, value)
        torch.library.opcheck(operators.dual_convolution_weight_gradient.default, arguments)


def test_they_compile_whole_and_once():
    problem = TINY["colour, stride 2"]
    t, again = problem.tensors(torch.float32), problem.tensors(torch.float32, seed=1)
    compiled = torch.compile(lambda t: every_result(problem, t), fullgraph=True, backend="aot_eager")
    expected, found = every_result(problem, t), compiled(t)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(again)


def test_shapes_and_strides_are_known_without_values():
    problem = TINY["grey"]
    for dtype in (torch.float64, torch.bfloat16):
        t = problem.tensors(dtype)
        expected = every_result(problem, t)
        with FakeTensorMode() as mode:
            fake = {name: mode.from_tensor(tensor) for name, tensor in t.items()}
            found = every_result(problem, fake)
        for key, part in found.items():
            assert part.shape == expected[key].shape and part.dtype == expected[key].dtype
            assert part.stride() == expected[key].stride()
    t = {name: tensor.to("meta") for name, tensor in problem.tensors(torch.float32).items() if name in NAMES}
    assert every_result(problem, t)["gw"].movedim(3, -1).is_contiguous()  # as kernels write it


def test_work_is_counted():
    problem = Problem(2, 3, 4, 5, 6, 8, 7, 3, 2, 1)  # gy is 2·3·4·6·4·4 = 2304 elements, each meets 5·9 inputs
    t = problem.tensors()

    def counted(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    single, dual = convolution_weight_gradient, dual_convolution_weight_gradient
    options = problem.settings
    assert counted(lambda: single(t["x"], t["gy"], 3, **options)) == 207_360
    assert counted(lambda: single(t["x"], t["gy"], 3, bias=True, **options)) == 207_360 + 2304
    arguments = [t[name] for name in NAMES]
    assert counted(lambda: dual(*arguments, 3, bias=True, **options)) == 622_080 + 4608
    assert counted(lambda: dual(*arguments, 3, bias=True, value=False, **options)) == 414_720 + 2304
    assert counted(lambda: dual(arguments[0], None, *arguments[2:], 3, value=False, **options)) == 207_360


def test_bytes_count_every_operand_once():
    sizes = Sizes(students=2, groups=3, images=4, channels=5, features=6, height=8, width=7, kernel=3, padding=1)
    x, w, y = 2 * 3 * 4 * 5 * 56, 2 * 3 * 6 * 5 * 9, 2 * 3 * 4 * 6 * 56
    assert cost_convolution_weight_gradient(sizes, 2, bias=True).bytes == 2 * (x + y) + 4 * (w + 36)
    assert cost_dual_convolution_weight_gradient(sizes, 4).bytes == 4 * (2 * x + 2 * y + 2 * w)
    assert cost_dual_convolution_weight_gradient(sizes, 4, dx=False, value=False).bytes == 4 * (x + 2 * y + w)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gy": torch.ones(2, 3, 2, 5, 5, 7)}, r"expected gy \[S, G, n, O, H', W'\] = \[2, 3, 2, 5, 6, 7\], got"),
        ({"gy": torch.ones(2, 3, 5, 6, 7)}, r"expected gy \[S, G, n, O, H', W'\], got"),
        ({"dgy": torch.ones(2, 3, 2, 4, 6, 7)}, "expected dgy"),
        ({"dx": torch.ones(3, 3, 2, 1, 6, 7)}, "expected one number of students, .* got 2 of x, 3 of dx"),
        ({"x": torch.ones(2, 3, 2, 0, 6, 7), "dx": None}, "at least one input and one output channel, got 0 and 5"),
        ({"dx": torch.ones(2, 3, 2, 1, 6, 7).double()}, "expected dx like x in torch.float32"),
        ({"kernel": 0}, "kernel and stride of at least 1"),
        ({"precision": "high"}, "expected a precision among ieee, tf32, got 'high'"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    t = TINY["grey"].tensors(torch.float32)
    options = {"kernel": 3, "padding": 1} | {name: value for name, value in change.items() if name not in NAMES}
    with pytest.raises(ValueError, match=sentence):
        dual_convolution_weight_gradient(*({**t, **change}[name] for name in NAMES), **options)


def test_derivatives_are_refused():
    t = TINY["grey"].tensors(torch.float32)
    with pytest.raises(TypeError, match="convolution_weight_gradient expected a plain tensor, got one that requires"):
        convolution_weight_gradient(t["x"], t["gy"].requires_grad_(), 3, padding=1)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(TypeError, match="expected a plain tensor, got a dual tensor"),
    ):
        dual = torch.autograd.forward_ad.make_dual(t["x"], t["dx"])
        dual_convolution_weight_gradient(dual, t["dx"], t["gy"].detach(), t["dgy"], 3, padding=1)
