"""Configuration of a run: frozen dataclasses, validated on construction. Nothing here imports torch.

Precedence is defaults < preset < file < flags. A preset is one YAML file of these fields, in ``presets/``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parent / "presets"
# images per class -> (updates of the images per student, epochs of the student after each), Zhao et al. 2021
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
_ITERATIONS = 1000
SOURCES = ("digits", "mnist", "fashionmnist", "svhn", "cifar10", "cifar100")
DEVICES = ("auto", "cpu", "cuda")
AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def one_of(name: str, value: str, valid: Sequence[str]) -> None:
    """Refuses a value that is none of the valid ones; names the nearest."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f"did you mean {near[0]!r}" if near else "choose one of these"
        raise ValueError(f"expected {name} among {', '.join(valid)}, got {value!r}: {hint}")


def _of_kind(kind: str, value: str) -> None:
    if value != kind:
        raise ValueError(f"expected the kind {kind} of these settings, got {value!r}: leave kind out")


def at_least(low: float, **values: float) -> None:
    """Refuses named values below a bound."""
    for name, value in values.items():
        if not value >= low:
            raise ValueError(f"expected {name} of at least {low}, got {value}: raise it")


def _at_most(high: float, **values: float) -> None:
    for name, value in values.items():
        if not value <= high:
            raise ValueError(f"expected {name} of at most {high}, got {value}: lower it")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"expected a positive, finite {name}, got {value}: raise it above zero")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The real images.

    Attributes:
        source: digits, mnist, fashionmnist, svhn, cifar10, cifar100, folder:PATH or npz:PATH.
        root: folder that holds torchvision's sets.
        download: let torchvision download a missing set.
        zca: whiten the images instead of normalising each channel.
        validation_fraction: share of every class of the training set that is held out to select images by.
    """

    source: str = "digits"
    root: str = "data"
    download: bool = False
    zca: bool = False
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        kind, _, path = self.source.partition(":")
        if kind not in ("folder", "npz") or not path:
            one_of("source", self.source, (*SOURCES, "folder:PATH", "npz:PATH"))
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"expected a validation_fraction in [0, 1), got {self.validation_fraction}: it is a share of the "
                "training set"
            )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network that the images are distilled for.

    Attributes:
        architecture: convnet, mlp, lenet, alexnet, alexcifarnet, vgg11, resnet18 or resnet18ap.
        depth: blocks of a convnet, 1 to 8.
        width: channels of a convnet.
        norm: none, instance, group, layer or batch.
        activation: relu, leaky_relu, sigmoid, swish or softplus.
        pooling: none, avg or max.
        weights: weight distribution: default, xavier_normal, xavier_uniform, kaiming_fan_in, kaiming_fan_out or
            orthogonal.
        initialization: fresh weights for every new student, fixed ones, or pretrained ones from a folder.
        pretrained: folder of .safetensors weights, for initialization pretrained.
    """

    architecture: str = "convnet"
    depth: int = 3
    width: int = 128
    norm: str = "instance"
    activation: str = "relu"
    pooling: str = "avg"
    weights: str = "default"
    initialization: str = "fresh"
    pretrained: str = ""

    def __post_init__(self) -> None:
        one_of(
            "architecture",
            self.architecture,
            ("convnet", "mlp", "lenet", "alexnet", "alexcifarnet", "vgg11", "resnet18", "resnet18ap"),
        )
        one_of("norm", self.norm, ("none", "instance", "group", "layer", "batch"))
        one_of("activation", self.activation, ("relu", "leaky_relu", "sigmoid", "swish", "softplus"))
        one_of("pooling", self.pooling, ("none", "avg", "max"))
        one_of(
            "weights",
            self.weights,
            ("default", "xavier_normal", "xavier_uniform", "kaiming_fan_in", "kaiming_fan_out", "orthogonal"),
        )
        one_of("initialization", self.initialization, ("fresh", "fixed", "pretrained"))
        at_least(1, depth=self.depth, width=self.width)
        _at_most(8, depth=self.depth)
        if (self.initialization == "pretrained") != bool(self.pretrained):
            raise ValueError(
                f"expected a pretrained folder exactly when initialization is pretrained, got {self.pretrained!r} with "
                f"{self.initialization!r}: set both or neither"
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
        _of_kind("matching", self.kind)
        one_of("distance", self.distance, ("ours", "mse", "l1", "cos"))
        one_of("start", self.start, ("noise", "real"))
        unknown = [name for name in self.augmentation.split("_") if name not in AUGMENTATIONS]
        if unknown and self.augmentation != "none":
            raise ValueError(
                f"expected an augmentation of {', '.join(AUGMENTATIONS)} joined by '_', or none, got "
                f"{self.augmentation!r}: correct {unknown[0]!r}"
            )
        at_least(1, steps=self.steps, real_batch=self.real_batch, outer_loop=self.outer_loop)
        at_least(1, inner_batch=self.inner_batch)
        at_least(0, inner_loop=self.inner_loop)
        if not 0 <= self.image_momentum < 1:
            raise ValueError(
                f"expected an image_momentum in [0, 1), got {self.image_momentum}: velocities diverge from 1 on"
            )
        _positive(image_learning_rate=self.image_learning_rate, inner_learning_rate=self.inner_learning_rate)


@dataclass(frozen=True, kw_only=True)
class UnrolledConfig:
    """Unrolled training: Dataset Distillation (Wang et al. 2018).

    Students train on the synthetic images for ``T`` steps, each with its own learned rate, and the images move along
    the derivative of their loss on real images. The images of every class are split into ``batches`` batches, and the
    batches are gone through ``epochs`` times: ``T = batches · epochs``.

    Attributes:
        kind: unrolled.
        steps: updates of the synthetic images.
        batches: batches that the synthetic images are split into; ipc is a multiple of it.
        epochs: times that the students go through the batches.
        real_batch: real images per student of the outer loss, of any class.
        start: what the images start from: noise or real images.
        optimizer: of the students: sgd, momentum or adam.
        inner_learning_rate: what the rate of every step starts from.
        inner_momentum: of every step, for momentum and (as beta 1) for adam; learned as well when learn_momenta.
        inner_decay: weight decay of the students.
        learn_rates: learn the rate of every step, through a softplus.
        learn_momenta: learn the momentum of every step, through a sigmoid.
        learning_rate: of Adam on all that is learned.
        beta1: of that Adam.
        beta2: of that Adam.
        decay_every: updates after which that rate is multiplied by decay; 0 for never.
        decay: that factor.
        keep: every how many steps the students' weights are stored; the steps between are computed again.
    """

    kind: str = "unrolled"
    steps: int = 23600
    batches: int = 10
    epochs: int = 3
    real_batch: int = 1024
    start: str = "noise"
    optimizer: str = "sgd"
    inner_learning_rate: float = 0.02
    inner_momentum: float = 0.9
    inner_decay: float = 0.0
    learn_rates: bool = True
    learn_momenta: bool = False
    learning_rate: float = 0.01
    beta1: float = 0.5
    beta2: float = 0.999
    decay_every: int = 2360
    decay: float = 0.5
    keep: int = 1

    def __post_init__(self) -> None:
        _of_kind("unrolled", self.kind)
        one_of("start", self.start, ("noise", "real"))
        one_of("optimizer", self.optimizer, ("sgd", "momentum", "adam"))
        at_least(1, steps=self.steps, batches=self.batches, epochs=self.epochs, real_batch=self.real_batch)
        at_least(1, keep=self.keep)
        at_least(0, decay_every=self.decay_every, inner_decay=self.inner_decay)
        for name in ("inner_momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"expected {name} in [0, 1), got {value}: averages diverge from 1 on")
        _positive(inner_learning_rate=self.inner_learning_rate, learning_rate=self.learning_rate, decay=self.decay)
        if self.learn_momenta and (self.optimizer == "sgd" or not self.inner_momentum):
            raise ValueError(
                f"expected an optimizer with momentum above zero to learn it, got {self.optimizer} with "
                f"{self.inner_momentum}: use momentum or adam"
            )

    @property
    def inner_steps(self) -> int:
        """``T``."""
        return self.batches * self.epochs

    @property
    def replayed(self) -> bool:
        """Whether an evaluation can repeat the steps: plain SGD, without a state or decay."""
        return self.optimizer == "sgd" and not self.inner_decay


MethodConfig = MatchingConfig | UnrolledConfig
METHODS: dict[str, type[MethodConfig]] = {"matching": MatchingConfig, "unrolled": UnrolledConfig}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How distilled images are judged: fresh students trained on them, by a named protocol.

    Attributes:
        protocol: dc, dsa, default, or own for images with steps and rates of their own, which it replays.
        students: fresh students per run of the table at the end.
        random_real: also train students on the same number of random real images.
        whole_epochs: epochs of the whole-training-set arm; 0 leaves it out.
        whole_students: students of the whole-training-set arm.
        validation_every: steps between selections by validation accuracy; 0 for none.
        validation_students: students of a selection.
        validation_epochs: epochs of a selection's training.
    """

    protocol: str = "default"
    students: int = 20
    random_real: bool = True
    whole_epochs: int = 0
    whole_students: int = 10
    validation_every: int = 0
    validation_students: int = 5
    validation_epochs: int = 300

    def __post_init__(self) -> None:
        one_of("protocol", self.protocol, ("dc", "dsa", "default", "own"))
        at_least(1, students=self.students, whole_students=self.whole_students)
        at_least(1, validation_students=self.validation_students, validation_epochs=self.validation_epochs)
        at_least(0, whole_epochs=self.whole_epochs, validation_every=self.validation_every)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: what is distilled, from what, for which students.

    Attributes:
        name: folder of the run below output.
        ipc: synthetic images per class.
        students: students per outer step; their mean gradient moves the images.
        runs: independent runs, distilled as one program.
        seed: of every draw.
        data: the real images.
        student: the network.
        method: the distillation method.
        evaluation: how the result is judged.
        device: auto, cpu or cuda.
        dtype: float32 or float64.
        threads: CPU threads; 0 keeps the machine's default.
        chunk: most students in memory at once; 0 for all.
        output: folder of run folders.
        log_every: steps between lines of metrics.
        picture_every: steps between pictures; 0 for only the last.
        checkpoint_every: steps between checkpoints.
        max_masked_share: largest share of a run's students, below 1, whose loss or gradient may be non-finite in a
            step; they are left out of it, and with more of them everything stops before the update.
    """

    name: str = "run"
    ipc: int = 1
    students: int = 1
    runs: int = 1
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    method: MethodConfig = field(default_factory=MatchingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    chunk: int = 0
    output: str = "runs"
    log_every: int = 10
    picture_every: int = 0
    checkpoint_every: int = 100
    max_masked_share: float = 0.25

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or any(sign in self.name for sign in "/\\\0"):
            raise ValueError(f"expected a name that is one folder name, got {self.name!r}: leave out slashes")
        at_least(1, ipc=self.ipc, students=self.students, runs=self.runs)
        at_least(1, log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        at_least(0, threads=self.threads, chunk=self.chunk, picture_every=self.picture_every, seed=self.seed)
        if not 0 <= self.max_masked_share < 1:
            raise ValueError(f"expected a max_masked_share in [0, 1), got {self.max_masked_share}: it is a share")
        if isinstance(self.method, UnrolledConfig) and self.ipc % self.method.batches:
            raise ValueError(
                f"expected ipc to be a multiple of the {self.method.batches} batches, got {self.ipc}: change "
                "method.batches or ipc"
            )
        replayed = isinstance(self.method, UnrolledConfig) and self.method.replayed
        if (self.evaluation.protocol == "own") != replayed:
            raise ValueError(
                "expected the protocol own exactly for images that are learned with steps of plain sgd, got "
                f"{self.evaluation.protocol} for the method {self.method.kind}: change evaluation.protocol"
            )
        _at_most(2**63 - 1, seed=self.seed)
        _at_most(4096, threads=self.threads)
        one_of("device", self.device, DEVICES)
        one_of("dtype", self.dtype, ("float32", "float64"))

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run folder's ``config.yaml`` holds them."""
        return asdict(self)


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


def presets() -> tuple[str, ...]:
    """Names of the presets that come with the package, such as ``dc/mnist-1``."""
    return tuple(sorted(f"{path.parent.name}/{path.stem}" for path in PRESETS.glob("*/*.yaml")))


def preset_path(name: str) -> Path:
    """The YAML file of a preset.

    Raises:
        ValueError: for an unknown name; names the nearest ones.
    """
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=3) or list(presets()[:3])
        raise ValueError(f"expected a preset that `fastdistill presets` lists, got {name!r}: try {', '.join(near)}")
    return PRESETS / f"{name}.yaml"
