"""The gate: what a change may not make worse, held against committed figures.

Three tiers. *Exact*, on any machine: operations, operator calls, launches, bytes held, graphs, breaks and recompiles
are equal to the committed ones of the same version of torch, and no benchmark is missing, new or renamed. *Ratio*, on
any machine: no speed-up over the textbook, measured within the run, is below its committed bound. *Wall clock* compares
two commits on one machine and has a file of its own (`bench.versus`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.counters import Counters

DONE, REGRESSION, NO_BASELINE = 0, 3, 4
COMMITTED = Path(__file__).parent / "baseline.json"
_SLACK = 0.6  # of a measured speed-up is the bound that is written; shared machines move by nearly as much
Found = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Committed figures.

    Attributes:
        exact: by set, version of torch and benchmark, the counters.
        ratio: by set and benchmark, the least speed-up over the textbook.
    """

    exact: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    ratio: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """From a file.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: for a file of something else.
        """
        try:
            content = json.loads(path.read_text())
            return cls(exact=dict(content["exact"]), ratio=dict(content["ratio"]))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a baseline in {path}, got {type(error).__name__} ({error}): make one with fastdistill bench "
                "--update"
            ) from None

    def write(self, path: Path) -> None:
        """To a file, the same bytes for the same figures."""
        path.write_text(json.dumps({"exact": self.exact, "ratio": self.ratio}, indent=1, sort_keys=True) + "\n")

    def updated(self, found: Sequence[Found], *, chosen: str, torch_version: str) -> Baseline:
        """The same with the figures of a run in place of those of its set and version of torch.

        Bounds of speed-ups that stood before are kept: they are lowered, or raised, by hand.
        """
        counters = {entry["case"]: dict(entry["counters"]) for entry in found}
        before = self.ratio.get(chosen, {})
        bounds = {
            entry["case"]: before.get(entry["case"], round(_SLACK * entry["speedup"], 2))
            for entry in found
            if "speedup" in entry
        }
        versions = {**self.exact.get(chosen, {}), minor(torch_version): counters}
        return Baseline(exact={**self.exact, chosen: versions}, ratio={**self.ratio, chosen: bounds})


def minor(version: str) -> str:
    """The part of a version of torch that counters depend on, as in 2.13."""
    return ".".join(version.split(".")[:2])


def has_exact(baseline: Baseline, *, chosen: str, torch_version: str) -> bool:
    """Whether a baseline has counters to compare a run with."""
    return bool(baseline.exact.get(chosen, {}).get(minor(torch_version)))


def exact(found: Sequence[Found], baseline: Baseline, *, chosen: str, torch_version: str) -> list[str]:
    """What differs from the committed counters, a sentence each."""
    committed = baseline.exact[chosen][minor(torch_version)]
    now = {entry["case"]: entry["counters"] for entry in found}
    says = [f"{name}: expected as committed, got no such benchmark" for name in committed if name not in now]
    says += [f"{name}: expected a committed benchmark, got a new one" for name in now if name not in committed]
    for name in Counters.__dataclass_fields__:
        for case, counters in now.items():
            if case in committed and counters[name] != committed[case].get(name):
                before = committed[case].get(name)
                says.append(f"{case}: expected {name} {before}, got {counters[name]}{_change(before, counters[name])}")
    return says


def ratio(found: Sequence[Found], baseline: Baseline, *, chosen: str) -> list[str]:
    """Which speed-ups over the textbook are below their committed bounds, a sentence each."""
    says = []
    bounds = baseline.ratio.get(chosen, {})
    for entry in found:
        case = entry["case"]
        if "speedup" in entry and case not in bounds:
            says.append(f"{case}: expected a committed bound of its speed-up, got none")
        elif "speedup" in entry and entry["speedup"] < bounds[case]:
            says.append(
                f"{case}: expected at least {bounds[case]:.2f} times the textbook's speed, got {entry['speedup']:.2f}"
            )
    return says


def _change(before: int | None, now: int) -> str:
    return f" ({100 * (now - before) / before:+.1f} %)" if before else ""
