"""Thousands of damaged files for a reader, each of which it must read or refuse by its documented exception."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SENTENCE = r"expected .+, (got|found) .+: .*[^.]"  # of the house: what was expected, what came, what to do
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
SLOWEST = 5.0  # seconds of computing that no input may take


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Mutation `number` of some files, always the same: one to four changes of one of them."""
    random = np.random.default_rng(number)
    data = bytearray(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(1, 5)):
        start, end = sorted(random.integers(0, len(data) + 1, 2).tolist())
        end = min(end, start + int(random.choice([1, 8, 64, 2**20])))  # most changes are small
        match random.integers(8):
            case 0:  # flip one bit of a byte
                data[start : start + 1] = bytes(byte ^ 1 << random.integers(8) for byte in data[start : start + 1])
            case 1:
                data[start:end] = random.bytes(end - start)
            case 2:  # truncate
                del data[start:]
            case 3:
                data[start:start] = random.bytes(int(random.choice([1, 4, 100])))
            case 4:  # repeat a range
                data[end:end] = data[start:end]
            case 5:
                data[start:end] = bytes(end - start)
            case 6:  # go on with the rest of another file
                other = seeds[random.integers(len(seeds))]
                data[start:] = other[random.integers(len(other) + 1) :]
            case _:  # an integer at the edge of its type, in either byte order
                size = int(random.choice([1, 2, 4, 8]))
                value = EXTREMES[random.integers(len(EXTREMES))] % 256**size
                data[start : start + size] = value.to_bytes(size, "little" if random.integers(2) else "big")
    return bytes(data)


def fuzz(
    read: Callable[[Path], object],
    seeds: Sequence[bytes],
    path: Path,
    *,
    count: int = 10_000,
    refused: float = 0.2,
    sentence: str = SENTENCE,
) -> int:
    """Lets `read` read the seeds, which it must, and then `count` damaged forms of them.

    Args:
        read: reads `path`; ValueError is its documented exception.
        seeds: contents of good files.
        path: where to write each.
        count: damaged files.
        refused: least share of these that must be refused, lest the damage stays unnoticed.
        sentence: what the text of each exception must match.

    Returns:
        How many were refused.

    Raises:
        AssertionError: naming the mutation's number, to be had again by ``mutated(seeds, number)``.
    """
    for seed in seeds:
        path.write_bytes(seed)
        read(path)
    failures = 0
    for number in range(count):
        path.write_bytes(mutated(seeds, number))
        begin = time.process_time()
        try:
            read(path)
        except KeyboardInterrupt:
            raise
        except ValueError as error:
            assert re.fullmatch(sentence, str(error)), f"mutation {number}: not our sentence: {error!r}"
            failures += 1
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {type(error).__name__} instead of ValueError: {error}") from error
        assert time.process_time() - begin < SLOWEST, f"mutation {number} took too long"
    assert failures >= refused * count, f"only {failures} of {count} damaged files were refused"
    return failures
