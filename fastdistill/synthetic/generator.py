"""Generators of synthetic images: generative teaching networks.

Two of them. ``upsampling`` is that of Such et al. ("Generative teaching networks", ICML 2020) as its code has it: every
layer's output, bias included, times ``g / ‖W‖`` per output unit (weight norm), two nearest-neighbour upsamplings, and
twice tanh at the end. ``full`` is that of Medvedev and D'yakonov ("Learning to generate synthetic training data using
gradient matching and implicit differentiation", AIST 2021): full resolution from the second layer on, batch norm behind
the activation in the linear part and before it in the convolutional one, tanh.

Generating is ordinary differentiable code outside the primitive. Batch norm always takes the statistics of the batch
that is generated, so a generator is a pure function of its parameters and noise and nothing but these outlives a step.

Shapes: ``z`` noise of an image, ``n`` images of a batch; else the letters of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm, interpolate, leaky_relu, one_hot, pad

from fastdistill.draws import Purpose, normal, uniform
from fastdistill.generator_config import GeneratorConfig
from fastdistill.weight_norm import WeightNormed

PREFIX = "generator."  # of its parameters among what is learned
NOISE = "noise"
_SLOPE = 0.1  # of leaky rectifiers


class BatchNormed(nn.Module):
    """Batch norm by the statistics of the batch, whatever the mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[n, channels, ...]`` to the same shape."""
        return batch_norm(inputs, None, None, self.weight, self.bias, training=True)


class Upsampling(nn.Module):
    """The generator of Such et al. 2020, for sides that are multiples of 4."""

    def __init__(self, inputs: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, wide = shape
        if height % 4 or wide % 4:
            raise ValueError(
                f"expected sides that are multiples of 4 for the generator upsampling, got {height} x {wide}: use the "
                "generator full"
            )
        self.start = (width, height // 4, wide // 4)
        self.first, self.first_norm = WeightNormed(8 * width, inputs), BatchNormed(8 * width)
        self.second = WeightNormed(math.prod(self.start), 8 * width)
        self.second_norm = BatchNormed(math.prod(self.start))
        self.third, self.third_norm = WeightNormed(width // 2, width, 3, 3), BatchNormed(width // 2)
        self.last = WeightNormed(channels, width // 2, 3, 3, bias=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps noise and one-hot classes ``[n, z + C]`` to images ``[n, D, H, W]`` in [-2, 2]."""
        hidden = leaky_relu(self.first_norm(self.first(inputs)), _SLOPE)
        maps = leaky_relu(self.second_norm(self.second(hidden)), _SLOPE).unflatten(1, self.start)
        maps = leaky_relu(self.third_norm(self.third(_doubled(maps))), _SLOPE)
        images: Tensor = self.last(_doubled(maps)).tanh()
        return 2 * images


