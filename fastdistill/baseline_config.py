"""Configuration of baselines: real images, or simple summaries of them, judged in the place of distilled ones.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdistill.checks import at_least, at_most, folder_name, one_of
from fastdistill.config import DEVICES, DataConfig, StudentConfig

NEAREST, WHOLE = "nearest_neighbour", "whole_set"
# what a table calls each
LABELS = {
    "random_real": "random real",
    "optimised_random": "optimised random",
    "class_average": "class average",
    "k_means": "k-means",
    "herding": "herding",
    "k_center": "k-center",
    "forgetting": "forgetting",
    NEAREST: "nearest neighbour",
    WHOLE: "whole set",
}
BASELINES = tuple(LABELS)


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Some baselines: from what they are chosen and how they are judged.

    Attributes:
        name: folder below output; by default after data, student and ipc.
        output: folder of folders of baselines.
        ipc: images per class, as of the distilled images they stand beside.
        baselines: random_real, optimised_random, class_average, k_means, herding, k_center, forgetting,
            nearest_neighbour, whole_set; by default all that can be had.
        against: run folder, for nearest_neighbour.
        protocol: dc, dsa or default.
        epochs: of the protocol; 0 keeps its own.
        students: fresh students that judge each.
        whole_epochs: most epochs of whole_set.
        whole_students: fresh students of whole_set.
        candidates: random sets that optimised_random keeps the best fifth of.
        candidate_students: students that judge each candidate.
        candidate_epochs: most epochs of theirs.
        networks: trained networks for herding, k_center, forgetting.
        network_epochs: epochs of theirs.
        network_width: channels of theirs; 0 keeps the student's.
        seed: of every draw, and of the validation split.
        data: the real images.
        student: the network.
        device: auto, cpu or cuda.
        threads: CPU threads; 0 keeps the machine's default.
    """

    name: str = ""
    output: str = "baselines"
    ipc: int = 1
    baselines: tuple[str, ...] = ()
    against: str = ""
    protocol: str = "default"
    epochs: int = 0
    students: int = 20
    whole_epochs: int = 10
    whole_students: int = 5
    candidates: int = 25
    candidate_students: int = 2
    candidate_epochs: int = 100
    networks: int = 5
    network_epochs: int = 20
    network_width: int = 0
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.name:
            folder_name(self.name)
        for name in self.baselines:
            one_of("baselines", name, BASELINES)
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError(f"expected every baseline once, got {', '.join(self.baselines)}: leave out the second")
        if NEAREST in self.baselines and not self.against:
            raise ValueError(
                f"expected a run folder as against for {NEAREST}, got none: name the run, or leave {NEAREST} out"
            )
        if self.against and NEAREST not in self.chosen:
            raise ValueError(
                f"expected {NEAREST} among the baselines beside against, got {', '.join(self.baselines)}: add it, or "
                "leave against out"
            )
        one_of("protocol", self.protocol, ("dc", "dsa", "default"))
        one_of("device", self.device, DEVICES)
        at_least(1, ipc=self.ipc, students=self.students, whole_epochs=self.whole_epochs)
        at_least(1, whole_students=self.whole_students, candidates=self.candidates, networks=self.networks)
        at_least(1, candidate_students=self.candidate_students, candidate_epochs=self.candidate_epochs)
        at_least(1, network_epochs=self.network_epochs)
        at_least(0, epochs=self.epochs, network_width=self.network_width, threads=self.threads, seed=self.seed)
        at_most(2**63 - 1, seed=self.seed)
        at_most(4096, threads=self.threads)
        if self.network_width and self.student.architecture != "convnet":
            raise ValueError(
                f"expected a network_width for a convnet only, got {self.network_width} for "
                f"{self.student.architecture}: leave it out"
            )
        if self.student.initialization != "fresh":
            raise ValueError(
                f"expected fresh students to judge baselines, got student.initialization {self.student.initialization}:"
                " set it to fresh"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The baselines that are judged, in order."""
        return self.baselines or tuple(name for name in BASELINES if name != NEAREST or self.against)

    @property
    def network(self) -> StudentConfig:
        """What the networks for herding, k_center and forgetting are."""
        return replace(self.student, width=self.network_width or self.student.width)

    @property
    def folder(self) -> Path:
        """Where the baselines are."""
        return Path(self.output) / (self.name or self._described())

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, with the name and the baselines spelled out."""
        return {**asdict(self), "name": self.folder.name, "baselines": list(self.chosen)}

    def _described(self) -> str:
        """Such as ``cifar10-zca-convnet-3-128-10``."""
        kind, _, path = self.data.source.partition(":")
        student = [self.student.architecture]
        if self.student.architecture == "convnet":
            student += [str(self.student.depth), str(self.student.width)]
        parts = [Path(path).stem or kind, *(["zca"] if self.data.zca else []), *student, str(self.ipc)]
        return "-".join(parts)
