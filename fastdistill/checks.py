"""Checks of settings: each refuses wrong values by one sentence. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def one_of(name: str, value: str, valid: Sequence[str]) -> None:
    """Refuses a value that is none of the valid ones; names the nearest."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f"did you mean {near[0]!r}" if near else "choose one of these"
        raise ValueError(f"expected {name} among {', '.join(valid)}, got {value!r}: {hint}")


def of_kind(kind: str, value: str) -> None:
    """Refuses a kind of settings under the name of another."""
    if value != kind:
        raise ValueError(f"expected the kind {kind} of these settings, got {value!r}: leave kind out")


def at_least(low: float, **values: float) -> None:
    """Refuses named values below a bound, and infinite ones."""
    for name, value in values.items():
        if not value >= low:
            raise ValueError(f"expected {name} of at least {low}, got {value}: raise it")
        if value == float("inf"):
            raise ValueError(f"expected a finite {name}, got {value}: lower it")


def at_most(high: float, **values: float) -> None:
    """Refuses named values above a bound."""
    for name, value in values.items():
        if not value <= high:
            raise ValueError(f"expected {name} of at most {high}, got {value}: lower it")


def positive(**values: float) -> None:
    """Refuses named values that are not positive and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"expected a positive, finite {name}, got {value}: raise it above zero")


def folder_name(name: str) -> None:
    """Refuses a name that is not one folder's."""
    if not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"expected a name that is one folder name, got {name!r}: leave out slashes")
