"""The VGG11 student."""

from __future__ import annotations

from torch import Tensor, nn

from fastdistill.students.convnet import normalization

STAGE_WIDTHS: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """Eight 3x3 convolutions in five max-pooled stages and one linear layer.

    After Simonyan and Zisserman (ICLR 2015), with normalisation, in the small-image form of Zhao et al. (ICLR 2021).
    Grey images are padded by 3 in the first convolution, so 28 pixels become 32.
    """

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int, norm: str) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.
            norm: ``instance`` or ``batch``.

        Raises:
            ValueError: for another norm, or if five poolings would shrink the image below one pixel.
        """
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(f"expected norm='instance' or norm='batch' for VGG11, got {norm!r}: choose one")
        first_padding = 3 if channels == 1 else 1
        enlarged = 2 * (first_padding - 1)
        map_height, map_width = height + enlarged, width + enlarged
        if min(map_height, map_width) < 32:
            raise ValueError(
                f"expected images of at least {32 - enlarged} x {32 - enlarged} pixels with {channels} channel(s) for "
                f"VGG11, got {height} x {width}: use a larger image or a ConvNet"
            )
        layers: list[nn.Module] = []
        incoming, padding = channels, first_padding
        for stage in STAGE_WIDTHS:
            for outgoing in stage:
                layers += [
                    nn.Conv2d(incoming, outgoing, 3, padding=padding),
                    normalization(norm, outgoing, map_height, map_width),
                    nn.ReLU(),
                ]
                incoming, padding = outgoing, 1
            layers.append(nn.MaxPool2d(2))
            map_height, map_width = map_height // 2, map_width // 2
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(incoming * map_height * map_width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the flattened last feature map ``[n, F]``."""
        maps: Tensor = self.body(images)
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
