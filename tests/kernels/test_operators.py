import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastdistill_kernels as fk
from fastdistill_kernels.checks import expect_alike, expect_one_of, expect_shape, refuse_derivatives
from fastdistill_kernels.gpu.launching import Launch, capability, power_of_two, shared_bytes
from fastdistill_kernels.operators import has_products, register


def test_an_operator_is_its_reference_on_a_cpu_and_in_float64(device):
    calls = []

    def kernel(x, factor):
        calls.append(x.dtype)
        return x * factor

    twice = register(
        "test_scaled(Tensor x, float factor) -> Tensor",
        reference=lambda x, factor: x * factor,
        kernel=kernel,
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
    def f(x):
        refuse_derivatives("op", x)
        return x.sum()

    x = torch.ones(3)
    for transformed in (torch.func.grad(f), torch.func.grad(torch.func.grad(f))):
        with pytest.raises(TypeError, match="requires grad"):
            transformed(x)
    with pytest.raises(TypeError, match="requires grad"):
        torch.func.vmap(torch.func.grad(f))(x[:, None])
    with pytest.raises(TypeError, match="dual tensor"):
        torch.func.jvp(f, (x,), (x,))


def test_an_empty_grid_is_not_launched():
    Launch(kernel=None, grid=0, arguments={}).run()
    with pytest.raises(TypeError):
        Launch(kernel=None, grid=1, arguments={}).run()


def test_sizes_of_a_launch():
    assert [power_of_two(least) for least in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert capability(torch.device("cpu")) == (9, 0)
    assert shared_bytes((9, 0)) == 227 * 1024
    assert shared_bytes((9, 4)) == shared_bytes((7, 5)) == 64 * 1024
