"""Configuration of a profile: the run whose steps are measured, and how many of them. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdistill.checks import at_least
from fastdistill.config import RunConfig

OUTPUT = "profiles"


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What is measured.

    Attributes:
        run: whose steps; its name and output say where the profile goes.
        profile_steps: steps of every kind (students begin, train on, end) that are profiled.
        warmup: steps before any measurement.
        max_students: largest number of students of the sweep, which doubles from 1 and ends earlier where memory does
            or where two doublings gain less than 2 %; 0 goes on to the memory limit whatever the gain.
        random_images: take random bytes in the data set's shape and number, and random experts, instead of reading any.
    """

    run: RunConfig = field(default_factory=lambda: RunConfig(output=OUTPUT))
    profile_steps: int = 1
    warmup: int = 1
    max_students: int = 64
    random_images: bool = False

    def __post_init__(self) -> None:
        at_least(1, profile_steps=self.profile_steps)
        at_least(0, warmup=self.warmup, max_students=self.max_students)

    @property
    def folder(self) -> Path:
        """Where the profile is."""
        return Path(self.run.output) / self.run.name

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values; the run's stand beside the others, as on the command line."""
        values = asdict(self)
        return {**values.pop("run"), **values}
