"""Initial weights of students from weight distributions, keyed by student index.

Student *k* of step *t* has the same weights whatever batch of students it is drawn in: every value is addressed by
(seed, purpose, step, student index, element), see `fastdistill.draws`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdistill.derivatives.layout import Layout
from fastdistill.draws import Purpose, normal, uniform
from fastdistill.students.gtn import MeanNormed
from fastdistill.weight_norm import WeightNormed

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HEADER = 2**20  # bytes of names and shapes allowed beside the weights of a file
DISTRIBUTIONS = ("default", "xavier_normal", "xavier_uniform", "kaiming_fan_in", "kaiming_fan_out", "orthogonal")
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d, MeanNormed)
_KINDS = {"weight": "matrix", "bias": "bias", "gain": "gain"}


@dataclass(frozen=True)
class _Role:
    """What a parameter is to its layer."""

    kind: str  # "matrix", "bias", "gain" or "one"
    fan_in: int
    fan_out: int


def _roles(module: nn.Module) -> dict[str, _Role]:
    roles: dict[str, _Role] = {}
    for path, layer in module.named_modules():
        own = dict(layer.named_parameters(prefix=path, recurse=False))
        if isinstance(layer, nn.Conv2d | nn.Linear | WeightNormed):
            receptive = math.prod(layer.weight.shape[2:])
            fan_in, fan_out = layer.weight.shape[1] * receptive, layer.weight.shape[0] * receptive
            for name in own:
                roles[name] = _Role(_KINDS[name.rpartition(".")[2]], fan_in, fan_out)
        elif isinstance(layer, _NORMS):
            for name in own:
                roles[name] = _Role("one" if name.endswith("weight") else "bias", 0, 0)
        elif own:
            raise ValueError(
                f"expected parameters of convolutions, linear layers and norms, got {next(iter(own))} of a "
                f"{type(layer).__name__}: draw such weights yourself and pass them as pretrained"
            )
    return roles


def initial_weights(
    module: nn.Module, distribution: str, *, seed: int, step: int, students: Tensor, purpose: Purpose = Purpose.WEIGHTS
) -> Tensor:
    """Draws the initial weights of students.

    ``default`` is PyTorch's: weights and biases uniform within ``±1/√fan_in``. The others (gain 1; √2 for kaiming)
    draw weights as their name says and set biases to 0. Norms start at weight 1 and bias 0. Weight-normed layers start
    with gains equal to the norms of the weights they draw, so that they compute what they would without weight norm;
    for a network that has such layers ``default`` is ``kaiming_fan_in``, as Such et al. (2020) begin.

    Args:
        module: the architecture; only shapes matter.
        distribution: one of ``DISTRIBUTIONS``.
        seed: the run's seed.
        step: the outer step; keep it constant for fixed initialisations.
        students: global student indices, int64 ``[S]``.
        purpose: stream of draws.

    Returns:
        ``θ [S, P]``, float32, on the device of ``students``; padding is zero.

    Raises:
        ValueError: for an unknown distribution or a parameter of an unknown kind of layer.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"expected a weight distribution among {', '.join(DISTRIBUTIONS)}, got {distribution!r}: choose one"
        )
    layout, roles = Layout.of(module), _roles(module)
    gains = [name for name, role in roles.items() if role.kind == "gain"]
    if gains and distribution == "default":
        distribution = "kaiming_fan_in"
    scale, shift = torch.zeros(layout.size), torch.zeros(layout.size)
    gaussian = distribution in ("xavier_normal", "kaiming_fan_in", "kaiming_fan_out", "orthogonal")
    for name, span in zip(layout.shapes, layout.segments(layout.shapes), strict=True):
        role = roles[name]
        if role.kind == "one":
            shift[span] = 1.0
        elif role.kind == "matrix" or (distribution == "default" and role.fan_in):
            scale[span] = _spread(distribution, role)
    # each distribution is one affine map of one batch of standard draws, whatever the architecture
    draw = normal if gaussian else uniform
    standard = draw(seed, purpose, step, students, layout.size)
    if not gaussian:
        standard = standard * 2 - 1
    weights = standard * scale.to(students.device) + shift.to(students.device)
    if distribution == "orthogonal":
        for name, view in layout.views(weights).items():
            if roles[name].kind == "matrix":
                view.copy_(_orthogonal(view.flatten(2)).view_as(view))
    views = layout.views(weights) if gains else {}
    for name in gains:
        own = views[f"{name.removesuffix('gain')}weight"]
        views[name].copy_(torch.linalg.vector_norm(own.flatten(2), dim=2))
    return weights


