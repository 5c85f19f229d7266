"""What the program is to reach, and what was found: the first table of ``docs/performance.md``.

The goals are written here; every figure beside one is read from the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.reliability import FIRST_STEPS
from docs.measurements import CPU, FUNCTIONAL, TEXTBOOK, Machine, Step, Training

GPU = "h200"
Found = Mapping[str, Machine]
Reading = tuple[float, str]  # a figure, and of what it is


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure to reach.

    Attributes:
        what: is measured.
        machine: the folder of its results.
        goal: in words.
        reached: whether a figure reaches it.
        said: a figure in words, a format.
        read: the figures that were found, one for each case that it is asked of; none where it was not measured.
    """

    what: str
    machine: str
    goal: str
    reached: Callable[[float], bool]
    said: str
    read: Callable[[Machine], Sequence[Reading]]

    def cells(self, machines: Found) -> tuple[str, str, str, str, str]:
        """What, where, the goal, what was found, and whether it is reached."""
        found = self.read(machines[self.machine]) if self.machine in machines else ()
        where = machines[self.machine].hardware if found else {CPU: "CPU", GPU: "H200"}[self.machine]
        if not found:
            return self.what, where, self.goal, "not measured", ""
        reached = [self.reached(figure) for figure, _ in found]
        said = "; ".join(f"{self._say(figure)} ({of})" if of else self._say(figure) for figure, of in found)
        return self.what, where, self.goal, said, "yes" if all(reached) else "in part" if any(reached) else "no"

    def _say(self, figure: float) -> str:
        return self.said.format(figure) if math.isfinite(figure) else "never"


def _case(step: Step) -> str:
    precision = "" if step.precision == "float32" else f", {step.precision}"
    return f"{step.engine}{precision}, S = {step.students}"


def _fastest(
    workload: str, students: int = 0, earlier: str = "", *, narrow: bool = False
) -> Callable[[Machine], list[Reading]]:
    """The largest speed-up of a workload, of any or of some number of students.

    Args:
        workload: group and problem.
        students: ``S``; 0 for any.
        earlier: what the first measurements call it, which say something where there are no others.
        narrow: of products in the precision that a run chooses, rather than float32 and TF32.
    """

    def read(machine: Machine) -> list[Reading]:
        of_it = [
            step
            for step in machine.steps
            if step.workload == workload and step.speedup and (step.engine == "dual-auto") is narrow
        ]
        found = [(step.speedup or 0, _case(step)) for step in of_it if students in (0, step.students)]
        if not found and machine.earlier and not narrow:
            commit = next(source.commit for source in machine.sources if source.name.endswith("/step.json"))
            rows = [row for row in machine.earlier["rows"] if row["workload"] == earlier]
            for key, cell in ((key, cell) for row in rows for key, cell in row.items() if key.startswith("S=")):
                if students in (0, int(key[2:])):
                    found.append((cell["times_faster_per_student"], f"{key.replace('=', ' = ')}, commit {commit}"))
        return [max(found)] if found else []

    return read


def _copy_share(workload: str) -> Callable[[Machine], list[Reading]]:
    def read(machine: Machine) -> list[Reading]:
        found = [step for step in machine.steps if step.workload == workload and step.engine == FUNCTIONAL]
        shares = [(100 * step.traffic / step.seconds / step.peaks.bandwidth, _case(step)) for step in found]
        return [max(shares)] if shares else []

    return read


def _dispatches(workload: str) -> Callable[[Machine], list[Reading]]:
    def read(machine: Machine) -> list[Reading]:
        ratios: list[Reading] = []
        for engine in (FUNCTIONAL, "dual"):
            found = [step for step in machine.steps if step.workload == workload and step.engine == engine]
            ordered = sorted(found, key=lambda step: step.students)
            if len(ordered) > 1:
                few, many = ordered[0], ordered[-1]
                said = f"{engine}, {few.dispatches} at S = {few.students}, {many.dispatches} at S = {many.students}"
                ratios.append((many.dispatches / few.dispatches, said))
        return [min(ratios)] if ratios else []

    return read


def _over_gradient(figure: Callable[[Step], float]) -> Callable[[Machine], list[Reading]]:
    """What a Hessian's product takes of a figure, over the gradient in the same pieces of images."""

    def read(machine: Machine) -> list[Reading]:
        found = {
            (step.problem, step.engine, step.students): value
            for step in machine.steps
            if step.group == "products" and step.engine != TEXTBOOK and step.precision == "float32"
            if (value := figure(step))
        }
        ratios = [
            (value / found[gradient], f"{engine}, S = {students}")
            for (problem, engine, students), value in found.items()
            if problem == "hessian-mnist" and (gradient := ("gradient-mnist", engine, students)) in found
        ]
        return [min(ratios)] if ratios else []

    return read


def _trainings(read_one: Callable[[Training], float | None], file: str) -> Callable[[Machine], list[Reading]]:
    def read(machine: Machine) -> list[Reading]:
        _, trainings = machine.trainings.get(file, ({}, ()))
        return [(figure, one.method) for one in trainings if (figure := read_one(one)) is not None]

    return read


