"""Bytes are counted twice, by every operator's cost and from its operands: both are the same but for what is named."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastdistill_kernels as fk
from fastdistill_kernels.convolution_cost import (
    Sizes,
    cost_convolution,
    cost_convolution_input_gradient,
    cost_convolution_weight_gradient,
    cost_dual_convolution,
    cost_dual_convolution_input_gradient,
    cost_dual_convolution_weight_gradient,
)
from fastdistill_kernels.cost import Cost
from fastdistill_kernels.dsa import OPERATIONS, cost_dsa
from fastdistill_kernels.first_block import cost_first_block
from fastdistill_kernels.inner_adjoints import cost_adam_adjoint, cost_momentum_adjoint, cost_sgd_adjoint
from fastdistill_kernels.inner_steps import cost_adam_step, cost_momentum_step, cost_sgd_step
from fastdistill_kernels.linear import linear_sizes
from fastdistill_kernels.match import cost_match
from fastdistill_kernels.norm_act_pool import cost_norm_act_pool
from fastdistill_kernels.philox import cost_philox
from fastdistill_kernels.roofline import Student, held_bytes, recorded
from fastdistill_kernels.softmax_xent import cost_softmax_xent
from fastdistill_kernels.solvers import cost_cg_dots, cost_cg_update, cost_neumann_update

S, G, N, P = 2, 3, 4, 1000
PAIRS, IMAGES, CHANNELS = (S, G), (S, G, N), 4
LAYER = Sizes(students=S, groups=G, images=N, channels=CHANNELS, features=6, height=8, width=8, kernel=3, padding=1)
HEAD = linear_sizes(S, G, N, 20, 5)
NORM = {"groups": CHANNELS, "activation": "relu", "pooling": "avg"}
FIRST = {"padding": 1, "activation": "relu", "pooling": "avg"}
ADAM = {"beta2": 0.9, "epsilon": 1e-8, "decay": 0.1}


def made(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def vectors(count):
    return [made(S, P, dtype=torch.float32) for _ in range(count)]


def own(*shapes):
    return [made(S, *shape) for shape in shapes]


def duals(*shapes):
    return [made(*lead, *shape) for shape in shapes for lead in ((S,), PAIRS)]


X, Y, WEIGHT = made(*IMAGES, CHANNELS, 8, 8), made(*IMAGES, 6, 8, 8), (6, CHANNELS, 3, 3)
POOLED, STATISTICS = made(*IMAGES, CHANNELS, 4, 4), [made(*IMAGES, CHANNELS, dtype=torch.float32)] * 4
FEATURES, LOGITS = made(*IMAGES, 20), made(*IMAGES, 5)
GREY, BLOCK = made(*IMAGES, 1, 8, 8), [(6, 1, 3, 3), (6,), (6,), (6,)]
Y_POOLED = made(*IMAGES, 6, 4, 4)
RATE, MASK, STEP = made(S, dtype=torch.float32), made(S, dtype=torch.bool), made(dtype=torch.int64)
MOMENTS, SUMS = made(2, S, P, dtype=torch.float32), made(4, S, dtype=torch.float32)
OPERATION, NUMBERS = made(*PAIRS, dtype=torch.int64), made(*PAIRS, 1, 3, dtype=torch.float32)
STUDENTS = made(S, dtype=torch.int64)
TABLE = fk.RowTable(((0, 10, 100),), P)
MATCHED = [made(*PAIRS, P, dtype=torch.float32)] * 2


def norm_cost(**kind):
    return cost_norm_act_pool(tuple(X.shape), groups=CHANNELS, parameters=CHANNELS, pooling="avg", itemsize=2, **kind)


def first_cost(**kind):
    return cost_first_block(S, G, N, 1, 8, 8, 6, 1, "avg", 2, **kind)


def dsa_cost(**kind):
    return cost_dsa(OPERATIONS, S * G, N, 1, 8, 8, 2, **kind)


class Model(NamedTuple):
    """A call, its cost, and what the cost leaves out: arguments by their names, results by their numbers."""

    call: Callable[[], object]
    cost: Cost
    left_out: tuple[str, ...] = ()
    beyond: int = 0  # bytes of operands that are not read, less those that are read twice


SCALARS = (
    "rate",
    "momentum",
    "beta1",
    "number",
    "alpha",
    "alive",
    "damping",
    "sums",
    "target",
    "active",
    "state_scale",
)
MODELS = {
    "match": Model(lambda: fk.match(*MATCHED, TABLE, "ours"), cost_match(6, P, 4, "ours"), ("programs", "0")),
    "match-cos": Model(  # both gradients are read twice
        lambda: fk.match(*MATCHED, TABLE, "cos"),
        cost_match(6, P, 4, "cos"),
        ("programs", "0"),
        beyond=-2 * 6 * P * 4,
    ),
    "convolution": Model(
        lambda: fk.convolution(X, *own(WEIGHT, (6,)), padding=1), cost_convolution(LAYER, 2, bias=True)
    ),
    "dual_convolution": Model(
        lambda: fk.dual_convolution(X, X, *duals(WEIGHT, (6,)), padding=1),
        cost_dual_convolution(LAYER, 2, bias=True, dbias=True),
    ),
    "convolution_input_gradient": Model(
        lambda: fk.convolution_input_gradient(Y, *own(WEIGHT), (8, 8), padding=1),
        cost_convolution_input_gradient(LAYER, 2),
    ),
    "dual_convolution_input_gradient": Model(
        lambda: fk.dual_convolution_input_gradient(Y, Y, *duals(WEIGHT), (8, 8), padding=1),
        cost_dual_convolution_input_gradient(LAYER, 2),
    ),
    "convolution_weight_gradient": Model(
        lambda: fk.convolution_weight_gradient(X, Y, 3, padding=1, bias=True),
        cost_convolution_weight_gradient(LAYER, 2, bias=True),
    ),
    "dual_convolution_weight_gradient": Model(
        lambda: fk.dual_convolution_weight_gradient(X, X, Y, Y, 3, padding=1, bias=True),
        cost_dual_convolution_weight_gradient(LAYER, 2, bias=True),
    ),
    "linear": Model(lambda: fk.linear(FEATURES, *own((5, 20), (5,))), cost_convolution(HEAD, 2, bias=True)),
    "dual_linear": Model(
        lambda: fk.dual_linear(FEATURES, FEATURES, *duals((5, 20), (5,))),
        cost_dual_convolution(HEAD, 2, bias=True, dbias=True),
    ),
    "linear_input_gradient": Model(
        lambda: fk.linear_input_gradient(LOGITS, *own((5, 20))),
        cost_convolution_input_gradient(HEAD, 2),
    ),
    "dual_linear_input_gradient": Model(
        lambda: fk.dual_linear_input_gradient(LOGITS, LOGITS, *duals((5, 20))),
        cost_dual_convolution_input_gradient(HEAD, 2),
    ),
    "linear_weight_gradient": Model(
        lambda: fk.linear_weight_gradient(FEATURES, LOGITS, bias=True),
        cost_convolution_weight_gradient(HEAD, 2, bias=True),
    ),
    "dual_linear_weight_gradient": Model(
        lambda: fk.dual_linear_weight_gradient(FEATURES, FEATURES, LOGITS, LOGITS, bias=True),
        cost_dual_convolution_weight_gradient(HEAD, 2, bias=True),
    ),
    "norm_act_pool": Model(lambda: fk.norm_act_pool(X, *own((4,), (4,)), **NORM), norm_cost()),
    "dual_norm_act_pool": Model(
        lambda: fk.dual_norm_act_pool(X, X, *duals((4,), (4,)), **NORM),
        norm_cost(dual=True),
    ),
    "norm_act_pool_backward": Model(
        lambda: fk.norm_act_pool_backward(POOLED, X, *own((4,), (4,)), *STATISTICS[:2], **NORM),
        norm_cost(backward=True),
    ),
    "dual_norm_act_pool_backward": Model(
        lambda: fk.dual_norm_act_pool_backward(POOLED, POOLED, X, X, *duals((4,), (4,)), *STATISTICS, **NORM),
        norm_cost(dual=True, backward=True),
    ),
    "first_block": Model(lambda: fk.first_block(GREY, *own(*BLOCK), **FIRST), first_cost()),
    "first_block_backward": Model(
        lambda: fk.first_block_backward(Y_POOLED, GREY, *own(*BLOCK), **FIRST, inputs=True),
        first_cost(kind="backward", inputs=True),
    ),
    "dual_first_block": Model(
        lambda: fk.dual_first_block(GREY, *duals(*BLOCK), **FIRST),
        first_cost(kind="dual"),
    ),
    "dual_first_block_backward": Model(
        lambda: fk.dual_first_block_backward(Y_POOLED, Y_POOLED, GREY, *duals(*BLOCK), **FIRST, inputs=True),
        first_cost(kind="dual_backward", inputs=True),
    ),
    "softmax_xent": Model(
        lambda: fk.softmax_xent(LOGITS, LOGITS),
        cost_softmax_xent(LOGITS.shape, LOGITS.shape, 2, dual=False),
        ("0",),
    ),
    "dual_softmax_xent": Model(
        lambda: fk.dual_softmax_xent(LOGITS, LOGITS, LOGITS),
        cost_softmax_xent(LOGITS.shape, LOGITS.shape, 2, dual=True),
        ("0",),
    ),
    "neumann_update": Model(
        lambda: fk.neumann_update(*vectors(3), RATE, MASK), cost_neumann_update(S, P, 4), (*SCALARS, "2")
    ),
    "cg_dots": Model(lambda: fk.cg_dots(*vectors(3), RATE), cost_cg_dots(S, P, 4), (*SCALARS, "0")),
    "cg_update": Model(
        lambda: fk.cg_update(*vectors(4), SUMS, RATE, RATE, MASK), cost_cg_update(S, P, 4), (*SCALARS, "3")
    ),
    "sgd_step": Model(lambda: fk.sgd_step(*vectors(2), RATE, decay=0.1), cost_sgd_step(S, P, 4), SCALARS),
    "momentum_step": Model(
        lambda: fk.momentum_step(*vectors(3), RATE, RATE, decay=0.1), cost_momentum_step(S, P, 4), SCALARS
    ),
    "adam_step": Model(
        lambda: fk.adam_step(*vectors(1), MOMENTS, *vectors(1), RATE, RATE, STEP, **ADAM),
        cost_adam_step(S, P, 4),
        SCALARS,
    ),
    "sgd_adjoint": Model(
        lambda: fk.sgd_adjoint(*vectors(2), RATE, decay=0.1, weights=vectors(1)[0]),
        cost_sgd_adjoint(S, P, 4, weights=True),
        (*SCALARS, "1"),
    ),
    "momentum_adjoint": Model(
        lambda: fk.momentum_adjoint(
            *vectors(2),
            RATE,
            decay=0.1,
            state_scale=RATE,
            **dict(zip(("product", "velocity", "new_velocity"), vectors(3), strict=True)),
        ),
        cost_momentum_adjoint(S, P, 4),
        (*SCALARS, "2", "3"),
    ),
    "adam_adjoint": Model(
        lambda: fk.adam_adjoint(
            *vectors(1), MOMENTS, MOMENTS, MOMENTS, RATE, RATE, STEP, product=vectors(1)[0], **ADAM
        ),
        cost_adam_adjoint(S, P, 4),
        (*SCALARS, "3", "4"),
        beyond=S * P * 4,  # the old second moments
    ),
    "dsa": Model(
        lambda: fk.dsa(GREY, OPERATION, NUMBERS, OPERATIONS, align_corners=True),
        dsa_cost(),
        ("operation", "parameters"),
    ),
    "dsa_transpose": Model(
        lambda: fk.dsa_transpose(GREY, OPERATION, NUMBERS, OPERATIONS, align_corners=True),
        dsa_cost(transpose=True),
        ("operation", "parameters"),
    ),
    **{
        kind: Model(lambda kind=kind: getattr(fk, kind)(0, 0, 0, STUDENTS, P), cost_philox(S, P, kind), ())
        for kind in ("philox", "uniform", "normal")
    },
}


class Held(TorchDispatchMode):
    """Bytes of every argument by its name, and of every result by its number."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.namespace == "fastdistill":
            names = [argument.name for argument in func._schema.arguments]
            self.found |= dict(zip(names, map(held_bytes, args), strict=True))
            self.found |= {str(number): held_bytes(result) for number, result in enumerate(tree_leaves(results))}
        return results


def registered():
    """Names of the library's operators; those of tests of registration are none of it."""
    names = [name.partition("fastdistill::")[2] for name in torch._C._dispatch_get_all_op_names()]
    return {name for name in names if name and not name.startswith("test_")}


def test_every_operator_has_a_model_and_a_row_of_the_roofline():
    assert {name.partition("-")[0] for name in MODELS} == registered()
    student = Student(students=2, groups=3, shape=(1, 8, 8), width=4, depth=2, padding=1)
    assert {call.operator for call in recorded(student, real=2, synthetic=1)} == registered()


@pytest.mark.parametrize("name", MODELS)
def test_both_count_the_same_bytes(name):
    model = MODELS[name]
    with Held() as held:
        model.call()
    whole = sum(bytes for operand, bytes in held.found.items() if operand not in model.left_out)
    assert whole == model.cost.bytes + model.beyond


def test_what_costs_leave_out_is_little():
    # a number or a few of every student, pair or image, beside vectors, gradients, logits and images
    for model in MODELS.values():
        with Held() as held:
            model.call()
        out = sum(bytes for operand, bytes in held.found.items() if operand in model.left_out)
        assert out <= 0.04 * sum(held.found.values())