def _spread(distribution: str, role: _Role) -> float:
    """Standard deviation of a normal distribution, or half the width of a uniform one."""
    match distribution:
        case "default":
            return 1 / math.sqrt(role.fan_in)
        case "xavier_normal":
            return math.sqrt(2 / (role.fan_in + role.fan_out))
        case "xavier_uniform":
            return math.sqrt(6 / (role.fan_in + role.fan_out))
        case "kaiming_fan_in":
            return math.sqrt(2 / role.fan_in)
        case "kaiming_fan_out":
            return math.sqrt(2 / role.fan_out)
        case _:
            return 1.0


def _orthogonal(matrices: Tensor) -> Tensor:
    """Orthonormal rows or columns ``[S, O, I]`` from Gaussian matrices (Saxe et al. 2014), uniform by the sign fix."""
    tall = matrices.shape[1] >= matrices.shape[2]
    q, r = torch.linalg.qr(matrices if tall else matrices.mT)
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1))[:, None, :]
    rows: Tensor = q if tall else q.mT
    return rows


def initial_buffers(module: nn.Module, count: int, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Fresh buffers ``[S, ...]`` of ``count`` students: running means 0, running variances 1, counters 0."""
    buffers: dict[str, Tensor] = {}
    for name, buffer in module.named_buffers():
        kind = dtype if buffer.is_floating_point() else buffer.dtype
        make = torch.ones if name.endswith("running_var") else torch.zeros
        buffers[name] = make(count, *buffer.shape, dtype=kind, device=device)
    return buffers


def load_pretrained(folder: Path, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Reads a folder of pretrained networks, one ``.safetensors`` file of named parameters and buffers each.

    Returns:
        Weights ``[files, P]`` and buffers, name to ``[files, ...]``, floats in float32; files sorted by name.

    Raises:
        ValueError: for an empty folder, a file that cannot be read, is larger than the architecture's weights can be,
            or has other names, shapes or kinds of numbers, and for values that are not finite.
    """
    layout, fresh = Layout.of(module), dict(module.named_buffers())
    shapes = {**layout.shapes, **{name: tuple(buffer.shape) for name, buffer in fresh.items()}}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"expected .safetensors files of weights in {folder}, got none: put one file a network there")
    rows: list[Tensor] = []
    states: dict[str, list[Tensor]] = {name: [] for name in fresh}
    for file in files:
        tensors = _read_tensors(file, 8 * sum(map(math.prod, shapes.values())) + HEADER)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if unknown := sorted(set(found) - set(shapes)):
            raise ValueError(
                f"expected only the architecture's names in {file}, got {unknown[0][:200]!r}: pretrain the same "
                "architecture"
            )
        wrong = [name for name in shapes if found.get(name) != shapes[name]]
        if wrong:
            raise ValueError(
                f"expected {wrong[0]} of shape {shapes[wrong[0]]} in {file}, got "
                f"{found.get(wrong[0], 'nothing')}: pretrain the same architecture"
            )
        for name, tensor in tensors.items():
            whole = name in fresh and not fresh[name].is_floating_point()
            if tensor.dtype != fresh[name].dtype if whole else tensor.dtype not in FLOATS:
                raise ValueError(
                    f"expected {name} in {file} as {fresh[name].dtype if whole else 'floats'}, got {tensor.dtype}: "
                    "convert it"
                )
            tensors[name] = tensor if whole else tensor.to(torch.float32)
            if not tensors[name].isfinite().all():
                raise ValueError(
                    f"expected finite values in {file}, got others in {name}: pretrain this network again or remove "
                    "the file"
                )
        rows.append(layout.flatten({name: tensors[name] for name in layout.shapes}))
        for name in fresh:
            states[name].append(tensors[name])
    return torch.stack(rows), {name: torch.stack(tensors) for name, tensors in states.items()}


def _read_tensors(file: Path, most: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # fresh weights do without

    try:
        if file.stat().st_size > most:
            raise ValueError(f"it has {file.stat().st_size} bytes, this architecture at most {most}")
        return load_file(file)
    except Exception as error:  # safetensors has an exception of its own for damaged files
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"expected a .safetensors file of weights at {file}, got one that cannot be read ({lines[0][:200]!r}): "
            "save it again with safetensors.torch.save_file, from the same architecture"
        ) from error


def draw_pretrained(
    weights: Tensor, buffers: dict[str, Tensor], *, seed: int, step: int, students: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws a network for each student, uniformly and keyed by student, from a pool on the device of ``students``.

    Weights ``[files, P]`` become ``[S, P]``, buffers ``[files, ...]`` those of the same file ``[S, ...]``.
    """
    picks = (uniform(seed, Purpose.PRETRAINED, step, students, 1)[:, 0] * weights.shape[0]).long()
    return weights[picks], {name: tensor[picks] for name, tensor in buffers.items()}