class Full(nn.Module):
    """The generator of the AIST 2021 paper, for any side."""

    def __init__(self, inputs: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, wide = shape
        self.start = (width // 2, height, wide)
        self.first, self.first_norm = nn.Linear(inputs, width), BatchNormed(width)
        self.second, self.second_norm = nn.Linear(width, math.prod(self.start)), BatchNormed(width // 2)
        self.third, self.third_norm = nn.Conv2d(width // 2, width // 4, 3, padding=1), BatchNormed(width // 4)
        self.last, self.last_norm = nn.Conv2d(width // 4, channels, 3, padding=1), BatchNormed(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps noise and one-hot classes ``[n, z + C]`` to images ``[n, D, H, W]`` in [-1, 1]."""
        hidden = self.first_norm(leaky_relu(self.first(inputs), _SLOPE))
        maps = self.second_norm(leaky_relu(self.second(hidden), _SLOPE).unflatten(1, self.start))
        maps = leaky_relu(self.third_norm(self.third(maps)), _SLOPE)
        images: Tensor = leaky_relu(self.last_norm(self.last(maps)), _SLOPE).tanh()
        return images


def _doubled(maps: Tensor) -> Tensor:
    """Maps ``[n, c, h, w]`` of twice the side, with a mirrored border of one for the convolution."""
    return pad(interpolate(maps, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode="reflect")


def build_generator(config: GeneratorConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a configuration on the meta device, for images ``(D, H, W)`` of ``C`` classes.

    Raises:
        ValueError: for a shape that the architecture cannot make.
    """
    kinds: dict[str, type[Upsampling] | type[Full]] = {"upsampling": Upsampling, "full": Full}
    with torch.device("meta"):
        return kinds[config.architecture](config.noise_size + classes, shape, config.width)


def initial_parameters(module: nn.Module, *, seed: int, runs: int, device: torch.device) -> dict[str, Tensor]:
    """Parameters to start from, by name, ``[R, ...]`` float32, keyed by run.

    Weight-normed layers start as Such et al. do: Kaiming-normal weights, gains equal to their norms, biases 0; the
    others as PyTorch does, uniform within ``±1/√fan_in``. Norms start at weight 1 and bias 0.
    """
    indices = torch.arange(runs, device=device)
    found: dict[str, Tensor] = {}
    for number, (path, layer) in enumerate((path, layer) for path, layer in module.named_modules() if path):
        shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
        count = sum(map(math.prod, shapes.values()))
        if isinstance(layer, BatchNormed):
            own = {"weight": torch.ones(runs, *shapes["weight"]), "bias": torch.zeros(runs, *shapes["bias"])}
        elif isinstance(layer, WeightNormed):
            fan_in = math.prod(shapes["weight"][1:])
            drawn = normal(seed, Purpose.GENERATOR, number, indices, math.prod(shapes["weight"]))
            weight = drawn.view(runs, *shapes["weight"]) * math.sqrt(2 / fan_in)
            own = {"weight": weight, "gain": torch.linalg.vector_norm(weight.flatten(2), dim=2)}
            if "bias" in shapes:
                own["bias"] = torch.zeros(runs, *shapes["bias"])
        else:
            fan_in = math.prod(shapes["weight"][1:])
            drawn = (2 * uniform(seed, Purpose.GENERATOR, number, indices, count) - 1) / math.sqrt(fan_in)
            parts = drawn.split([math.prod(shape) for shape in shapes.values()], dim=1)
            own = {name: part.view(runs, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        found |= {f"{path}.{name}": own[name].to(device) for name in shapes}
    return found


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The generator of a run: what is learned of it, and the images that it makes.

    Attributes:
        config: its settings.
        shape: ``(D, H, W)``.
        classes: ``C``.
        ipc: ``M``.
        runs: ``R``.
        seed: of the noise and of the parameters to start from.
    """

    config: GeneratorConfig
    shape: tuple[int, int, int]
    classes: int
    ipc: int
    runs: int
    seed: int

    def __post_init__(self) -> None:
        if self.ipc % self.config.blocks:
            raise ValueError(
                f"expected ipc to be a multiple of the generator's {self.config.blocks} blocks, got {self.ipc}: change "
                "generator.blocks or ipc"
            )
        _ = self.module  # refuses a shape that it cannot make

    @cached_property
    def module(self) -> nn.Module:
        """The network, without parameters of its own."""
        return build_generator(self.config, self.shape, self.classes)

    def initial(self, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """What is learned, before the first step: parameters ``generator.… [R, ...]`` and ``noise [R, C, M, z]``."""
        drawn = initial_parameters(self.module, seed=self.seed, runs=self.runs, device=device)
        found = {f"{PREFIX}{name}": value.to(dtype) for name, value in drawn.items()}
        if self.config.noise == "learned":
            found[NOISE] = self._noise(0, dtype, device)
        return found

    def images(self, learned: Mapping[str, Tensor], step: int) -> Tensor:
        """The images of an outer step, ``[R, C, M, D, H, W]``, differentiable in what is learned.

        Args:
            learned: by name; what is not the generator's is left alone.
            step: keys fresh noise.
        """
        return self._generated(*self.inputs(learned, step))

    def inputs(self, learned: Mapping[str, Tensor], step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters by the network's own names ``[R, ...]`` and the noise ``[R, C, M, z]`` of an outer step."""
        parameters = {name.removeprefix(PREFIX): value for name, value in learned.items() if name.startswith(PREFIX)}
        first = next(iter(parameters.values()))
        noise = learned.get(NOISE)
        if noise is None:
            # step 0 belongs to the noise that is fixed or learned
            noise = self._noise(step + 1 if self.config.noise == "fresh" else 0, first.dtype, first.device)
        return parameters, noise

    def sample(self, learned: Mapping[str, Tensor], images: int, *, seed: int) -> Tensor:
        """Images of a finished generator, class after class in turn: image ``i`` is of class ``i mod C``.

        The noise that the generator was trained on comes first, where it was fixed or learned; what is more has new
        noise. All are made in batches as large as in training, since a batch is normed by itself.

        Args:
            learned: by name; what is not the generator's is left alone.
            images: how many of each run, ``N``.
            seed: of new noise.

        Returns:
            ``[R, N, D, H, W]``.
        """
        parameters = {name.removeprefix(PREFIX): value for name, value in learned.items() if name.startswith(PREFIX)}
        first, each = next(iter(parameters.values())), -(-images // self.classes)
        parts = []
        if self.config.noise != "fresh":
            parts.append(learned[NOISE] if NOISE in learned else self._noise(0, first.dtype, first.device))
        while sum(part.shape[2] for part in parts) < each:
            parts.append(self._noise(len(parts), first.dtype, first.device, seed=seed, purpose=Purpose.SAMPLE))
        made = torch.cat([self._generated(parameters, part) for part in parts], dim=2)
        return made.transpose(1, 2).flatten(1, 2)[:, :images]

    def _generated(self, parameters: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Images ``[R, C, M, D, H, W]`` from noise ``[R, C, M, z]``, block by block."""
        runs = []
        for run in range(self.runs):
            own = {name: value[run] for name, value in parameters.items()}
            runs.append(torch.cat([self.block(own, part) for part in noise[run].chunk(self.config.blocks, 1)], dim=1))
        return torch.stack(runs)

    def block(self, parameters: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """One batch of images ``[C, m, D, H, W]`` of all classes, from one run's parameters and noise ``[C, m, z]``."""
        marks = one_hot(torch.arange(self.classes, device=noise.device), self.classes).to(noise.dtype)
        inputs = torch.cat([noise, marks[:, None].expand(-1, noise.shape[1], -1)], dim=-1)
        images: Tensor = functional_call(self.module, dict(parameters), (inputs.flatten(0, 1),))
        return images.view(self.classes, noise.shape[1], *self.shape)

    def _noise(
        self,
        number: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int | None = None,
        purpose: Purpose = Purpose.NOISE,
    ) -> Tensor:
        """Noise ``[R, C, M, z]``, keyed by run; by the run's seed where no other is given."""
        draw = normal if self.config.distribution == "normal" else uniform
        shape = (self.classes, self.ipc, self.config.noise_size)
        indices = torch.arange(self.runs, device=device)
        seed = self.seed if seed is None else seed
        return draw(seed, purpose, number, indices, math.prod(shape)).view(self.runs, *shape).to(dtype)
