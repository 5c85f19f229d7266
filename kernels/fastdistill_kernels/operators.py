"""Registration of operators with torch: one definition, a reference for the CPU, a kernel for CUDA devices."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastdistill_kernels.checks import refuse_derivative

_LIBRARY = torch.library.Library("fastdistill", "DEF")
Implementation = Callable[..., Any]
_WITH_PRODUCTS = ("convolution", "linear", "first_block")  # these operators' names, whatever they go on with


def has_products(operator: str) -> bool:
    """Whether an operator's work is that of matrix products, rather than a few operations for every byte it moves."""
    return operator.removeprefix("dual_").startswith(_WITH_PRODUCTS)


def register(
    schema: str, *, reference: Implementation, kernels: str, fake: Implementation, flops: Callable[..., int]
) -> Callable[..., Any]:
    """Defines an operator in the namespace ``fastdistill`` and returns what calls it.

    No autograd formula and no batching rule, but refusals in their places: operators stand at the boundary of every
    transform. In autograd's place, because only torch's dispatcher sees every derivative: Python is not run again where
    a compiled function is called, and while that is traced ``requires_grad`` reads False inside of ``torch.func.grad``.

    Args:
        schema: torch's, such as ``scale(Tensor x, float a) -> Tensor``; no result may be a view of an argument.
        reference: computes it in plain torch, on a CPU and in float64 anywhere.
        kernels: the file in ``gpu`` whose function of the operator's name launches it on a CUDA device; it is imported,
            and triton with it, when the first CUDA tensor comes.
        fake: makes results of the right shapes, dtypes and devices from arguments without values.
        flops: counts its floating-point operations from the arguments, shapes in the place of tensors.
    """
    name = schema.partition("(")[0]

    def on_device(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            return reference(*arguments)  # the oracle's precision: no kernel is made for it
        with torch.cuda.device(tensors[0].device):
            launch = getattr(import_module(f"fastdistill_kernels.gpu.{kernels}"), name)
            return launch(*arguments)

    def refuse(*_: Any) -> Any:
        raise TypeError(
            f"{name} has a students' axis of its own and no batching rule: call it outside of vmap, with that axis "
            "written out"
        )

    def guard(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Tensor):
                refuse_derivative(name, argument)
        with torch._C._AutoDispatchBelowAutograd():  # on to the device, or to the next transform
            return operator(*arguments)

    def formula(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        return flops(*arguments)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CPU")
    _LIBRARY.impl(name, on_device, "CUDA")
    _LIBRARY.impl(name, guard, "Autograd")
    torch.library.register_fake(f"fastdistill::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"fastdistill::{name}", refuse, lib=_LIBRARY)
    packet = getattr(torch.ops.fastdistill, name)
    register_flop_formula(packet)(formula)
    operator: Callable[..., Any] = packet.default
    return operator
