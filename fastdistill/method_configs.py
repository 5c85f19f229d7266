"""Settings of the methods: frozen dataclasses, validated on construction. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastdistill.checks import at_least, of_kind, one_of, positive

# images per class -> (updates of the images per student, epochs of the student after each), Zhao et al. 2021
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_ITERATIONS = 1000
OPTIMIZERS = ("sgd", "momentum", "adam")  # of students
STORAGES = ("same", "bfloat16")  # of the weights along a trajectory
PAD_CROP_FLIP = "pad_crop_flip"
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def _strategy(augmentation: str, *others: str, name: str = "augmentation") -> None:
    unknown = [operation for operation in augmentation.split("_") if operation not in AUGMENTATIONS]
    if unknown and augmentation not in ("none", *others):
        raise ValueError(
            f"expected {name} of {', '.join(AUGMENTATIONS)} joined by '_', or {' or '.join((*others, 'none'))}, got "
            f"{augmentation!r}: correct {unknown[0]!r}"
        )


def _shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"expected {name} in [0, 1), got {value}: averages diverge from 1 on")


def _one_way_to_save(keep: int, storage: str) -> None:
    if keep > 1 and storage != "same":
        raise ValueError(
            f"expected either keep above 1 or a storage of its own, got {keep} and {storage}: choose one way to save "
            "memory"
        )


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Gradient matching (DC, DSA).

    Attributes:
        kind: matching.
        steps: updates of the synthetic images.
        distance: ours (row-wise cosine), mse, l1 or cos.
        tensors: names of the parameter tensors that are matched; all when empty.
        per_class: match the gradient class by class, or of all classes pooled.
        real_batch: real images per class and student.
        start: what the images start from: noise or real images.
        image_learning_rate: of SGD on the synthetic images.
        image_momentum: of SGD on the synthetic images.
        outer_loop: image updates before a new student begins.
        inner_loop: epochs a student trains on the images between two updates.
        inner_learning_rate: of that training, plain SGD.
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
    outer_loop: int = 1
    inner_loop: int = 1
    inner_learning_rate: float = 0.01
    inner_batch: int = 256
    augmentation: str = "none"
    align_corners: bool = True

    def __post_init__(self) -> None:
        of_kind("matching", self.kind)
        one_of("distance", self.distance, ("ours", "mse", "l1", "cos"))
        one_of("start", self.start, ("noise", "real"))
        _strategy(self.augmentation)
        at_least(1, steps=self.steps, real_batch=self.real_batch, outer_loop=self.outer_loop)
        at_least(1, inner_batch=self.inner_batch)
        at_least(0, inner_loop=self.inner_loop)
        if not 0 <= self.image_momentum < 1:
            raise ValueError(
                f"expected an image_momentum in [0, 1), got {self.image_momentum}: velocities diverge from 1 on"
            )
        positive(image_learning_rate=self.image_learning_rate, inner_learning_rate=self.inner_learning_rate)


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
        intermediate_every: steps between further outer losses inside the window, of equal weight; 0 for none.
        real_batch: real images per student of the outer loss, of any class.
        real_augmentation: of these: a DSA strategy, pad_crop_flip (Wang et al.), or none.
        start: what the images start from: noise, unit (noise of length 1 an image) or real images.
        optimizer: of the students: sgd, momentum or adam.
        inner_learning_rate: what the rate of every step starts from.
        inner_momentum: of every step, for momentum and (as beta 1) for adam; learned as well when learn_momenta.
        inner_decay: weight decay of the students.
        augmentation: DSA strategy that synthetic images are shown through, drawn anew in every step, or none.
        align_corners: of the sampling grid of scale and rotate.
        learn_rates: learn the rate of every step, through a softplus.
        learn_momenta: learn the momentum of every step, through a sigmoid.
        learn_labels: learn the labels' rows, from one-hot ones, none below zero.
        learning_rate: of Adam on all that is learned.
        beta1: of that Adam.
        beta2: of that Adam.
        decay_every: updates after which that rate is multiplied by decay; 0 for never.
        decay: that factor.
        clip: longest gradient of the images, as a multiple of the running average of its length; 0 for any.
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
    learning_rate: float = 0.01
    beta1: float = 0.5
    beta2: float = 0.999
    decay_every: int = 2360
    decay: float = 0.5
    clip: float = 0.0
    keep: int = 1
    storage: str = "same"

    def __post_init__(self) -> None:
        of_kind("unrolled", self.kind)
        one_of("start", self.start, ("noise", "unit", "real"))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("window_start", self.window_start, ("random", "last", "moving"))
        one_of("storage", self.storage, STORAGES)
        _strategy(self.augmentation)
        _strategy(self.real_augmentation, PAD_CROP_FLIP, name="real_augmentation")
        at_least(1, steps=self.steps, batches=self.batches, epochs=self.epochs, real_batch=self.real_batch)
        at_least(1, keep=self.keep, window_every=self.window_every)
        at_least(0, decay_every=self.decay_every, inner_decay=self.inner_decay, clip=self.clip, window=self.window)
        at_least(0, window_least=self.window_least, intermediate_every=self.intermediate_every)
        at_least(0, drawn_classes=self.drawn_classes)
        _shares(inner_momentum=self.inner_momentum, beta1=self.beta1, beta2=self.beta2)
        positive(inner_learning_rate=self.inner_learning_rate, learning_rate=self.learning_rate, decay=self.decay)
        if self.learn_momenta and (self.optimizer == "sgd" or not self.inner_momentum):
            raise ValueError(
                f"expected an optimizer with momentum above zero to learn it, got {self.optimizer} with "
                f"{self.inner_momentum}: use momentum or adam"
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
        _one_way_to_save(self.keep, self.storage)

    @property
    def inner_steps(self) -> int:
        """``T``."""
        return self.batches * self.epochs

    def batch(self, classes: int, ipc: int) -> int:
        """Images of an inner step, from ``C`` and ``M``."""
        return (self.drawn_classes or classes) * (ipc // self.batches)


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
        _strategy(self.augmentation)
        at_least(1, steps=self.steps, inner_steps=self.inner_steps, expert_epochs=self.expert_epochs, keep=self.keep)
        at_least(1, max_start_epoch=self.max_start_epoch)
        at_least(0, batch=self.batch, rate_learning_rate=self.rate_learning_rate)
        _shares(momentum=self.momentum)
        positive(inner_learning_rate=self.inner_learning_rate, image_learning_rate=self.image_learning_rate)
        positive(least_learning_rate=self.least_learning_rate, label_learning_rate=self.label_learning_rate)
        at_least(self.least_learning_rate, inner_learning_rate=self.inner_learning_rate)
        if self.halved and self.gradient != "tesla":
            raise ValueError(
                f"expected halved only with the gradient tesla, got {self.gradient}: leave it out, or lower "
                "method.image_learning_rate"
            )
        _one_way_to_save(self.keep, self.storage)


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
        _strategy(self.augmentation)
        _strategy(self.real_augmentation, PAD_CROP_FLIP, name="real_augmentation")
        at_least(1, steps=self.steps, hypersteps=self.hypersteps, real_batch=self.real_batch)
        at_least(1, eigenvalue_steps=self.eigenvalue_steps)
        at_least(0, inner_steps=self.inner_steps, terms=self.terms, inner_decay=self.inner_decay)
        at_least(0, damping=self.damping, tolerance=self.tolerance, image_penalty=self.image_penalty)
        at_least(0, decay_every=self.decay_every, clip_norm=self.clip_norm, eigenvalue_every=self.eigenvalue_every)
        _shares(inner_momentum=self.inner_momentum, momentum=self.momentum)
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
        _strategy(self.augmentation)
        at_least(1, steps=self.steps, real_batch=self.real_batch)
        _shares(image_momentum=self.image_momentum)
        positive(image_learning_rate=self.image_learning_rate)


MethodConfig = MatchingConfig | UnrolledConfig | TrajectoryConfig | ImplicitConfig | DistributionConfig
METHODS: dict[str, type[MethodConfig]] = {
    "matching": MatchingConfig,
    "unrolled": UnrolledConfig,
    "trajectory": TrajectoryConfig,
    "implicit": ImplicitConfig,
    "distribution": DistributionConfig,
}


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
