"""The multilayer-perceptron student."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers of 128 rectified units on the flattened image (Zhao et al., ICLR 2021)."""

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.
        """
        super().__init__()
        hidden = 128
        self.body = nn.Sequential(
            nn.Linear(channels * height * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the second hidden layer ``[n, 128]``."""
        hidden: Tensor = self.body(images.flatten(1))
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
