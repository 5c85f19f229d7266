"""Settings of implicit differentiation. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fastdistill.checks import at_least, of_kind, one_of, positive
from fastdistill.method_configs.common import OPTIMIZERS, PAD_CROP_FLIP, shares, strategy


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """Implicit differentiation (IFT; Lorraine et al. 2020) at students trained on the synthetic images.

    Attributes:
        kind: implicit.
        steps: updates of the synthetic images, each a hyperstep.
        inner_steps: steps that students train before every hyperstep, on all images.
        hypersteps: hypersteps that a student lives through; 1 begins with fresh ones every time.
        real_batch: real images per student of the outer loss, of any class.
        real_augmentation: of these: a DSA strategy, pad_crop_flip (Wang et al.), or none.
        start: what the images start from: noise, unit (noise of length 1 an image), uniform (in [0, 1)) or real images.
        optimizer: of the students: sgd, momentum or adam.
        inner_learning_rate: of the students.
        inner_momentum: of the students, for momentum and (as beta 1) for adam.
        inner_decay: weight decay of the students; part of the loss whose Hessian is inverted.
        solver: neumann or cg (conjugate gradients).
        curvature: hessian, which is indefinite for real students, or gauss_newton, which never is.
        terms: products of the series, or steps of conjugate gradients, at most.
        alpha: of the Neumann series; below 2 / largest eigenvalue, or the series diverges.
        scaled: multiply the series by alpha; false leaves the factor out, as AuxiLearn does.
        damping: added to the curvature's diagonal.
        tolerance: relative residual at which conjugate gradients stop.
        warm_start: begin conjugate gradients at the student's solution of the hyperstep before.
        eigenvalue_every: hypersteps between estimates of the largest eigenvalue; 0 for only the first.
        eigenvalue_steps: products of such an estimate.
        image_penalty: half of it times the images' mean square is part of the outer loss: its direct term.
        augmentation: DSA strategy, drawn once a hyperstep for training and Hessian alike, or none.
        align_corners: of the sampling grid of scale and rotate.
        learn_labels: learn the labels' rows, from one-hot ones, none below zero.
        outer_optimizer: adam or sgd.
        learning_rate: of it.
        momentum: of sgd, or beta 1 of adam.
        decay_every: updates after which adam's rate is multiplied by decay; 0 for never.
        decay: that factor.
        clip_norm: longest gradient of the images; 0 for any.
    """

    kind: str = "implicit"
    steps: int = 1000
    inner_steps: int = 10
    hypersteps: int = 1
    real_batch: int = 256
    real_augmentation: str = "none"
    start: str = "noise"
    optimizer: str = "momentum"
    inner_learning_rate: float = 0.02
    inner_momentum: float = 0.5
    inner_decay: float = 0.0
    solver: str = "neumann"
    curvature: str = "hessian"
    terms: int = 10
    alpha: float = 0.01
    scaled: bool = True
    damping: float = 0.0
    tolerance: float = 0.0
    warm_start: bool = False
    eigenvalue_every: int = 0
    eigenvalue_steps: int = 10
    image_penalty: float = 0.0
    augmentation: str = "none"
    align_corners: bool = True
    learn_labels: bool = False
    outer_optimizer: str = "sgd"
    learning_rate: float = 10.0
    momentum: float = 0.0
    decay_every: int = 0
    decay: float = 0.5
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        of_kind("implicit", self.kind)
        one_of("start", self.start, ("noise", "unit", "uniform", "real"))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("solver", self.solver, ("neumann", "cg"))
        one_of("curvature", self.curvature, ("hessian", "gauss_newton"))
        one_of("outer_optimizer", self.outer_optimizer, ("adam", "sgd"))
        strategy(self.augmentation)
        strategy(self.real_augmentation, PAD_CROP_FLIP, name="real_augmentation")
        at_least(1, steps=self.steps, hypersteps=self.hypersteps, real_batch=self.real_batch)
        at_least(1, eigenvalue_steps=self.eigenvalue_steps)
        at_least(0, inner_steps=self.inner_steps, terms=self.terms, inner_decay=self.inner_decay)
        at_least(0, damping=self.damping, tolerance=self.tolerance, image_penalty=self.image_penalty)
        at_least(0, decay_every=self.decay_every, clip_norm=self.clip_norm, eigenvalue_every=self.eigenvalue_every)
        shares(inner_momentum=self.inner_momentum, momentum=self.momentum)
        positive(inner_learning_rate=self.inner_learning_rate, learning_rate=self.learning_rate, alpha=self.alpha)
        positive(decay=self.decay)
        if self.decay_every and self.outer_optimizer != "adam":
            raise ValueError(
                f"expected decay_every only for the outer_optimizer adam, got {self.decay_every} with "
                f"{self.outer_optimizer}: leave it out or choose adam"
            )
        if not self.scaled and self.solver != "neumann":
            raise ValueError(
                f"expected scaled to be false only for the solver neumann, got {self.solver}: leave scaled out"
            )
        if self.warm_start and (self.solver != "cg" or self.hypersteps == 1):
            raise ValueError(
                f"expected a warm_start only for the solver cg and students of several hypersteps, got {self.solver} "
                f"and {self.hypersteps}: raise method.hypersteps, choose cg, or leave warm_start out"
            )
