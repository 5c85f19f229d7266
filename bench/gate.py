"""The gate: what a change may not make worse, held against committed figures.

Three tiers. *Exact*, on any machine: operations, operator calls, launches, bytes held, graphs, breaks and recompiles
are equal to the committed ones of the same version of torch, and no benchmark is missing, new or renamed. *Ratio*, on
any machine: no speed-up over the textbook, measured within the run, is below its committed bound. *Wall clock* compares
two commits on one machine and has a file of its own (`bench.versus`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.counters import Counters
from fastdistill.files import write_whole

DONE, REGRESSION, NO_BASELINE = 0, 3, 4
COMMITTED = Path(__file__).parent / "baseline.json"
_SLACK = 0.65  # of a measured speed-up is the bound that is written; shared machines move by nearly as much
Found = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Committed figures.

    Attributes:
        exact: by set and device, version of torch and benchmark, the counters.
        ratio: by set and device, and benchmark, the least speed-up over the textbook.
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
        text = json.dumps({"exact": self.exact, "ratio": self.ratio}, indent=1, sort_keys=True) + "\n"
        write_whole(path, text.encode())

    def updated(self, run: Run) -> Baseline:
        """The same with the figures of a run in place of those of its set, device and version of torch.

        Bounds of speed-ups that stood before are kept: they are lowered, or raised, by hand.
        """
        before = self.ratio.get(run.which, {})
        bounds = {
            entry["case"]: before.get(entry["case"], round(_SLACK * entry["speedup"], 2))
            for entry in run.found
            if "speedup" in entry
        }
        counters = {entry["case"]: dict(entry["counters"]) for entry in run.found}
        versions = {**self.exact.get(run.which, {}), run.torch: counters}
        return Baseline(exact={**self.exact, run.which: versions}, ratio={**self.ratio, run.which: bounds})

    def only(self, chosen: Callable[[str], bool]) -> Baseline:
        """The same of some benchmarks."""

        def kept(figures: Mapping[str, Any]) -> dict[str, Any]:
            return {name: figure for name, figure in figures.items() if chosen(name)}

        exact = {
            which: {version: kept(counters) for version, counters in versions.items()}
            for which, versions in self.exact.items()
        }
        return Baseline(exact=exact, ratio={which: kept(bounds) for which, bounds in self.ratio.items()})


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of the benchmarks found, and what of a baseline it is to be held against.

    Attributes:
        found: of every case, see `bench.table.load`.
        which: set and device, as in short-cpu.
        torch: the version's part that counters depend on, as in 2.13.
    """

    found: Sequence[Found]
    which: str
    torch: str

    @classmethod
    def of(cls, found: Sequence[Found], machine: Found) -> Run:
        """From what `bench.table.load` gives."""
        version = machine["environment"]["packages"]["torch"]
        return cls(found=found, which=f"{machine['set']}-{machine['device']}", torch=minor(version))


def minor(version: str) -> str:
    """The part of a version of torch that counters depend on, as in 2.13."""
    return ".".join(version.split(".")[:2])


def has_exact(baseline: Baseline, run: Run) -> bool:
    """Whether a baseline has counters to hold a run against."""
    return bool(baseline.exact.get(run.which, {}).get(run.torch))


def exact(run: Run, baseline: Baseline) -> list[str]:
    """What differs from the committed counters, a sentence each."""
    committed = baseline.exact[run.which][run.torch]
    now = {entry["case"]: entry["counters"] for entry in run.found}
    says = [f"{name}: expected as committed, got no such benchmark" for name in committed if name not in now]
    says += [f"{name}: expected a committed benchmark, got a new one" for name in now if name not in committed]
    for name in Counters.__dataclass_fields__:
        for case, counters in now.items():
            if case in committed and counters[name] != committed[case].get(name):
                before = committed[case].get(name)
                says.append(f"{case}: expected {name} {before}, got {counters[name]}{_change(before, counters[name])}")
    return says


def ratio(run: Run, baseline: Baseline) -> list[str]:
    """Which speed-ups over the textbook are below their committed bounds, a sentence each."""
    bounds = baseline.ratio.get(run.which, {})
    now = {entry["case"]: entry["speedup"] for entry in run.found if "speedup" in entry}
    says = [f"{case}: expected a committed bound of its speed-up, got none" for case in now if case not in bounds]
    for case, bound in bounds.items():
        if case not in now:
            says.append(f"{case}: expected a speed-up to hold against its bound {bound:.2f}, got none")
        elif now[case] < bound:
            says.append(f"{case}: expected at least {bound:.2f} times the textbook's speed, got {now[case]:.2f}")
    return says


def _change(before: int | None, now: int) -> str:
    return f" ({100 * (now - before) / before:+.1f} %)" if before else ""
