"""Configuration of a run: frozen dataclasses, validated on construction. Nothing here imports torch.

Precedence is defaults < preset < file < flags. A preset is one YAML file of these fields, in ``presets/``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdistill.checks import at_least, at_most, folder_name, one_of
from fastdistill.generator_config import GeneratorConfig
from fastdistill.method_configs import METHODS, MatchingConfig, MethodConfig, TrajectoryConfig, UnrolledConfig

PRESETS = Path(__file__).parent / "presets"
SOURCES = ("digits", "mnist", "fashionmnist", "svhn", "cifar10", "cifar100")
DEVICES = ("auto", "cpu", "cuda")
COMPILE = ("auto", "always", "never")


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
        architecture: convnet, mlp, lenet, alexnet, alexcifarnet, gtn, vgg11, resnet18 or resnet18ap.
        depth: blocks of a convnet, 1 to 8.
        width: channels of a convnet.
        norm: none, instance, group, layer or batch.
        activation: relu, leaky_relu, sigmoid, swish or softplus.
        pooling: none, avg or max.
        weights: weight distribution: default, xavier_normal, xavier_uniform, kaiming_fan_in, kaiming_fan_out or
            orthogonal; default is PyTorch's, for gtn kaiming_fan_in.
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
            ("convnet", "mlp", "lenet", "alexnet", "alexcifarnet", "gtn", "vgg11", "resnet18", "resnet18ap"),
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
        at_most(8, depth=self.depth)
        if (self.initialization == "pretrained") != bool(self.pretrained):
            raise ValueError(
                f"expected a pretrained folder exactly when initialization is pretrained, got {self.pretrained!r} with "
                f"{self.initialization!r}: set both or neither"
            )


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
        seconds: most seconds of distilling, selections left out: the run ends with the first step after them, or at
            the method's steps; 0 for these alone. How far it comes is then the machine's.
        data: the real images.
        student: the network.
        method: the distillation method.
        generator: what makes the images, where they are not learned pixel by pixel.
        evaluation: how the result is judged.
        device: auto, cpu or cuda.
        dtype: float32 or float64.
        threads: CPU threads; 0 keeps the machine's default.
        chunk: most students in memory at once; 0 for all.
        derivatives: auto, or functional for torch.func alone, where auto is a program of dual layers for students made
            of layers it has.
        compile: auto, to compile programs of dual layers while a long run goes on, from the step on at which that will
            be done, and to leave it where steps are not faster; always, before the first step; or never.
        precision: of products in programs of dual layers: float32, tf32 (on CUDA), bfloat16, or auto, which is bfloat16
            for gradient matching where programs are compiled, the hardware multiplies it and large networks gain by it.
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
    seconds: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    method: MethodConfig = field(default_factory=MatchingConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    chunk: int = 0
    derivatives: str = "auto"
    compile: str = "auto"
    precision: str = "auto"
    output: str = "runs"
    log_every: int = 10
    picture_every: int = 0
    checkpoint_every: int = 100
    max_masked_share: float = 0.25

    def __post_init__(self) -> None:
        folder_name(self.name)
        at_least(1, ipc=self.ipc, students=self.students, runs=self.runs)
        at_least(1, log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        at_least(0, threads=self.threads, chunk=self.chunk, picture_every=self.picture_every, seed=self.seed)
        at_least(0, seconds=self.seconds)
        if not 0 <= self.max_masked_share < 1:
            raise ValueError(f"expected a max_masked_share in [0, 1), got {self.max_masked_share}: it is a share")
        method, protocol = self.method, self.evaluation.protocol
        if self.seconds and (needing := self._needs_all_steps()):
            raise ValueError(
                f"expected no seconds for a run whose {needing} follows its steps, got {self.seconds:g}: leave one out"
            )
        if isinstance(method, UnrolledConfig) and self.ipc % method.batches:
            raise ValueError(
                f"expected ipc to be a multiple of the {method.batches} batches, got {self.ipc}: change method.batches "
                "or ipc"
            )
        if self.ipc % self.generator.blocks:
            raise ValueError(
                f"expected ipc to be a multiple of the generator's {self.generator.blocks} blocks, got {self.ipc}: "
                "change generator.blocks or ipc"
            )
        with_steps = isinstance(method, UnrolledConfig)
        with_rates = isinstance(method, UnrolledConfig) and method.learn_rates
        if with_rates > (protocol == "own") or (protocol == "own") > with_steps:
            raise ValueError(
                "expected the protocol own for images that are learned with rates of their own, and only for unrolled "
                f"training, got {protocol} for the method {method.kind}: change evaluation.protocol"
            )
        if isinstance(method, TrajectoryConfig) and self.student.initialization != "fresh":
            raise ValueError(
                "expected the student's initialization to be fresh for trajectory matching, whose students start from "
                f"experts, got {self.student.initialization}: leave it out"
            )
        at_most(2**63 - 1, seed=self.seed)
        at_most(4096, threads=self.threads)
        one_of("device", self.device, DEVICES)
        one_of("dtype", self.dtype, ("float32", "float64"))
        one_of("derivatives", self.derivatives, ("auto", "functional"))
        one_of("compile", self.compile, COMPILE)
        one_of("precision", self.precision, ("auto", "float32", "tf32", "bfloat16"))
        if self.dtype == "float64" and self.precision not in ("auto", "float32"):
            raise ValueError(
                f"expected precision auto or float32 with dtype float64, got {self.precision}: leave it out"
            )

    def _needs_all_steps(self) -> str:
        """The setting that a run which ends by its time would leave halfway; empty where there is none."""
        if self.generator.final_share != 1:
            return "generator.final_share"
        if not isinstance(self.method, UnrolledConfig):
            return ""
        found = {
            "method.final_share": self.method.final_share != 1,
            "method.grow_every": self.method.grow_every,
            "method.window_start": self.method.window_start == "moving",
        }
        return next((name for name, used in found.items() if used), "")

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run folder's ``config.yaml`` holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `as_dict`."""
        parts = {"data": DataConfig, "student": StudentConfig, "generator": GeneratorConfig}
        parts |= {"evaluation": EvaluationConfig, "method": METHODS[values["method"]["kind"]]}
        made = {name: kind(**values[name]) for name, kind in parts.items()}
        return cls(**{**values, **made})


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
