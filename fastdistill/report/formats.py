"""How numbers of a run are said to a reader."""

from __future__ import annotations

import math

MISSING = "not measured"
_UNITS = ((15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP"))


def percent(share: float | None) -> str:
    """A share in ``[0, 1]`` in per cent; empty when there is none."""
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def with_spread(mean: float | None, deviation: float | None) -> str:
    """A share and its standard deviation in per cent."""
    shown, spread = percent(mean), percent(deviation)
    return f"{shown} ± {spread}" if shown and spread else shown or MISSING


def count(value: float | None) -> str:
    """A whole number with its thousands set apart."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", "\u202f")


def megabytes(value: float | None) -> str:
    """Memory in MB (10^6 bytes)."""
    return MISSING if value is None or not math.isfinite(value) else f"{count(value)} MB"


def operations(value: float | None) -> str:
    """Floating-point operations."""
    if value is None or not math.isfinite(value):
        return MISSING
    scale, unit = next(((10**power, unit) for power, unit in _UNITS if value >= 10**power), (10**6, "MFLOP"))
    return f"{value / scale:.1f} {unit}"


def rate(value: float | None) -> str:
    """Floating-point operations in a second."""
    return MISSING if value is None or not math.isfinite(value) else f"{operations(value)}/s"


def duration(seconds: float | None) -> str:
    """A time in the unit a reader would say it in."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"
