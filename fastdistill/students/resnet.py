"""The ResNet18 student and its average-pooled variant."""

from __future__ import annotations

from torch import Tensor, nn

from fastdistill.students.convnet import named_sequence, normalization

STAGE_WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions without bias around a shortcut, halving the map either by stride or by average pooling.

    With ``average_pooled`` the halving 2x2 average pool follows the first activation, and stands between the 1x1
    convolution and the norm of the shortcut.
    """

    def __init__(
        self,
        *,
        incoming: int,
        outgoing: int,
        height: int,
        width: int,
        halving: bool,
        average_pooled: bool,
        norm: str,
    ) -> None:
        """Builds one block.

        Args:
            incoming: channels of the block's input.
            outgoing: channels of its output.
            height: height of its input map in pixels.
            width: width of its input map in pixels.
            halving: whether the output map has half the side.
            average_pooled: halve by average pooling (odd sides round down) instead of stride (they round up).
            norm: see `normalization`.

        Raises:
            ValueError: for instance norm of a map of one pixel.
        """
        super().__init__()
        pooled = halving and average_pooled
        stride = 2 if halving and not average_pooled else 1
        first_height, first_width = -(-height // stride), -(-width // stride)
        self.height, self.width = (first_height // 2, first_width // 2) if pooled else (first_height, first_width)
        self.residual = named_sequence(
            convolution1=nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
            norm1=normalization(norm, outgoing, first_height, first_width),
            activation=nn.ReLU(),
            pool=nn.AvgPool2d(2) if pooled else None,
            convolution2=nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False),
            norm2=normalization(norm, outgoing, self.height, self.width),
        )
        self.shortcut = named_sequence()
        if halving or incoming != outgoing:
            self.shortcut = named_sequence(
                convolution=nn.Conv2d(incoming, outgoing, 1, stride=stride, bias=False),
                pool=nn.AvgPool2d(2) if pooled else None,
                norm=normalization(norm, outgoing, self.height, self.width),
            )
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[n, incoming, h, w]`` to ``[n, outgoing, h', w']``."""
        outer: Tensor = self.activation(self.residual(maps) + self.shortcut(maps))
        return outer


class ResNet18(nn.Module):
    """Eight basic blocks behind a 3x3 stem of stride 1, global average pooling and one linear layer.

    He et al. (CVPR 2016) with the stem for small images used by Zhao et al. (ICLR 2021), who pool 4x4 maps at 32
    pixels; pooling the whole map is the same there and fits any other size.
    """

    average_pooled = False

    def __init__(self, *, channels: int, height: int, width: int, num_classes: int, norm: str) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.
            norm: ``instance`` or ``batch``.

        Raises:
            ValueError: for another norm, or if the image shrinks below what the norm or the poolings need.
        """
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(
                f"expected norm='instance' or norm='batch' for {type(self).__name__}, got {norm!r}: choose one"
            )
        if self.average_pooled and min(height, width) < 8:
            raise ValueError(
                f"expected images of at least 8 x 8 pixels for ResNet18AP, got {height} x {width}: use a larger image "
                "or ResNet18"
            )
        incoming, map_height, map_width = STAGE_WIDTHS[0], height, width
        self.stem = named_sequence(
            convolution=nn.Conv2d(channels, incoming, 3, padding=1, bias=False),
            norm=normalization(norm, incoming, map_height, map_width),
            activation=nn.ReLU(),
        )
        blocks = []
        for stage, outgoing in enumerate(STAGE_WIDTHS):
            for position in range(BLOCKS_PER_STAGE):
                block = BasicBlock(
                    incoming=incoming,
                    outgoing=outgoing,
                    height=map_height,
                    width=map_width,
                    halving=stage > 0 and position == 0,
                    average_pooled=self.average_pooled,
                    norm=norm,
                )
                blocks.append(block)
                incoming, map_height, map_width = outgoing, block.height, block.width
        self.body = nn.Sequential(*blocks)
        self.pool = nn.Sequential()
        if not self.average_pooled:
            self.pool.append(nn.AvgPool2d((map_height, map_width)))
            map_height = map_width = 1
        self.classifier = nn.Linear(incoming * map_height * map_width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the flattened last feature map ``[n, F]``."""
        maps: Tensor = self.pool(self.body(self.stem(images)))
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class ResNet18AP(ResNet18):
    """ResNet18 whose strided convolutions are unit-stride ones followed by 2x2 average pools (Zhao et al., ICLR 2021).

    Average pooling spreads the gradient evenly over the input's pixels. The last map is kept whole, 4x4 at 32 pixels
    and 3x3 at 28, and feeds the linear layer.
    """

    average_pooled = True
