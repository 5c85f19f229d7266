"""What the tests on a device came to, in the same form as what is measured there: ``python -m bench.gpu.tests OUT``."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fastdistill.files import write_whole
from fastdistill.loop.environment import describe_environment

_OURS = ("fastdistill", "fastdistill_kernels", "bench", "tests")
_MISSING = re.compile(r"No module named '(\w+)")


def summary(report: Path) -> dict[str, Any]:
    """Numbers of tests by outcome, the names of those that failed, and what libraries others would have needed.

    Args:
        report: a JUnit file.
    """
    outcomes: Counter[str] = Counter()
    failed, needed = [], set()
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag: child for child in case if child.tag in ("failure", "error", "skipped")}
        outcome, child = next(iter(children.items()), ("passed", None))
        missing = _MISSING.search(child.text or "") if outcome == "error" and child is not None else None
        if missing and missing.group(1) not in _OURS:
            outcome = "left out"
            needed.add(missing.group(1))
        elif outcome in ("failure", "error"):
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        outcomes[outcome] += 1
    return {"outcomes": dict(outcomes), "failed": failed, "needed": sorted(needed)}


def as_markdown(found: dict[str, Any]) -> str:
    """The same for people."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["outcomes"].items()))
    lines = [f"Tests on the device: {counts}."]
    if found["needed"]:
        lines.append(f"Files of tests were left out for want of {', '.join(found['needed'])}.")
    if not found.get("whole", True):
        lines.append("They were cut off before the end.")
    return "\n".join([*lines, *(f"- {name}" for name in found["failed"])]) + "\n"


def main() -> int:
    """Writes ``tests.json`` and ``tests.md`` beside ``tests.xml``.

    The words are the folder and pytest's exit code. Returns 1 where a test failed, none passed, or not all ran.
    """
    out, code = Path(sys.argv[1]), int(sys.argv[2])
    if not (out / "tests.xml").exists():
        print(f"expected pytest to leave {out / 'tests.xml'}, got exit code {code} and no file", file=sys.stderr)
        return 1
    found = {**summary(out / "tests.xml"), "whole": code in (0, 1), "environment": describe_environment()}
    write_whole(out / "tests.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(out / "tests.md", as_markdown(found).encode())
    print(as_markdown(found), end="")
    return int(bool(found["failed"]) or not found["outcomes"].get("passed") or not found["whole"])


if __name__ == "__main__":
    sys.exit(main())
