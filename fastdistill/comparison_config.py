"""Configuration of a comparison: arms distilled and then put to the same tests. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdistill.baseline_config import BaselineConfig
from fastdistill.checks import at_least, folder_name, one_of
from fastdistill.config import RunConfig, StudentConfig

ARMS = "arms"  # the folder of the arms' runs
COMPARISONS = Path(__file__).parent / "comparisons"


@dataclass(frozen=True, kw_only=True)
class TestConfig:
    """A column of the table: students that an arm's images are tested by, beside those it was distilled for.

    Attributes:
        student: the settings of `StudentConfig` in which they differ from the arm's.
        students: how many, per run.
        epochs: of the protocol; 0 keeps its own.
        protocol: dc, dsa, default or own; empty for the arm's.
        test_images: of the test set, evenly spread; 0 for all.
    """

    __test__ = False  # it is no test of ours

    student: dict[str, Any] = field(default_factory=dict)
    students: int = 5
    epochs: int = 0
    protocol: str = ""
    test_images: int = 0

    def __post_init__(self) -> None:
        at_least(1, students=self.students)
        at_least(0, epochs=self.epochs, test_images=self.test_images)
        one_of("protocol", self.protocol or "own", ("dc", "dsa", "default", "own"))

    def of(self, student: StudentConfig) -> StudentConfig:
        """The students that test an arm: fresh ones unless it is said otherwise."""
        return StudentConfig(**{**asdict(student), "initialization": "fresh", "pretrained": "", **self.student})


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Networks that are trained on the real images first, for arms and tests that begin with pretrained weights.

    Attributes:
        networks: how many; 0 for none.
        epochs: that each is trained.
    """

    networks: int = 0
    epochs: int = 1

    def __post_init__(self) -> None:
        at_least(0, networks=self.networks)
        at_least(1, epochs=self.epochs)


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Some arms, each a run of its own, that are given the same time or the same steps and then tested alike.

    Attributes:
        name: folder below output.
        output: folder of comparisons.
        arms: the runs, by name.
        tests: the further columns of the table, by name.
        images: which are tested: last, or best on validation.
        pretraining: the networks in ``pretrained/``.
        baselines: judged beside the arms by the protocol and student of the first, where there are any.
    """

    name: str
    output: str
    arms: dict[str, RunConfig]
    tests: dict[str, TestConfig] = field(default_factory=dict)
    images: str = "last"
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    baselines: BaselineConfig | None = None

    def __post_init__(self) -> None:
        folder_name(self.name)
        if not self.arms:
            raise ValueError("expected at least one arm, got none: write arms, a name and its options each")
        one_of("images", self.images, ("last", "best"))
        needs = [name for name, arm in self.arms.items() if arm.student.pretrained == str(self.pretrained)]
        needs += [
            name for name, test in self.tests.items() if test.student.get("pretrained", "") == str(self.pretrained)
        ]
        if needs and not self.pretraining.networks:
            raise ValueError(
                f"expected pretraining.networks for {needs[0]}, whose weights are pretrained, got none: say how many, "
                "or name a folder as student.pretrained"
            )
        for name, arm in self.arms.items():
            selects = bool(arm.evaluation.validation_every)
            if self.images == "best" and not selects:
                raise ValueError(
                    f"expected validation_every for the arm {name}, whose best images are asked for, got 0: set "
                    "evaluation.validation_every, or images to last"
                )
            for test in self.tests.values():
                test.of(arm.student)  # refuses a student that cannot be
                if (test.protocol or arm.evaluation.protocol) == "own" and test.epochs:
                    raise ValueError(
                        f"expected no epochs for the arm {name}, which is tested by its own steps, got {test.epochs}: "
                        "leave them out, or name another protocol of the test"
                    )

    def alike(self, ipc: int, test: str) -> bool:
        """Whether random real images stand beside all arms of as many images in a test: it is the same for them all."""
        arms = [arm for arm in self.arms.values() if arm.ipc == ipc]
        return len({_conditions(arm, self.tests[test]) for arm in arms}) == 1

    @property
    def folder(self) -> Path:
        """Where the comparison is; its ``arms`` has a run folder for every arm."""
        return Path(self.output) / self.name

    @property
    def pretrained(self) -> Path:
        """Where the networks of `pretraining` are."""
        return pretrained_folder(self.output, self.name)


def judged_alike(first: RunConfig, second: RunConfig) -> bool:
    """Whether the same random real images, judged once, stand beside two arms in their own judgement."""
    return _conditions(first) == _conditions(second)


def _conditions(arm: RunConfig, test: TestConfig | None = None) -> str:
    """What decides the score of random real images beside an arm, in a test or in its own judgement."""
    evaluation = arm.evaluation
    student = replace(arm.student, initialization="fresh", pretrained="") if test is None else test.of(arm.student)
    protocol = evaluation.protocol if test is None or not test.protocol else test.protocol
    own = arm.name if protocol == "own" else ""  # it is trained with the rates of the images beside
    return repr((arm.ipc, arm.data, arm.seed, student, protocol, own, evaluation.students if test is None else ""))


def pretrained_folder(output: str, name: str) -> Path:
    """The folder of a comparison's own pretrained networks."""
    return Path(output) / name / "pretrained"


def comparisons() -> tuple[str, ...]:
    """Names of the comparisons that come with the package, such as ``mnist-cpu``."""
    return tuple(sorted(path.stem for path in COMPARISONS.glob("*.yaml")))


def with_defaults(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options over others; those of a method replace those of another kind of method as a whole."""
    found = dict(base)
    for name, value in values.items():
        before = found.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            kind = before.get("kind", "matching")
            another = name == "method" and value.get("kind", kind) != kind
            found[name] = dict(value) if another else with_defaults(before, value)
        else:
            found[name] = value
    return found
