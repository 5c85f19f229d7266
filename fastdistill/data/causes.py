"""What a foreign library's exception says, fit to stand inside one of our sentences."""

from __future__ import annotations

LONGEST = 200  # characters


def cause_of(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none.

    What a damaged file makes a decoder say can hold anything: control characters are replaced, long lines cut.
    """
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST])
