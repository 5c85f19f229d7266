import importlib
import pkgutil
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import fastdistill_kernels as fk
from bench.kernel_cases import SMALL, KernelCase, all_cases, rounded
from fastdistill_kernels.checks import expect_alike, expect_one_of, expect_shape, refuse_derivatives
from fastdistill_kernels.gpu.launching import Launch, addressable, capability, power_of_two, shared_bytes
from fastdistill_kernels.operators import has_products, register
from tests.kernels.comparing import LIMITS, error
from tests.kernels.convolving import channels_last


def test_an_operator_is_its_reference_on_a_cpu_and_in_float64(device, monkeypatch):
    calls = []

    def kernel(x, factor):
        calls.append(x.dtype)
        return x * factor

    monkeypatch.setitem(sys.modules, "fastdistill_kernels.gpu.stand_in", SimpleNamespace(test_scaled=kernel))
    twice = register(
        "test_scaled(Tensor x, float factor) -> Tensor",
        reference=lambda x, factor: x * factor,
        kernels="stand_in",
        fake=lambda x, factor: torch.empty_like(x),
        flops=lambda x, factor: 7 * x[0],
    )
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(5, dtype=dtype, device=device)
        with FlopCounterMode(display=False) as counter:
            assert twice(x, 2.0).eq(2).all()
        assert counter.get_total_flops() == 35
    assert calls == ([torch.float32] if device.type == "cuda" else [])
    assert twice(torch.ones(5, device="meta"), 2.0).shape == (5,)


def every_operator():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastdistill::")]
    return {name.removeprefix("fastdistill::") for name in names} - {"test_scaled"}


def functions_named(name, package):
    """What files of ``gpu`` or ``reference`` have of an operator's name."""
    folder = importlib.import_module(f"fastdistill_kernels.{package}")
    files = [found.name for found in pkgutil.iter_modules(folder.__path__)]
    modules = [importlib.import_module(f"{folder.__name__}.{file}") for file in files]
    return [getattr(module, name) for module in modules if callable(getattr(module, name, None))]


def test_every_operator_has_a_kernel_and_a_reference_of_its_name():
    assert len(every_operator()) >= 30
    for name in every_operator():
        assert functions_named(name, "gpu") and functions_named(name, "reference"), name


SIZES = replace(SMALL, side=4)  # every extent is more than one, whose stride would say nothing


def case(name, operator, *shapes, precisions=("float32", "tf32", "bf16"), last=None):
    """A case of these operands, the one at ``last`` channels-last."""

    def operands(_, numbers):
        made = [numbers(*shape) for shape in shapes]
        return tuple(channels_last(one) if at == last else one for at, one in enumerate(made))

    return KernelCase(name=name, precisions=precisions, operands=operands, operator=operator)


def first_blocks():
    """First blocks of colours that are neighbours in memory: of one colour, results would lie as the device likes."""
    images, maps = (2, 3, 2, 3, 4, 4), (2, 3, 2, 16, 2, 2)
    own, along = ((2, 16, 3, 3, 3), *3 * [(2, 16)]), ((2, 3, 16, 3, 3, 3), *3 * [(2, 3, 16)])
    both = [shape for pair in zip(own, along, strict=True) for shape in pair]
    # smooth: a rounding that moves an element across a kink would show as much as a mistake does
    options = {"padding": 1, "activation": "softplus", "pooling": "avg"}
    yield case("first_block", partial(fk.first_block, **options), images, *own, last=0)
    yield case("dual_first_block", partial(fk.dual_first_block, **options), images, *both, last=0)
    options["inputs"] = True
    yield case("first_block_backward", partial(fk.first_block_backward, **options), maps, images, *own, last=1)
    operator = partial(fk.dual_first_block_backward, **options)
    yield case("dual_first_block_backward", operator, maps, maps, images, *both, last=2)


CASES = {case.name: case for case in (*all_cases(), *first_blocks())}


