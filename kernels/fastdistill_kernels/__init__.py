"""Operators of student-batched dataset distillation, on torch and triton alone.

Every operator takes an explicit leading student axis and returns values *and* cotangents as plain outputs: nothing
here records a graph, so a dual tensor handed in is refused instead of losing its tangent silently.

Letters: ``S`` students, ``G`` gradient groups, ``n`` images, ``P`` parameters of one student (padding included).
"""

from fastdistill_kernels import inlined
from fastdistill_kernels.convolution import (
    convolution,
    convolution_input_gradient,
    dual_convolution,
    dual_convolution_input_gradient,
)
from fastdistill_kernels.convolution_weight import convolution_weight_gradient, dual_convolution_weight_gradient
from fastdistill_kernels.dsa import dsa, dsa_transpose
from fastdistill_kernels.first_block import dual_first_block, first_block
from fastdistill_kernels.first_block_backward import dual_first_block_backward, first_block_backward
from fastdistill_kernels.inner_adjoints import (
    AdamCotangents,
    MomentumCotangents,
    SGDCotangents,
    adam_adjoint,
    momentum_adjoint,
    sgd_adjoint,
)
from fastdistill_kernels.inner_steps import adam_step, momentum_step, sgd_step
from fastdistill_kernels.linear import (
    dual_linear,
    dual_linear_input_gradient,
    dual_linear_weight_gradient,
    linear,
    linear_input_gradient,
    linear_weight_gradient,
)
from fastdistill_kernels.match import DISTANCES, RowTable, match
from fastdistill_kernels.norm_act_pool import dual_norm_act_pool, norm_act_pool
from fastdistill_kernels.norm_act_pool_backward import dual_norm_act_pool_backward, norm_act_pool_backward
from fastdistill_kernels.philox import normal, philox, uniform
from fastdistill_kernels.softmax_xent import dual_softmax_xent, softmax_xent
from fastdistill_kernels.solvers import cg_dots, cg_update, neumann_update

__all__ = [
    "DISTANCES",
    "AdamCotangents",
    "MomentumCotangents",
    "RowTable",
    "SGDCotangents",
    "adam_adjoint",
    "adam_step",
    "cg_dots",
    "cg_update",
    "convolution",
    "convolution_input_gradient",
    "convolution_weight_gradient",
    "dsa",
    "dsa_transpose",
    "dual_convolution",
    "dual_convolution_input_gradient",
    "dual_convolution_weight_gradient",
    "dual_first_block",
    "dual_first_block_backward",
    "dual_linear",
    "dual_linear_input_gradient",
    "dual_linear_weight_gradient",
    "dual_norm_act_pool",
    "dual_norm_act_pool_backward",
    "dual_softmax_xent",
    "first_block",
    "first_block_backward",
    "inlined",
    "linear",
    "linear_input_gradient",
    "linear_weight_gradient",
    "match",
    "momentum_adjoint",
    "momentum_step",
    "neumann_update",
    "norm_act_pool",
    "norm_act_pool_backward",
    "normal",
    "philox",
    "sgd_adjoint",
    "sgd_step",
    "softmax_xent",
    "uniform",
]
