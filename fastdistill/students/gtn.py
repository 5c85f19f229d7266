"""The student of generative teaching networks, and its norm, whose mean is part of what training differentiates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdistill.weight_norm import WeightNormed

CHANNELS = (64, 128)
HIDDEN = 256
_SLOPE = 0.1  # of leaky rectifiers


class MeanNormed(nn.Module):
    """Mean-only batch norm without momentum: ``x − mean + bias``, a bias a channel.

    In train mode the mean is that of the batch, and becomes the buffer as it is: differentiable, so that the loss of a
    network in eval mode has a derivative in the batch that it was last trained on. In eval mode it is the buffer. The
    buffer is written in place: call such a module by ``functional_call`` with a copy of it.

    Args:
        channels: of the inputs.
        flat: inputs are ``[n, channels]`` rather than maps.
    """

    running_mean: Tensor

    def __init__(self, channels: int, *, flat: bool = False) -> None:
        super().__init__()
        self._axes = (0,) if flat else (0, 2, 3)
        self._shape = (-1,) if flat else (-1, 1, 1)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[n, channels]`` or ``[n, channels, h, w]`` to the same shape."""
        mean = self.running_mean
        if self.training:
            mean = inputs.mean(self._axes)
            self.running_mean.copy_(mean)
        return inputs + (self.bias - mean).view(self._shape)


def has_only_means(module: nn.Module) -> bool:
    """Whether all buffers of a student are means that every training step sets anew, see `MeanNormed`."""
    means = [layer.running_mean for layer in module.modules() if isinstance(layer, MeanNormed)]
    return len(means) == len(list(module.buffers()))


class GTNStudent(nn.Module):
    """Two weight-normed 3x3 convolutions, each max-pooled 3x3 by stride 2, and two weight-normed linear layers.

    The student ``base_fc`` of Such et al. ("Generative teaching networks", ICML 2020), for images of any size: each
    pooling halves a side, rounding up. Mean-only batch norm stands behind every layer but the last, where it takes the
    place of a bias: one before it would cancel. Logits; their code has log-probabilities, which the loss makes here.
    """

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.
        """
        super().__init__()
        first, second = CHANNELS
        map_height, map_width = ((side + 3) // 4 for side in (height, width))
        self.body = nn.Sequential(
            WeightNormed(first, channels, 3, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            MeanNormed(first),
            nn.LeakyReLU(_SLOPE),
            WeightNormed(second, first, 3, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            MeanNormed(second),
            nn.LeakyReLU(_SLOPE),
        )
        self.head = nn.Sequential(
            WeightNormed(HIDDEN, second * map_height * map_width),
            MeanNormed(HIDDEN, flat=True),
            nn.LeakyReLU(_SLOPE),
        )
        self.classifier = WeightNormed(num_classes, HIDDEN, bias=True)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the hidden layer ``[n, 256]``."""
        maps: Tensor = self.body(images)
        hidden: Tensor = self.head(maps.flatten(1))
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
