"""Launchers of `fastdistill_kernels.first_block`, and what of it is compiled ahead of time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastdistill_kernels.gpu.first_block_backward import prepare_backward
from fastdistill_kernels.gpu.first_block_forward import prepare_forward
from fastdistill_kernels.gpu.first_block_parts import Packed, Sizes, sizes_of
from fastdistill_kernels.gpu.launching import Capability, Launch, capability
from fastdistill_kernels.reference.first_block import SIDE


def first_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
) -> Tensor:
    """Launches what `fastdistill_kernels.reference.first_block.first_block` computes."""
    own = (weight, bias, norm_weight, norm_bias)
    of = capability(x.device)
    outputs, launches = prepare_forward(x, own, None, padding, activation, pooling, eps, precision, of)
    for launch in launches:
        launch.run()
    return outputs[0]


def dual_first_block(
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Launches what `fastdistill_kernels.reference.first_block.dual_first_block` computes."""
    own, along = (weight, bias, norm_weight, norm_bias), (dweight, dbias, dnorm_weight, dnorm_bias)
    of = capability(x.device)
    (y, dy), launches = prepare_forward(x, own, along, padding, activation, pooling, eps, precision, of)
    for launch in launches:
        launch.run()
    return y, dy


def _unpack(partial: Tensor | None, x: Tensor, sizes: Sizes, weight: Tensor) -> list[Tensor]:
    """Gradients of weight, bias and norm from partial sums ``[S, G, runs, O, columns]``; empty without any."""
    if partial is None:
        return [x.new_empty(0, dtype=torch.float32) for _ in range(4)]
    total = partial.sum(2)
    shape = (*total.shape[:-1], *weight.shape[2:])
    # copies, no views of a wider tensor: compiled code relies on the layout that the fake announces
    taps = total[..., : sizes.taps].contiguous().view(shape)
    vectors = [total[..., sizes.taps + index].contiguous() for index in range(3)]
    absent = [x.new_empty(0, dtype=torch.float32) for _ in range(2)]
    return [taps, vectors[0], *(vectors[1:] if sizes.normed else absent)]


def _fold(columns: Tensor | None, x: Tensor, gy: Tensor, padding: int) -> Tensor:
    """Images' gradient ``[S, G, n, D, H, W]`` from those of their patches."""
    if columns is None:
        return x.new_empty(0)
    shape = (*gy.shape[:3], *x.shape[3:])
    if not columns.numel():
        return x.new_zeros(shape)
    return functional.fold(columns, tuple(x.shape[-2:]), SIDE, padding=padding).view(shape).to(x.dtype)


def first_block_backward(
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.first_block.first_block_backward` computes."""
    own = (weight, bias, norm_weight, norm_bias)
    choices = (padding, activation, pooling, eps, precision, inputs, True, capability(x.device))
    gradients, images, launches = prepare_backward(gy, None, x, own, None, *choices)
    for launch in launches:
        launch.run()
    sizes = sizes_of(x, own, gy.shape[1], padding, pooling)
    return *_unpack(gradients[0], x, sizes, weight), _fold(images[0], x, gy, padding)


def dual_first_block_backward(
    gy: Tensor,
    dgy: Tensor,
    x: Tensor,
    weight: Tensor,
    dweight: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    norm_weight: Tensor | None,
    dnorm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dnorm_bias: Tensor | None,
    padding: int,
    activation: str,
    pooling: str,
    eps: float,
    precision: str,
    inputs: bool,
    value: bool,
) -> tuple[Tensor, ...]:
    """Launches what `fastdistill_kernels.reference.first_block.dual_first_block_backward` computes."""
    own, along = (weight, bias, norm_weight, norm_bias), (dweight, dbias, dnorm_weight, dnorm_bias)
    choices = (padding, activation, pooling, eps, precision, inputs, value, capability(x.device))
    gradients, images, launches = prepare_backward(gy, dgy, x, own, along, *choices)
    for launch in launches:
        launch.run()
    sizes = sizes_of(x, own, gy.shape[1], padding, pooling)
    values, tangents = (_unpack(partial, x, sizes, weight) for partial in gradients)
    paired = [tensor for pair in zip(values, tangents, strict=True) for tensor in pair]
    return *paired, *(_fold(columns, x, gy, padding) for columns in images)


def variants(capability: Capability) -> dict[str, list[Launch]]:
    """Launches for the first block of a ConvNet-3-128 on grey 28×28 and coloured 32×32 images, S = 16, G = 10."""
    found: dict[str, list[Launch]] = {}
    # per kernel and precision the images that take more of a device, or those that matter most
    for depth, precision, kernels in (
        (1, "bf16", ("forward", "dual", "backward", "dual_backward")),
        (1, "tf32", ("forward", "dual_backward")),
        (3, "bf16", ("moments", "dual_backward", "images")),
        (3, "tf32", ("dual", "backward", "dual_backward")),
        (3, "float32", ("forward", "dual", "dual_backward", "images")),
    ):
        launches = _variants(depth, precision, capability)
        for kernel in kernels:
            # statistics are no products of matrix units in every precision, hence named otherwise
            order = (precision, kernel) if kernel == "moments" else (f"{kernel}{depth}", precision)
            found["/".join(("first_block", *order))] = launches[kernel]
    return found


def _variants(depth: int, precision: str, capability: Capability) -> dict[str, list[Launch]]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def packed(*lead: int) -> Packed:
        return make(*lead, 128, depth, 3, 3), make(*lead, 128), make(*lead, 128), make(*lead, 128)

    size, padding = (28, 3) if depth == 1 else (32, 1)
    x, own, along = make(16, 10, 256, depth, size, size), packed(16), packed(16, 10)
    gy = make(16, 10, 256, 16, 16, 128).permute(0, 1, 2, 5, 3, 4)
    choices = (padding, "relu", "avg", 1e-5, "tf32" if precision == "tf32" else "ieee")
    forward = prepare_forward(x, own, None, *choices, capability)[-1]
    dual = prepare_forward(x, own, along, *choices, capability)[-1]
    backward = prepare_backward(gy, None, x, own, None, *choices, False, True, capability)[-1]
    dual_backward = prepare_backward(gy, gy, x, own, along, *choices, True, True, capability)[-1]
    return {
        "moments": dual[:-1],
        "forward": forward[-1:],
        "dual": dual[-1:],
        "backward": backward[-1:],
        "dual_backward": dual_backward[-2:-1],
        "images": dual_backward[-1:],
    }
