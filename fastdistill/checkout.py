"""The source tree that a command runs in, for what lives beside the package and is not installed with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

BENCH = Path("bench", "__main__.py")


def find_checkout(here: Path) -> Path:
    """The checkout of fastdistill that a folder belongs to.

    Raises:
        ValueError: for a folder outside one.
    """
    for folder in (here, *here.parents):
        if (folder / BENCH).is_file() and (folder / "fastdistill").is_dir():
            return folder
    raise ValueError(
        f"expected to be in a checkout of fastdistill, whose benchmarks are not installed with it, got {here}: clone "
        "the repository and repeat the command there"
    )


def run_bench(words: Sequence[str], here: Path) -> NoReturn:
    """Becomes the benchmarks of the checkout that a folder belongs to, on its own sources; does not return.

    Relative paths among the words are as they are from ``here``, which has to be where the process is.

    Raises:
        ValueError: see `find_checkout`.
    """
    root = find_checkout(here)
    sources = os.pathsep.join(map(str, (root, root / "kernels")))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "bench", *words], {**os.environ, "PYTHONPATH": sources})
