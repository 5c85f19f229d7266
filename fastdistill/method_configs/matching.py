"""Settings of gradient matching, and its published recipes. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastdistill.checks import at_least, of_kind, one_of, positive
from fastdistill.method_configs.common import shares, strategy

# images per class -> (updates of the images per student, epochs of the student after each), Zhao et al. 2021
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_ITERATIONS = 1000


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Gradient matching (DC, DSA).

    Attributes:
        kind: matching.
        steps: updates of the synthetic images.
        distance: ours (row-wise cosine), mse, l1, l1_mean (a mean per row) or cos.
        tensors: names of the parameter tensors that are matched; all when empty.
        per_class: match the gradient class by class, or of all classes pooled.
        real_batch: real images per class and student.
        start: what the images start from: noise, uniform (in [0, 1)) or real images.
        image_learning_rate: of SGD on the synthetic images.
        image_momentum: of SGD on the synthetic images.
        clip_norm: longest gradient of the images; 0 for any.
        outer_loop: image updates before a new student begins.
        inner_loop: epochs a student trains on the images between two updates.
        inner_learning_rate: of that training, by SGD.
        inner_momentum: of that SGD, which every such training begins anew.
        inner_batch: images per step of that training.
        augmentation: DSA strategy such as color_crop_cutout_flip_scale_rotate, or none.
        align_corners: of the sampling grid of scale and rotate; the published runs used true.
    """

    kind: str = "matching"
    steps: int = 1000
    distance: str = "ours"
    tensors: list[str] = field(default_factory=list)
    per_class: bool = True
    real_batch: int = 256
    start: str = "noise"
    image_learning_rate: float = 0.1
    image_momentum: float = 0.5
    clip_norm: float = 0.0
    outer_loop: int = 1
    inner_loop: int = 1
    inner_learning_rate: float = 0.01
    inner_momentum: float = 0.0
    inner_batch: int = 256
    augmentation: str = "none"
    align_corners: bool = True

    def __post_init__(self) -> None:
        of_kind("matching", self.kind)
        one_of("distance", self.distance, ("ours", "mse", "l1", "l1_mean", "cos"))
        one_of("start", self.start, ("noise", "uniform", "real"))
        strategy(self.augmentation)
        at_least(1, steps=self.steps, real_batch=self.real_batch, outer_loop=self.outer_loop)
        at_least(1, inner_batch=self.inner_batch)
        at_least(0, inner_loop=self.inner_loop, clip_norm=self.clip_norm)
        shares(inner_momentum=self.inner_momentum)
        if not 0 <= self.image_momentum < 1:
            raise ValueError(
                f"expected an image_momentum in [0, 1), got {self.image_momentum}: velocities diverge from 1 on"
            )
        positive(image_learning_rate=self.image_learning_rate, inner_learning_rate=self.inner_learning_rate)


def loops(ipc: int) -> tuple[int, int]:
    """Outer and inner loop of gradient matching for a number of images per class.

    The published table ends at 50 and has gaps; between its entries the outer loop equals ``ipc``, as in the table, and
    the inner one is the nearest entry's.
    """
    if ipc in _LOOPS:
        return _LOOPS[ipc]
    return ipc, _LOOPS[min(_LOOPS, key=lambda known: abs(known - ipc))][1]


def matching_recipe(method: str, ipc: int, *, flip: bool = True, **changes: Any) -> MatchingConfig:
    """The published settings of ``dc`` or ``dsa`` for a number of images per class.

    They are those of convolutional students; for an MLP the paper used an ``image_learning_rate`` of 0.01.

    Args:
        method: dc or dsa.
        ipc: images per class.
        flip: let DSA mirror images; the recipe leaves it out for digits (MNIST, SVHN).
        **changes: fields of `MatchingConfig` that differ from the recipe.
    """
    one_of("method", method, ("dc", "dsa"))
    at_least(1, ipc=ipc)
    outer, inner = loops(ipc)
    recipe: dict[str, Any] = {"outer_loop": outer, "inner_loop": inner, "steps": _ITERATIONS * outer}
    if method == "dsa":
        strategy = "color_crop_cutout_flip_scale_rotate" if flip else "color_crop_cutout_scale_rotate"
        recipe |= {"start": "real", "augmentation": strategy}
    return MatchingConfig(**{**recipe, **changes})
