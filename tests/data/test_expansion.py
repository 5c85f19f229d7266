from __future__ import annotations

import pytest

from fastdistill.data import expansion
from fastdistill.data.expansion import FREE, RATIO, check_expansion, machine_memory


def test_what_pictures_and_labels_expand_to_is_allowed() -> None:
    check_expansion("images", stored=10**6, claimed=20 * 10**6)
    check_expansion("labels", stored=10_000, claimed=8 * 10**6)
    check_expansion("images", stored=2**30, claimed=2**30)


def test_a_bomb_is_refused() -> None:
    check_expansion("images", stored=1000, claimed=FREE + RATIO * 1000)
    with pytest.raises(ValueError, match="images claims to expand from 1000 bytes to 1000000000000"):
        check_expansion("images", stored=1000, claimed=10**12)


def test_more_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_memory() > 2**28
    monkeypatch.setattr(expansion, "machine_memory", lambda: 999)
    with pytest.raises(ValueError, match="images claims 1000 bytes, more than this machine's memory"):
        check_expansion("images", stored=1000, claimed=1000)
