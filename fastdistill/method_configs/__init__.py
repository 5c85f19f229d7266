"""Settings of the methods: frozen dataclasses, validated on construction. Nothing here imports torch."""

from __future__ import annotations

from fastdistill.method_configs.common import AUGMENTATIONS, PAD_CROP_FLIP
from fastdistill.method_configs.distribution import DistributionConfig
from fastdistill.method_configs.implicit import ImplicitConfig
from fastdistill.method_configs.matching import MatchingConfig, loops, matching_recipe
from fastdistill.method_configs.trajectory import TrajectoryConfig
from fastdistill.method_configs.unrolled import UnrolledConfig

__all__ = [
    "AUGMENTATIONS",
    "METHODS",
    "PAD_CROP_FLIP",
    "DistributionConfig",
    "ImplicitConfig",
    "MatchingConfig",
    "MethodConfig",
    "TrajectoryConfig",
    "UnrolledConfig",
    "loops",
    "matching_recipe",
]

MethodConfig = MatchingConfig | UnrolledConfig | TrajectoryConfig | ImplicitConfig | DistributionConfig
METHODS: dict[str, type[MethodConfig]] = {
    "matching": MatchingConfig,
    "unrolled": UnrolledConfig,
    "trajectory": TrajectoryConfig,
    "implicit": ImplicitConfig,
    "distribution": DistributionConfig,
}
