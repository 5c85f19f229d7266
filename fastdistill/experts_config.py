"""Configuration of experts: students trained on real images, whose weights after every epoch are kept.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdistill.checks import at_least, at_most, folder_name, one_of, positive
from fastdistill.config import COMPILE, DEVICES, DataConfig, StudentConfig
from fastdistill.method_configs import AUGMENTATIONS

STORAGES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Some experts: how many, of what network, trained on what and how (Cazenavette et al. 2022).

    Attributes:
        name: folder below output; by default after data and student.
        output: folder of folders of experts.
        count: experts to train.
        epochs: of each.
        learning_rate: of SGD, constant.
        momentum: of SGD.
        weight_decay: of SGD.
        batch: images a step.
        augmentation: DSA strategy, none, or auto: all, less flip for digits.
        align_corners: of the sampling grid of scale and rotate.
        storage: on the disk: float32 or bfloat16.
        seed: of every draw, and of the validation split.
        data: the real images; a later run must hold out the same ones.
        student: the network.
        device: auto, cpu or cuda.
        threads: CPU threads; 0 keeps the machine's default.
        chunk: experts trained at once; 0 chooses.
        compile: auto: long training; always or never.
    """

    name: str = ""
    output: str = "experts"
    count: int = 100
    epochs: int = 50
    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    augmentation: str = "auto"
    align_corners: bool = True
    storage: str = "float32"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    device: str = "auto"
    threads: int = 0
    chunk: int = 0
    compile: str = "auto"

    def __post_init__(self) -> None:
        if self.name:
            folder_name(self.name)
        at_least(1, count=self.count, epochs=self.epochs, batch=self.batch)
        at_least(0, weight_decay=self.weight_decay, threads=self.threads, chunk=self.chunk, seed=self.seed)
        at_most(2**63 - 1, seed=self.seed)
        at_most(4096, threads=self.threads)
        positive(learning_rate=self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {self.momentum}: velocities diverge from 1 on")
        unknown = [name for name in self.augmentation.split("_") if name not in AUGMENTATIONS]
        if unknown and self.augmentation not in ("auto", "none"):
            raise ValueError(
                f"expected an augmentation of {', '.join(AUGMENTATIONS)} joined by '_', none or auto, got "
                f"{self.augmentation!r}: correct {unknown[0]!r}"
            )
        one_of("storage", self.storage, STORAGES)
        one_of("device", self.device, DEVICES)
        one_of("compile", self.compile, COMPILE)
        if self.student.initialization != "fresh":
            raise ValueError(
                f"expected fresh students as experts, got student.initialization {self.student.initialization}: every "
                "expert begins with weights of its own"
            )

    @property
    def folder(self) -> Path:
        """Where the experts are."""
        return Path(self.output) / (self.name or self._described())

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, with the name spelled out."""
        return {**asdict(self), "name": self.folder.name}

    def _described(self) -> str:
        """Such as ``cifar10-zca-convnet-3-128``."""
        kind, _, path = self.data.source.partition(":")
        student = [self.student.architecture]
        if self.student.architecture == "convnet":
            student += [str(self.student.depth), str(self.student.width)]
        return "-".join([Path(path).stem or kind, *(["zca"] if self.data.zca else []), *student])
