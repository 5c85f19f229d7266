"""The field's standard student, as one ordinary module."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance norm, ReLU and 2x2 average pooling, then one linear layer.

    Parameters come block by block (convolution weight and bias, norm weight and bias), the linear weight and bias last.
    Source: Gidaris and Komodakis 2018, as used by Zhao et al. 2021 (Dataset Condensation with Gradient Matching).

    Args:
        channels: `D` of the images; with one channel the first convolution pads by 3, so that 28x28 becomes 32x32.
        num_classes: `C`, the number of logits.
        width: output channels of every convolution.
        depth: number of blocks.
        image_size: `H` and `W` in pixels, or one number for both.

    Raises:
        ValueError: if the images are too small for `depth` poolings.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int = 128,
        depth: int = 3,
        image_size: int | tuple[int, int] = 32,
    ) -> None:
        """Build the layers with PyTorch's default initial weights."""
        super().__init__()
        height, wide = (image_size, image_size) if isinstance(image_size, int) else image_size
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and channels == 1 else 1
            layers += [
                nn.Conv2d(channels if block == 0 else width, width, kernel_size=3, padding=padding),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(kernel_size=2, stride=2),
            ]
            height, wide = (height + 2 * padding - 2) // 2, (wide + 2 * padding - 2) // 2
        if min(height, wide) < 1:
            raise ValueError(f"expected images that survive {depth} poolings, got {image_size}; use a smaller depth")
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * wide, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [n, C] of images [n, D, H, W]."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
