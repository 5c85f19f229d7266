"""How large a compressed file may claim to be inside."""

from __future__ import annotations

import os

FREE = 32 * 2**20  # bytes that anything may expand to: a column of equal labels compresses a thousandfold
RATIO = 100  # beyond these, per compressed byte: pictures stay below 20, deflate itself ends at 1032


def check_expansion(name: str, *, stored: int, claimed: int) -> None:
    """Refuses what cannot or should not be expanded, before anything is allocated.

    Args:
        name: what expands, for the message.
        stored: bytes on the disk.
        claimed: bytes it says it expands to.

    Raises:
        ValueError: if `claimed` exceeds ``FREE + RATIO * stored``, or the machine's memory.
    """
    if claimed > FREE + RATIO * stored:
        raise ValueError(f"{name} claims to expand from {stored} bytes to {claimed}")
    if claimed > machine_memory():
        raise ValueError(f"{name} claims {claimed} bytes, more than this machine's memory")


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
