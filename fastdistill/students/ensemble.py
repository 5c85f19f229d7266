"""The ensemble: weights ``θ [S, P]`` and buffers of many students of one architecture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdistill.config import StudentConfig
from fastdistill.draws import Purpose
from fastdistill.students.architectures import build_student
from fastdistill.students.weights import draw_pretrained, initial_buffers, initial_weights, load_pretrained


@dataclass(frozen=True, kw_only=True)
class Students:
    """Some students of the ensemble.

    Attributes:
        indices: global student indices, int64 ``[S]``; run ``r`` of ``S`` students owns ``r·S`` to ``r·S + S − 1``.
        weights: ``θ [S, P]``.
        buffers: name to ``[S, ...]``.
        carried: what a method keeps with its students from step to step, such as an optimiser's state; name to
            ``[S, ...]``.
    """

    indices: Tensor
    weights: Tensor
    buffers: dict[str, Tensor]
    carried: dict[str, Tensor] = field(default_factory=dict)

    def some(self, part: slice) -> Students:
        """A range of them."""
        return Students(
            indices=self.indices[part],
            weights=self.weights[part],
            buffers={name: tensor[part] for name, tensor in self.buffers.items()},
            carried={name: tensor[part] for name, tensor in self.carried.items()},
        )

    def to(self, device: torch.device) -> Students:
        """The same students on a device."""
        return Students(
            indices=self.indices.to(device),
            weights=self.weights.to(device),
            buffers={name: tensor.to(device) for name, tensor in self.buffers.items()},
            carried={name: tensor.to(device) for name, tensor in self.carried.items()},
        )


class Ensemble:
    """Draws students of one configuration.

    Args:
        config: architecture and weight distribution.
        shape: ``(D, H, W)`` of the images.
        num_classes: ``C``.
        seed: of the draws.
        dtype: of the weights.

    Attributes:
        module: the architecture on the meta device.
    """

    def __init__(
        self, config: StudentConfig, shape: tuple[int, int, int], num_classes: int, *, seed: int, dtype: torch.dtype
    ) -> None:
        self.module: nn.Module = student_module(config, shape, num_classes)
        self._config, self._seed, self._dtype = config, seed, dtype
        self._pool = load_pretrained(Path(config.pretrained), self.module) if config.pretrained else None

    def draw(self, step: int, indices: Tensor, purpose: Purpose = Purpose.WEIGHTS) -> Students:
        """New students of an outer step, on the device of ``indices``; ``fixed`` ones are those of step 0."""
        if self._pool is not None:
            # the first draw moves the pool to its device, for later ones this is no copy
            self._pool = _pool_to(self._pool, indices.device, self._dtype)
            weights, buffers = draw_pretrained(*self._pool, seed=self._seed, step=step, students=indices)
        else:
            born = 0 if self._config.initialization == "fixed" else step
            weights = initial_weights(
                self.module, self._config.weights, seed=self._seed, step=born, students=indices, purpose=purpose
            )
            buffers = initial_buffers(self.module, len(indices), dtype=self._dtype, device=indices.device)
        return Students(indices=indices, weights=weights.to(self._dtype), buffers=buffers)


def _pool_to(
    pool: tuple[Tensor, dict[str, Tensor]], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    weights, buffers = pool
    return weights.to(device, dtype), {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in buffers.items()
    }


def student_module(config: StudentConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The architecture of a configuration, on the meta device."""
    channels, height, width = shape
    return build_student(
        config.architecture,
        channels=channels,
        height=height,
        width=width,
        num_classes=num_classes,
        depth=config.depth,
        net_width=config.width,
        norm=config.norm,
        activation=config.activation,
        pooling=config.pooling,
    )
