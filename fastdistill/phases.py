"""The phases of an outer step, as labels that `torch.profiler` shows: in a trace of anybody's, and to ``profile``.

A label costs microseconds, so one stands around a whole group of work, never inside ``torch.func`` transforms or a loop
over images. Where labels are nested the innermost one owns what happens. They change no bit of a result.
"""

from __future__ import annotations

from torch.profiler import record_function

FRESH = "fresh students"
DATA = "data"
AUGMENTATION = "augmentation"
GENERATOR = "generator"
TRAINING = "student training"
REAL_GRADIENTS = "real gradients"
SYNTHETIC_GRADIENT = "synthetic gradient"
REAL_FEATURES = "real features"
SYNTHETIC_FEATURES = "synthetic features"
MATCH = "match"
SECOND_ORDER = "second-order product"
UPDATE = "update"

PHASES = (  # in about the order of a step
    FRESH,
    DATA,
    AUGMENTATION,
    GENERATOR,
    TRAINING,
    REAL_GRADIENTS,
    SYNTHETIC_GRADIENT,
    REAL_FEATURES,
    SYNTHETIC_FEATURES,
    MATCH,
    SECOND_ORDER,
    UPDATE,
)


def phase(name: str) -> record_function:
    """A label around what runs inside, one of `PHASES`; a context manager."""
    return record_function(name)