class Calls(TorchDispatchMode):
    """Keeps the operators that are called inside, with their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastdistill":
            self.found.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def calls_of(name, precision, device):
    """The operators that a case calls."""
    chosen = CASES[name]
    operands, _ = rounded(chosen, SIZES, precision, device)
    with Calls() as calls:
        chosen.operator(*operands, **chosen.policy(precision))
    return calls.found


def laid_out(results):
    return [(one.shape, one.stride(), one.dtype) for one in tree_leaves(results)]


@pytest.mark.parametrize("name", CASES)
def test_what_is_launched_lies_as_the_fake_says(name, device):
    precision = CASES[name].precisions[-1]  # bfloat16 where there is that: its sums have a dtype of their own
    for operator, arguments in calls_of(name, precision, device):
        if operator == "match":  # which is told what to do where there are kernels
            a, b, _, *segments, distance = arguments
            rows = fk.RowTable(tuple(zip(*segments, strict=True)), a.shape[-1])
            arguments = a, b, rows.programs_on(distance, device), *segments, distance
        on_meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), arguments)
        expected = getattr(torch.ops.fastdistill, operator)(*on_meta)
        launch, *_ = functions_named(operator, "gpu")
        assert laid_out(launch(*arguments)) == laid_out(expected), operator


def test_every_operator_is_in_a_case():
    cpu = torch.device("cpu")
    called = {operator for name in CASES for operator, _ in calls_of(name, "float32", cpu)}
    assert called == every_operator()


def product_errors(operator, arguments):
    """Of an operator's results but those that have an element for every channel alone, which are sums, no products."""
    (launch, *_), (reference, *_) = (functions_named(operator, package) for package in ("gpu", "reference"))
    exact = tree_map_only(torch.Tensor, lambda tensor: tensor.double().cpu(), arguments)
    both = zip(tree_leaves(launch(*arguments)), tree_leaves(reference(*exact)), strict=True)
    return [error(found.cpu(), truth) for found, truth in both if truth.ndim > 3]


PRODUCTS = [name for name in CASES if has_products(name)]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_in_tf32_are_taken_in_tf32(name, device):
    for operator, arguments in calls_of(name, "tf32", device):
        errors = product_errors(operator, arguments)
        assert errors and LIMITS["float32"] < min(errors) and max(errors) <= LIMITS["tf32"], (operator, errors)


# the others' own tests show it; those of first blocks have numbers of bfloat16, which TF32 holds as well
@pytest.mark.parametrize("name", [name for name in PRODUCTS if "first_block" in name])
def test_products_in_float32_are_not(name, device):
    for operator, arguments in calls_of(name, "float32", device):
        assert max(product_errors(operator, arguments)) <= LIMITS["float32"], operator


def test_which_operators_are_products():
    assert all(map(has_products, ["convolution", "dual_linear_weight_gradient", "first_block_backward"]))
    assert not any(map(has_products, ["match", "dual_norm_act_pool", "dsa", "philox", "cg_update", "softmax_xent"]))


def test_every_public_name_is_there():
    assert len(set(fk.__all__)) == len(fk.__all__)
    assert all(hasattr(fk, name) for name in fk.__all__)


def test_checks_say_what_was_expected_and_what_came():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"op expected x \[S, P\] = \[2, 4\], got \[2, 3\]: give it that shape"):
        expect_shape("op", "x", x, "[S, P]", (2, 4))
    with pytest.raises(ValueError, match=r"op expected b like a in torch\.float32 on cpu, got torch\.float64 on cpu"):
        expect_alike("op", a=x, none=None, b=x.double())
    with pytest.raises(ValueError, match=r"op expected b like a in torch\.float32 on cpu, got torch\.float32 on meta"):
        expect_alike("op", a=x, b=x.to("meta"))
    with pytest.raises(ValueError, match=r"op expected a in float32, bfloat16 or float64, got torch\.float16"):
        expect_alike("op", a=x.half())
    with pytest.raises(ValueError, match="op expected a norm among a, b, got 'c': choose one of these"):
        expect_one_of("op", "a norm", "c", ("a", "b"))
    refuse_derivatives("op", x, None)
    with torch.no_grad():
        refuse_derivatives("op", x.clone().requires_grad_())


