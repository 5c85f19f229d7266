"""Settings of distribution matching. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.checks import at_least, of_kind, one_of, positive
from fastdistill.method_configs.common import shares, strategy


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """Distribution matching (DM; Zhao and Bilen 2023): mean features of every class in random networks.

    Attributes:
        kind: distribution.
        steps: updates of the synthetic images, each with fresh networks.
        real_batch: real images per class and network.
        start: what the images start from: noise or real images.
        image_learning_rate: of SGD on the synthetic images.
        image_momentum: of SGD on the synthetic images.
        augmentation: DSA strategy, one draw for the real and synthetic images of a class, or none.
        align_corners: of the sampling grid of scale and rotate; the published runs used true.
    """

    kind: str = "distribution"
    steps: int = 20_000
    real_batch: int = 256
    start: str = "real"
    image_learning_rate: float = 1.0
    image_momentum: float = 0.5
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    align_corners: bool = True

    def __post_init__(self) -> None:
        of_kind("distribution", self.kind)
        one_of("start", self.start, ("noise", "real"))
        strategy(self.augmentation)
        at_least(1, steps=self.steps, real_batch=self.real_batch)
        shares(image_momentum=self.image_momentum)
        positive(image_learning_rate=self.image_learning_rate)
