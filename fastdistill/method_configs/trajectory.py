"""Settings of trajectory matching. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.checks import at_least, of_kind, one_of, positive
from fastdistill.method_configs.common import STORAGES, one_way_to_save, shares, strategy


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """Trajectory matching: MTT (Cazenavette et al. 2022) and TESLA (Cui et al. 2023).

    A student starts from an expert's weights after some epoch, trains on the synthetic images for ``T`` steps, and the
    images move so that it ends where the expert was some epochs later.

    Attributes:
        kind: trajectory.
        experts: folder that ``fastdistill experts`` made.
        steps: updates of the synthetic images.
        inner_steps: steps of the student, ``T``.
        expert_epochs: epochs of the expert between the student's start and its target.
        max_start_epoch: starts are drawn below this epoch.
        batch: synthetic images per step, shuffled by every student for itself; 0 for all.
        gradient: exact (MTT), or tesla, which drops all terms that cross steps.
        halved: with tesla, half of its gradient of images and learned labels, as in the published results.
        start: what the images start from: real, noise or unit (noise of length 1 an image).
        labels: hard, learned (rows, from one-hot ones, none below zero) or expert: what the target expert says of the
            images as they are; images are then kept and judged with the mean of what all experts say.
        augmentation: DSA strategy drawn for every image in every step, or none.
        align_corners: of the sampling grid of scale and rotate.
        inner_learning_rate: what the learned step size starts from.
        least_learning_rate: the step size never falls below this.
        image_learning_rate: of SGD on the synthetic images.
        rate_learning_rate: of SGD on the step size; 0 keeps it.
        label_learning_rate: of SGD on learned labels.
        momentum: of SGD on all that is learned.
        keep: every how many steps the students' weights are stored; the steps between are computed again.
        storage: of the stored weights: same or bfloat16, which rounds their way from the start.
    """

    kind: str = "trajectory"
    experts: str = ""
    steps: int = 5000
    inner_steps: int = 50
    expert_epochs: int = 2
    max_start_epoch: int = 2
    batch: int = 0
    gradient: str = "exact"
    halved: bool = False
    start: str = "real"
    labels: str = "hard"
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    align_corners: bool = True
    inner_learning_rate: float = 0.01
    least_learning_rate: float = 1e-6
    image_learning_rate: float = 100.0
    rate_learning_rate: float = 1e-7
    label_learning_rate: float = 1.0
    momentum: float = 0.5
    keep: int = 1
    storage: str = "same"

    def __post_init__(self) -> None:
        of_kind("trajectory", self.kind)
        one_of("gradient", self.gradient, ("exact", "tesla"))
        one_of("start", self.start, ("noise", "unit", "real"))
        one_of("labels", self.labels, ("hard", "expert", "learned"))
        one_of("storage", self.storage, STORAGES)
        strategy(self.augmentation)
        at_least(1, steps=self.steps, inner_steps=self.inner_steps, expert_epochs=self.expert_epochs, keep=self.keep)
        at_least(1, max_start_epoch=self.max_start_epoch)
        at_least(0, batch=self.batch, rate_learning_rate=self.rate_learning_rate)
        shares(momentum=self.momentum)
        positive(inner_learning_rate=self.inner_learning_rate, image_learning_rate=self.image_learning_rate)
        positive(least_learning_rate=self.least_learning_rate, label_learning_rate=self.label_learning_rate)
        at_least(self.least_learning_rate, inner_learning_rate=self.inner_learning_rate)
        if self.halved and self.gradient != "tesla":
            raise ValueError(
                f"expected halved only with the gradient tesla, got {self.gradient}: leave it out, or lower "
                "method.image_learning_rate"
            )
        one_way_to_save(self.keep, self.storage)
