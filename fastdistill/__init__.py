"""Dataset distillation with many student initialisations as one program.

Letters used everywhere: ``S`` students (of a run; of all runs together where a tensor has no run axis: run ``r`` then
owns a consecutive share of them), ``R`` independent runs, ``C`` classes, ``M`` synthetic images per class (ipc),
``N = C·M`` synthetic images, ``G`` gradient groups (1, or ``C`` when gradients are matched class by class), ``B`` real
images per group, ``D, H, W`` channels, height, width, ``P`` parameters of one student (padding included), ``T`` inner
steps; ``θ [S, P]`` student weights, ``φ`` everything that is learned. Tensors put the student axis first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastdistill.config import StudentConfig, presets

if TYPE_CHECKING:
    from fastdistill.api import distill, evaluate
    from fastdistill.evaluation.evaluate import Evaluation
    from fastdistill.synthetic.distilled import Distilled
    from fastdistill.synthetic.load import load

__version__ = "0.1.0"
__all__ = ["Distilled", "Evaluation", "StudentConfig", "distill", "evaluate", "load", "presets"]

# resolved on first use, so that the command line and configuration need not wait for torch
_HOMES = {
    "distill": "fastdistill.api",
    "evaluate": "fastdistill.api",
    "Evaluation": "fastdistill.evaluation.evaluate",
    "Distilled": "fastdistill.synthetic.distilled",
    "load": "fastdistill.synthetic.load",
}


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdistill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
