"""Settings of unrolled training. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.checks import at_least, at_most, of_kind, one_of, positive
from fastdistill.method_configs.common import OPTIMIZERS, PAD_CROP_FLIP, STORAGES, one_way_to_save, shares, strategy

_FIRST_STEPS = 4  # that students are trained where steps grow


@dataclass(frozen=True, kw_only=True)
class UnrolledConfig:
    """Unrolled training: Dataset Distillation (Wang et al. 2018) and RaT-BPTT (Feng et al. 2024).

    Students train on the synthetic images for ``T`` steps, and the images move along the derivative of their loss on
    real images. The images of every class are split into ``batches`` batches, and as many steps as there are batches
    are an epoch: ``T = batches · epochs``.

    Attributes:
        kind: unrolled.
        steps: updates of the synthetic images.
        batches: batches that the synthetic images are split into; ipc is a multiple of it.
        epochs: times that the students go through the batches.
        drawn: every step draws its images, as many as a batch has, instead of taking the batches in turn.
        drawn_classes: classes of a drawn step; 0 for all.
        window: steps that are differentiated, the last ones that are trained at all; 0 for all.
        window_start: where the window begins: at random, always at the last place, or moving there over the run.
        window_least: the first place where it may begin.
        window_every: updates that share a random start.
        grow_every: updates after which students train one step more, from 4 to all; 0 for all from the beginning.
        grow_backwards: the last steps come first, and each further one stands before them.
        intermediate_every: steps between further outer losses inside the window, of equal weight; 0 for none.
        real_batch: real images per student of the outer loss, of any class.
        real_augmentation: of these: a DSA strategy, pad_crop_flip (Wang et al.), or none.
        start: what the images start from: noise, unit (noise of length 1 an image), uniform (in [0, 1)) or real images.
        optimizer: of the students: sgd, momentum or adam.
        inner_learning_rate: what the rate of every step starts from.
        inner_momentum: of every step, for momentum and (as beta 1) for adam; learned as well when learn_momenta.
        inner_decay: weight decay of the students.
        augmentation: DSA strategy that synthetic images are shown through, drawn anew in every step, or none.
        align_corners: of the sampling grid of scale and rotate.
        learn_rates: learn the rate of every step, through a softplus.
        learn_momenta: learn the momentum of every step, through a sigmoid.
        learn_labels: learn the labels' rows, from one-hot ones, none below zero.
        outer_optimizer: of all that is learned: adam or sgd.
        learning_rate: of it.
        beta1: of adam; the momentum of sgd.
        beta2: of adam.
        epsilon: of adam, added to the root of its mean squares.
        decay_every: updates after which adam's rate is multiplied by decay; 0 for never.
        decay: that factor.
        final_share: share of adam's rate that half a cosine over the run's steps ends at; 1 for no cosine.
        clip: longest gradient of the images, as a multiple of the running average of its length; 0 for any.
        clip_norm: longest gradient of the images; 0 for any.
        keep: every how many steps the students' weights are stored; the steps between are computed again.
        storage: of the stored weights: same or bfloat16, which rounds their way from the start.
    """

    kind: str = "unrolled"
    steps: int = 23600
    batches: int = 10
    epochs: int = 3
    drawn: bool = False
    drawn_classes: int = 0
    window: int = 0
    window_start: str = "random"
    window_least: int = 0
    window_every: int = 1
    grow_every: int = 0
    grow_backwards: bool = False
    intermediate_every: int = 0
    real_batch: int = 1024
    real_augmentation: str = "none"
    start: str = "noise"
    optimizer: str = "sgd"
    inner_learning_rate: float = 0.02
    inner_momentum: float = 0.9
    inner_decay: float = 0.0
    augmentation: str = "none"
    align_corners: bool = True
    learn_rates: bool = True
    learn_momenta: bool = False
    learn_labels: bool = False
    outer_optimizer: str = "adam"
    learning_rate: float = 0.01
    beta1: float = 0.5
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay_every: int = 2360
    decay: float = 0.5
    final_share: float = 1.0
    clip: float = 0.0
    clip_norm: float = 0.0
    keep: int = 1
    storage: str = "same"

    def __post_init__(self) -> None:
        of_kind("unrolled", self.kind)
        one_of("start", self.start, ("noise", "unit", "uniform", "real"))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("outer_optimizer", self.outer_optimizer, ("adam", "sgd"))
        one_of("window_start", self.window_start, ("random", "last", "moving"))
        one_of("storage", self.storage, STORAGES)
        strategy(self.augmentation)
        strategy(self.real_augmentation, PAD_CROP_FLIP, name="real_augmentation")
        at_least(1, steps=self.steps, batches=self.batches, epochs=self.epochs, real_batch=self.real_batch)
        at_least(1, keep=self.keep, window_every=self.window_every)
        at_least(0, decay_every=self.decay_every, inner_decay=self.inner_decay, clip=self.clip, window=self.window)
        at_least(0, window_least=self.window_least, intermediate_every=self.intermediate_every)
        at_least(0, drawn_classes=self.drawn_classes, grow_every=self.grow_every, clip_norm=self.clip_norm)
        at_most(1, final_share=self.final_share)
        shares(inner_momentum=self.inner_momentum, beta1=self.beta1, beta2=self.beta2)
        positive(inner_learning_rate=self.inner_learning_rate, learning_rate=self.learning_rate, decay=self.decay)
        positive(epsilon=self.epsilon, final_share=self.final_share)
        if self.learn_momenta and (self.optimizer == "sgd" or not self.inner_momentum):
            raise ValueError(
                f"expected an optimizer with momentum above zero to learn it, got {self.optimizer} with "
                f"{self.inner_momentum}: use momentum or adam"
            )
        if self.outer_optimizer == "sgd" and (self.decay_every or self.final_share != 1):
            raise ValueError(
                f"expected decay_every 0 and final_share 1 for the outer_optimizer sgd, got {self.decay_every} and "
                f"{self.final_share}: its rate is constant, so set them so or choose adam"
            )
        if self.window > self.inner_steps:
            raise ValueError(
                f"expected a window of at most the {self.inner_steps} inner steps, got {self.window}: lower "
                "method.window or raise method.epochs"
            )
        if self.window_least > self.inner_steps - (self.window or self.inner_steps):
            raise ValueError(
                f"expected a window_least of at most {self.inner_steps - (self.window or self.inner_steps)}, got "
                f"{self.window_least}: the window of {self.window or self.inner_steps} steps must end by step "
                f"{self.inner_steps}"
            )
        self._check_growth()
        if self.drawn_classes and not self.drawn:
            raise ValueError(
                f"expected drawn_classes only for drawn steps, got {self.drawn_classes}: set method.drawn, or leave "
                "drawn_classes out"
            )
        if self.drawn and (self.learn_rates or self.learn_momenta):
            raise ValueError(
                "expected steps in a fixed order for rates or momenta of their own, got drawn ones: set "
                "method.learn_rates and learn_momenta to false, or method.drawn"
            )
        one_way_to_save(self.keep, self.storage)

    @property
    def inner_steps(self) -> int:
        """``T``."""
        return self.batches * self.epochs

    def trained_steps(self, step: int) -> int:
        """Inner steps of an outer step, ``min(T, 4 + ⌊step / grow_every⌋)`` where they grow (Such et al. 2020)."""
        if not self.grow_every:
            return self.inner_steps
        return min(self.inner_steps, _FIRST_STEPS + step // self.grow_every)

    def _check_growth(self) -> None:
        if self.grow_every and self.window:
            raise ValueError(
                f"expected either a window or steps that grow, got {self.window} and {self.grow_every}: leave out "
                "method.window or method.grow_every"
            )
        if self.trained_steps(self.steps - 1) < self.inner_steps:
            raise ValueError(
                f"expected all {self.inner_steps} inner steps to be trained by the last of {self.steps} updates, got "
                f"{self.trained_steps(self.steps - 1)} by then: lower method.grow_every or raise method.steps"
            )
        if self.grow_backwards and (not self.grow_every or self.optimizer == "adam"):
            raise ValueError(
                f"expected grow_backwards only where steps grow and students have sgd or momentum, got grow_every "
                f"{self.grow_every} and {self.optimizer}: set method.grow_every, or leave grow_backwards out"
            )

    def batch(self, classes: int, ipc: int) -> int:
        """Images of an inner step, from ``C`` and ``M``."""
        return (self.drawn_classes or classes) * (ipc // self.batches)
