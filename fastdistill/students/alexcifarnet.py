"""The AlexCifarNet student and its normalisation across channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

CHANNELS = 64
HIDDEN = (384, 192)


def local_response_norm(maps: Tensor, *, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Divides each value by ``(k + alpha · mean of squares)^beta`` over a window of neighbouring channels.

    The window of channel ``c`` is ``c - size//2`` to ``c + (size-1)//2``, so an even one reaches further down; channels
    outside count as zeros, in the mean too. Krizhevsky et al. (2012), §3.3, with torch's mean in place of the sum.

    Args:
        maps: feature maps ``[n, channels, height, width]``.
        size: channels in a window.
        alpha: weight of the mean square.
        beta: the exponent.
        k: offset, above 0, which keeps every derivative at a zero map finite.
    """
    # torch's own goes through avg_pool3d, whose CUDA backward adds up in no fixed order and whose CPU one is slow
    squares = pad(maps.square(), (0, 0, 0, 0, size // 2, (size - 1) // 2))
    window = squares.narrow(1, 0, maps.shape[1])
    for shift in range(1, size):
        window = window + squares.narrow(1, shift, maps.shape[1])
    return maps * (k + alpha / size * window).pow(-beta)


class LocalResponseNorm(nn.Module):
    """Local response normalisation over windows of 4 channels, with the constants of Wang et al. (2018)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[n, channels, height, width]`` to the same shape."""
        return local_response_norm(maps, size=4, alpha=0.001 / 9, beta=0.75, k=1.0)


class AlexCifarNet(nn.Module):
    """Two 5x5 convolutions with overlapping max pooling and local response normalisation, and three linear layers.

    The CIFAR-10 network of Dataset Distillation (Wang et al., 2018), which took 3 x 32 x 32 alone, for images of any
    size: each pooling halves a side, rounding up, and grey images are padded no more than others.
    """

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.

        Raises:
            ValueError: if a side of the image is not even one pixel.
        """
        super().__init__()
        if min(height, width) < 1:
            raise ValueError(
                f"expected images of at least 1 x 1 pixels for AlexCifarNet, got {height} x {width}: give the size of "
                "the images"
            )
        map_height, map_width = ((side + 3) // 4 for side in (height, width))
        self.body = nn.Sequential(
            nn.Conv2d(channels, CHANNELS, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            LocalResponseNorm(),
            nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2),
            nn.ReLU(),
            LocalResponseNorm(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.head = nn.Sequential(
            nn.Linear(CHANNELS * map_height * map_width, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(HIDDEN[1], num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the last hidden layer ``[n, 192]``."""
        maps: Tensor = self.body(images)
        hidden: Tensor = self.head(maps.flatten(1))
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
