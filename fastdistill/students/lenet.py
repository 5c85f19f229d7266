"""The LeNet student."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions with max pooling and three linear layers (after LeCun et al., 1998), rectified.

    Grey images are padded by 2 in the first convolution, so 28 pixels stay 28; the second convolution never pads.
    """

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.

        Raises:
            ValueError: if the image is too small for the two unpadded convolutions.
        """
        super().__init__()
        padding = 2 if channels == 1 else 0
        map_height, map_width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        if min(map_height, map_width) < 1:
            smallest = 16 - 2 * padding
            raise ValueError(
                f"expected images of at least {smallest} x {smallest} pixels with {channels} channel(s) for LeNet, "
                f"got {height} x {width}: use a larger image, an MLP or a ConvNet"
            )
        self.body = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(16 * map_height * map_width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        self.classifier = nn.Linear(84, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the last hidden layer ``[n, 84]``."""
        maps: Tensor = self.body(images)
        hidden: Tensor = self.head(maps.flatten(1))
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