def _memory_ratio(training: Training) -> float | None:
    return training.textbook_at(50) / training.engine[50] if 50 in training.engine and training.textbook else None


def _exact_matching(training: Training) -> float | None:
    return training.engine[20] / 1e9 if training.method == "mtt" and 20 in training.engine else None


def _against_tesla(machine: Machine) -> list[Reading]:
    steps = {(step.problem, step.engine, step.precision): step for step in machine.steps if step.students == 1}
    found = []
    for precision in ("float32", "tf32"):
        ours = steps.get(("mtt-cifar10", FUNCTIONAL, precision))
        theirs = steps.get(("tesla-cifar10", TEXTBOOK, precision))
        if ours and theirs:
            found.append((theirs.seconds / ours.seconds, f"{precision}, S = 1"))
    return found


def _reached(machine: Machine) -> list[Reading]:
    real = machine.real
    if not real:
        return []
    seconds = real["reached_s"]
    return [(float("inf") if seconds is None else seconds, "")]


def _first_steps(machine: Machine) -> list[Reading]:
    return [(machine.starts[FIRST_STEPS], "")] if FIRST_STEPS in machine.starts else []


def _times(least: float) -> tuple[str, Callable[[float], bool], str]:
    return f"≥ {least:g}×", lambda figure: figure >= least, "{:.2f}×"


def _goal(
    what: str,
    machine: str,
    bound: tuple[str, Callable[[float], bool], str],
    read: Callable[[Machine], Sequence[Reading]],
) -> Goal:
    goal, reached, said = bound
    return Goal(what=what, machine=machine, goal=goal, reached=reached, said=said, read=read)


GOALS = (
    _goal(
        "DC step per student, MNIST, ConvNet-3-128, float32",
        CPU,
        _times(1.6),
        _fastest("matching/dc-mnist", 0, "mnist-1"),
    ),
    _goal(
        "the same with bfloat16 where the processor has it",
        CPU,
        _times(2.5),
        _fastest("matching/dc-mnist", narrow=True),
    ),
    _goal(
        "DC step per student, digits, ConvNet-3-16, S = 16",
        CPU,
        _times(10),
        _fastest("matching/dc-digits", 16, "digits-1, width 16"),
    ),
    _goal("DD step per student, LeNet, 10 images × 30 steps, S = 8", CPU, _times(4), _fastest("unrolled/dd-lenet", 8)),
    _goal("DC step per student, MNIST, S = 16", GPU, _times(10), _fastest("matching/dc-mnist", 16, "mnist-1")),
    _goal(
        "the same, once the first block is one kernel", GPU, _times(20), _fastest("matching/dc-mnist", 16, "mnist-1")
    ),
    _goal(
        "`H v` over the gradient, ConvNet-3-128, 256 images: time",
        CPU,
        ("≤ 3×", lambda figure: figure <= 3, "{:.2f}×"),
        _over_gradient(lambda step: step.seconds),
    ),
    _goal(
        "the same: memory that tensors hold",
        CPU,
        ("≤ 2.2×", lambda figure: figure <= 2.2, "{:.2f}×"),
        _over_gradient(lambda step: step.held if step.engine == "dual" else 0),
    ),
    _goal(
        "gradient through 50 steps on 100 images: the textbook's peak memory (extrapolated) over ours",
        CPU,
        _times(20),
        _trainings(_memory_ratio, "unrolled.json"),
    ),
    _goal(
        "gradient through 10 such steps: time",
        CPU,
        _times(1.6),
        _trainings(lambda training: max(training.times_faster.values(), default=None), "unrolled.json"),
    ),
    _goal(
        "exact trajectory matching, CIFAR-100, 10 images a class, 20 steps: peak memory",
        GPU,
        ("< 2 GB", lambda x: x < 2, "{:.2f} GB"),
        _trainings(_exact_matching, "unrolled-cifar100.json"),
    ),
    _goal(
        "exact trajectory matching against the textbook's TESLA, CIFAR-10: time",
        GPU,
        ("> 1×", lambda x: x > 1, "{:.2f}×"),
        _against_tesla,
    ),
    _goal(
        "`match`: share of a copy's bandwidth",
        GPU,
        ("≥ 80 %", lambda x: x >= 80, "{:.0f} %"),
        _copy_share("references/match-ours-mnist"),
    ),
    _goal("evaluating 20 networks at once", CPU, _times(1.3), _fastest("evaluation/mnist-32", 20)),
    _goal("evaluating 20 networks at once", GPU, _times(8), _fastest("evaluation/cifar10", 20)),
    _goal(
        "`fastdistill run`, default preset: from its start to its first steps",
        CPU,
        ("≤ 10 s", lambda x: x <= 10, "{:.1f} s"),
        _first_steps,
    ),
    _goal(
        "MNIST, 10 images, to 91.7 %: time of distilling",
        GPU,
        ("≤ 3 s", lambda x: x <= 3, "{:.1f} s"),
        _reached,
    ),
    *(
        _goal(
            "operators called in a DC step, digits: at the most students over at one",
            machine,
            ("1×", lambda x: x == 1, "{:.2f}×"),
            _dispatches("matching/dc-digits"),
        )
        for machine in (CPU, GPU)
    ),
)