def test_no_transform_gets_through():
    table = fk.RowTable(((0, 2, 3),), 6)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

    def distance(a, b):
        return fk.match(a, b, table, "ours")[0].sum()

    def raw_distance(a, b):
        return torch.ops.fastdistill.match(a, b, None, [0], [2], [3], "ours")[0].sum()

    def batched(a):
        return torch.func.vmap(distance)(a, a).sum()

    def along(y):
        return torch.func.jvp(lambda z: distance(x * y, z), (x,), (x,))[0]

    for transformed in (batched, torch.func.grad(batched), torch.func.grad(lambda a: distance(a, a)), along):
        with pytest.raises(TypeError, match=r"inside of vmap|dual tensor|requires grad"):
            transformed(x)
    with pytest.raises(TypeError, match=r"inside of vmap|dual tensor|requires grad"):
        torch.func.jvp(along, (x,), (x,))
    with pytest.raises(TypeError, match="match has a students' axis of its own and no batching rule"):
        torch.func.vmap(lambda a: raw_distance(a, a))(x)
    # a compiled function's refusal comes inside of an error of torch's where the operator was run to find its shapes
    for function in (distance, raw_distance):
        compiled = torch.compile(lambda y, f=function: torch.func.grad(lambda z: f(x, z))(y), backend="aot_eager")
        with pytest.raises((TypeError, RuntimeError), match="match expected a plain tensor, got one that requires"):
            compiled(x)
    leaf = x.clone().requires_grad_()
    for function in (raw_distance, torch.compile(raw_distance, backend="aot_eager")):
        with pytest.raises((TypeError, RuntimeError), match="match expected a plain tensor, got one that requires"):
            function(leaf, x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        for function in (raw_distance, *(torch.compile(f, backend="aot_eager") for f in (distance, raw_distance))):
            function(x, x)  # what is compiled has been compiled for plain tensors, which look the same
            with pytest.raises(TypeError, match="match expected a plain tensor, got a dual"):
                function(dual, x)


def test_what_records_no_derivative_or_has_none_gets_through():
    table = fk.RowTable(((0, 2, 3),), 6)
    x, y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    value, cotangent = fk.match(x, y, table, "ours")

    def weighted(z):
        found, along = fk.match(z.detach(), y, table, "ours")
        return found.sum() + (along * z).sum()

    for function in (weighted, torch.compile(weighted, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        function(leaf).backward()
        assert torch.equal(leaf.grad, cotangent)
    slope = torch.func.grad(lambda z: (z * fk.match(x, y, table, "ours")[0]).sum())
    for function in (slope, torch.compile(slope, fullgraph=True, backend="aot_eager")):
        assert torch.equal(function(torch.ones(4)), value)
    with torch.no_grad():
        assert torch.equal(fk.match(leaf, y, table, "ours")[0], value)
    with torch.inference_mode():
        assert torch.equal(fk.match(x, y, table, "ours")[0], value)


def test_an_empty_grid_is_not_launched():
    Launch(kernel=None, grid=0, arguments={}).run()
    with pytest.raises(TypeError):
        Launch(kernel=None, grid=1, arguments={}).run()


def test_sizes_of_a_launch():
    assert [power_of_two(least) for least in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert capability(torch.device("cpu")) == (9, 0)
    assert shared_bytes((9, 0)) == 227 * 1024
    assert shared_bytes((9, 4)) == shared_bytes((7, 5)) == 64 * 1024


def test_a_view_past_32_bits_is_copied():
    near = torch.empty(2, 3, 5, 7)
    assert addressable(near, 3) is near
    far = torch.empty(1).as_strided((3, 2, 2, 2), (0, 0, 0, 0))
    wide = torch.empty(0, device="meta").as_strided((2, 3, 1, 1), (1, 2**30, 1, 1))
    assert addressable(far, 3) is far
    assert addressable(wide, 3).stride() == (3, 1, 1, 1)
