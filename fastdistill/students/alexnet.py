"""The AlexNet student."""

from __future__ import annotations

from torch import Tensor, nn


class AlexNet(nn.Module):
    """Five convolutions with three max poolings and one linear layer, without normalisation.

    The small-image version of Krizhevsky et al. (2012) used by Zhao et al. (ICLR 2021). Grey images are padded by 4 in
    the first convolution, so 28 pixels become 32.
    """

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.

        Raises:
            ValueError: if three poolings would shrink the image below one pixel.
        """
        super().__init__()
        padding = 4 if channels == 1 else 2
        map_height, map_width = ((side + 2 * (padding - 2)) // 8 for side in (height, width))
        if min(map_height, map_width) < 1:
            smallest = 8 - 2 * (padding - 2)
            raise ValueError(
                f"expected images of at least {smallest} x {smallest} pixels with {channels} channel(s) for AlexNet, "
                f"got {height} x {width}: use a larger image, an MLP or a shallower ConvNet"
            )
        self.body = nn.Sequential(
            nn.Conv2d(channels, 128, 5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(192 * map_height * map_width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the flattened last feature map ``[n, F]``."""
        maps: Tensor = self.body(images)
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
