"""The experts of a run's trajectory matching, opened and held against the run."""

from __future__ import annotations

from fastdistill.config import RunConfig
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.layout import Layout
from fastdistill.method_configs import TrajectoryConfig
from fastdistill.methods import trajectory
from fastdistill.students.ensemble import student_module
from fastdistill.students.experts import Experts


def open_experts(config: RunConfig, train: ImageStore, *, data_hash: str | None = None) -> Experts:
    """The experts of trajectory matching.

    Args:
        config: the run.
        train: the training images; give shape and classes.
        data_hash: of the images that the run sees (`fingerprint.seen_hash`); not compared when not given.

    Raises:
        ValueError: where none are named or found, for those of another network or of other images, or ones that end too
            soon.
    """
    assert isinstance(config.method, TrajectoryConfig)
    if not config.method.experts:
        raise ValueError(
            "expected the folder of experts in method.experts, got none: make some with fastdistill experts and name "
            "their folder with --method.experts"
        )
    opened = Experts.open(config.method.experts)
    opened.check(
        layout=Layout.of(student_module(config.student, train.shape, train.num_classes)),
        student=config.student,
        data_hash=opened.data_hash if data_hash is None else data_hash,
        zca=config.data.zca,
    )
    trajectory.refuse_short(config.method, opened)
    return opened
