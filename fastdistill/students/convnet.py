"""The ConvNet student and the layers its variants choose from."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

MAXIMUM_DEPTH = 8


def named_sequence(**layers: nn.Module | None) -> nn.Sequential:
    """Chains layers under their names, leaving out those that are None."""
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


def normalization(norm: str, channels: int, height: int, width: int) -> nn.Module:
    """Builds the affine normalisation of feature maps ``[n, channels, height, width]``.

    Args:
        norm: ``instance`` (one group per channel), ``group`` (four groups), ``layer`` (one group) or ``batch``.
        channels: channels of the map.
        height: height of the map in pixels.
        width: width of the map in pixels.

    Raises:
        ValueError: for an unknown norm, channels that do not split into groups, or a group of one value, which would
            normalise to zero whatever the image.
    """
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "instance":
            groups = channels
        case "group":
            groups = 4
        case "layer":
            groups = 1
        case _:
            raise ValueError(
                f"expected a norm out of 'none', 'instance', 'group', 'layer' and 'batch', got {norm!r}: choose one"
            )
    if channels % groups:
        raise ValueError(
            f"expected a width that is a multiple of {groups} for norm='group', got {channels}: change either"
        )
    if channels // groups * height * width == 1:
        raise ValueError(
            f"expected groups of at least two values for norm={norm!r}, got a {channels} x {height} x {width} feature "
            "map, which it makes constant: use a larger image or norm='batch'"
        )
    if norm == "layer":
        return nn.LayerNorm([channels, height, width])
    return nn.GroupNorm(groups, channels)


def activation_layer(activation: str) -> nn.Module:
    """Builds a pointwise activation, out of place so that every torch.func transform can take it.

    Args:
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``sigmoid``, ``swish`` (x times its sigmoid) or ``softplus``
            (sharpness 1).

    Raises:
        ValueError: for an unknown activation.
    """
    match activation:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()
        case "swish":
            return nn.SiLU()
        case "softplus":
            return nn.Softplus()
        case _:
            names = "'relu', 'leaky_relu', 'sigmoid', 'swish' and 'softplus'"
            raise ValueError(f"expected an activation out of {names}, got {activation!r}: choose one")


def pooling_layer(pooling: str) -> nn.Module | None:
    """Builds the 2x2 pooling of stride 2, or None for ``none``.

    Args:
        pooling: ``avg``, ``max`` or ``none``.

    Raises:
        ValueError: for an unknown pooling.
    """
    match pooling:
        case "none":
            return None
        case "avg":
            return nn.AvgPool2d(2)
        case "max":
            return nn.MaxPool2d(2)
        case _:
            raise ValueError(f"expected a pooling out of 'avg', 'max' and 'none', got {pooling!r}: choose one")


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, norm, activation and 2x2 pooling, then one linear layer.

    The student of nearly all dataset-distillation work (Gidaris and Komodakis, CVPR 2018; Zhao et al., "Dataset
    condensation with gradient matching", ICLR 2021). Grey images are padded by 3 in the first convolution, so 28 pixels
    become 32. Each block's parameters come in the order convolution weight, convolution bias, norm weight, norm bias.
    """

    def __init__(
        self,
        *,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        depth: int,
        net_width: int,
        norm: str,
        activation: str,
        pooling: str,
    ) -> None:
        """Builds the network for one image size.

        Args:
            channels: image channels ``D``.
            height: image height ``H``.
            width: image width ``W``.
            num_classes: ``C``.
            depth: number of blocks, 1 to 8.
            net_width: channels of every convolution.
            norm: ``none``, or see `normalization`.
            activation: see `activation_layer`.
            pooling: see `pooling_layer`.

        Raises:
            ValueError: for a value outside these choices, or an image that the poolings would shrink below one pixel.
        """
        super().__init__()
        if not 1 <= depth <= MAXIMUM_DEPTH:
            raise ValueError(f"expected a depth of 1 to {MAXIMUM_DEPTH}, got {depth}: choose one of these")
        first_padding = 3 if channels == 1 else 1
        map_height, map_width = (side + 2 * (first_padding - 1) for side in (height, width))
        fitting_depth = min(map_height, map_width).bit_length() - 1
        if pooling != "none" and depth > fitting_depth:
            raise ValueError(
                f"expected a depth that leaves a pixel with pooling={pooling!r}, got {depth} for a "
                f"{channels} x {height} x {width} image: the largest depth that fits is {fitting_depth}, so lower it, "
                "enlarge the image or use pooling='none'"
            )
        blocks = []
        incoming, padding = channels, first_padding
        for _ in range(depth):
            pool = pooling_layer(pooling)
            block = named_sequence(
                convolution=nn.Conv2d(incoming, net_width, 3, padding=padding),
                norm=None if norm == "none" else normalization(norm, net_width, map_height, map_width),
                activation=activation_layer(activation),
                pool=pool,
            )
            blocks.append(block)
            incoming, padding = net_width, 1
            if pool is not None:
                map_height, map_width = map_height // 2, map_width // 2
        self.body = nn.Sequential(*blocks)
        self.classifier = nn.Linear(net_width * map_height * map_width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to the flattened last feature map ``[n, F]``."""
        maps: Tensor = self.body(images)
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images ``[n, D, H, W]`` to logits ``[n, C]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
