"""What every operator asks of its arguments, each refusal in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def refuse_derivatives(operator: str, *tensors: Tensor | None) -> None:
    """Refuses tensors whose derivative an operator would drop: dual, recorded by autograd, or inside a transform.

    The operator refuses these too, whoever calls it (`fastdistill_kernels.operators.register`). Public functions ask
    before, because inside of vmap a tensor's shape lacks an axis, which would be complained of instead; and because
    while Dynamo traces them, a refusal here comes out as it is, one of the operator wrapped in errors of torch.

    Args:
        operator: the caller's name.
        tensors: its arguments; None is passed over.

    Raises:
        TypeError: for any of these.
    """
    for tensor in tensors:
        for level in () if tensor is None else _levels(operator, tensor):
            refuse_derivative(operator, level)


def _levels(operator: str, tensor: Tensor) -> Iterator[Tensor]:
    """A tensor as every transform around it sees it; the derivative that would be lost may be an outer one's."""
    yield tensor
    # what is compiled has no wrappers to look at; there the operators' batching rule refuses
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            raise TypeError(
                f"{operator} expected a plain tensor, got one inside of vmap, for which it has no batching rule: call "
                "it outside, with the students' axis written out"
            )
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor


def refuse_derivative(operator: str, tensor: Tensor) -> None:
    """Refuses a tensor that is dual or requires grad, as the innermost transform around it sees it.

    Args:
        operator: the caller's name.
        tensor: its argument.

    Raises:
        TypeError: for either.
    """
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise TypeError(
            f"{operator} expected a plain tensor, got a dual tensor, whose tangent it would drop: hand value and "
            "tangent over as two tensors, or use the cotangents that the operators return"
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{operator} expected a plain tensor, got one that requires grad, whose gradient it would drop: detach "
            "it, and use the cotangents that the operators return"
        )


def expect_shape(operator: str, name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape.

    Args:
        operator: the caller's name.
        name: the argument's name.
        tensor: the argument.
        letters: its shape in letters, such as ``[S, O, I, k, k]``.
        shape: the same in numbers.

    Raises:
        ValueError: naming what was expected and what came.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{operator} expected {name} {letters} = {list(shape)}, got {list(tensor.shape)}: give it that shape"
        )


def expect_alike(operator: str, **tensors: Tensor | None) -> None:
    """Refuses tensors that differ in dtype or device, or whose dtype is none of ``DTYPES``.

    Raises:
        ValueError: naming the first two that differ.
    """
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = given[0]
    if first.dtype not in DTYPES:
        raise ValueError(
            f"{operator} expected {first_name} in float32, bfloat16 or float64, got {first.dtype}: convert it first"
        )
    for name, tensor in given[1:]:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{operator} expected {name} like {first_name} in {first.dtype} on {first.device}, got {tensor.dtype} "
                f"on {tensor.device}: convert one of them"
            )


def expect_one_of(operator: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a word that is no choice.

    Raises:
        ValueError: naming the choices.
    """
    if value not in choices:
        raise ValueError(f"{operator} expected {name} among {', '.join(choices)}, got {value!r}: choose one of these")
