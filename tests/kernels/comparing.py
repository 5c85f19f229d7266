"""How far a kernel's results may lie from float64's, as a share of their norm, and what makes mistakes show."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from triton._C.libtriton import ir
from triton.runtime import interpreter

LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def error(found, truth):
    """‖found − truth‖ / ‖truth‖ in float64; infinite where anything found is not a number."""
    if found.shape != truth.shape:
        raise AssertionError(f"shapes differ: {tuple(found.shape)} and {tuple(truth.shape)}")
    difference = (found.double() - truth.double()).norm()
    if not difference.isfinite():
        return float("inf")
    scale = truth.double().norm()
    return (difference / scale if scale > 0 else difference).item()


def far(tensor):
    """The same with students so far apart that 32 bits hold the distance of two, but not that of the first and third.

    The memory between them is reserved: no more is used than they take.
    """
    students, apart = tensor.shape[0], 2**30 + 8
    assert students > 2
    held = torch.empty((students - 1) * apart + tensor[0].numel(), dtype=tensor.dtype, device=tensor.device)
    spread = held.as_strided(tensor.shape, (apart, *tensor[0].contiguous().stride()))
    return spread.copy_(tensor)


def cut(values):
    """float32 without the 13 bits of the mantissa that matrix units do not read in TF32: 10 are left."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if values.dtype == np.float32 else values


@contextmanager
def tf32_products():
    """Triton's interpreter takes products in TF32 of cut operands, as matrix units do; by itself it takes all alike."""
    exact = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder, a, b, total, precision, *rest):
        if precision == ir.INPUT_PRECISION.TF32:
            a, b = (interpreter.TensorHandle(cut(operand.data), operand.dtype) for operand in (a, b))
        return exact(builder, a, b, total, precision, *rest)

    with mock.patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield


@contextmanager
def poison():
    """Fills what ``torch.empty`` makes with NaN or the largest integer: an element that a kernel forgets shows up."""
    empty = torch.empty

    def filled(*arguments, **options):
        made = empty(*arguments, **options)
        if made.is_floating_point():
            return made.fill_(float("nan"))
        return made.fill_(made.dtype == torch.bool or torch.iinfo(made.dtype).max)

    with mock.patch.object(torch, "empty", filled):
        yield
