"""A few outer steps that stand for all of a run's: what is measured of it, without distilling anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from fastdistill.config import RunConfig
from fastdistill.data.store import ImageStore
from fastdistill.loop.descent import Descent
from fastdistill.loop.descents import make_descent
from fastdistill.loop.outer import Method, State, outer_step
from fastdistill.loop.peaks import synchronize
from fastdistill.loop.plan import Plan
from fastdistill.loop.setup import initial_state, make_method
from fastdistill.method_configs import ImplicitConfig, MatchingConfig
from fastdistill.methods.trajectory import Experts

_ENOUGH = 2.0  # seconds of timed steps after which no further round is run
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An outer step that stands for a share of a run's.

    Attributes:
        number: of the step; an earlier moment's students come to it, unless new ones begin.
        share: of the run's steps, in ``(0, 1]``.
    """

    number: int
    share: float


def moments(config: RunConfig, count: int = 1) -> tuple[Moment, ...]:
    """The steps of one life of students, one of every kind, as often as asked for; their shares add up to 1.

    Students that live for ``L > 2`` steps begin in one of them, live on in ``L − 2`` alike, and end in one. They stand
    in the middle of the run, since some recipes' steps grow.

    Args:
        config: the run.
        count: lives.
    """
    life = _life(config)
    kinds = {0: 1 / life}
    if life > 1:
        kinds[life - 1] = 1 / life
    if life > 2:
        kinds[1] = (life - 2) / life
    begin = config.method.steps // 2 // life * life
    return tuple(
        Moment(number=begin + number * life + place, share=kinds[place] / count)
        for number in range(count)
        for place in sorted(kinds)
    )


def _life(config: RunConfig) -> int:
    """Steps that students live for."""
    if isinstance(config.method, MatchingConfig):
        return config.method.outer_loop
    if isinstance(config.method, ImplicitConfig):
        return config.method.hypersteps
    return 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Stepper:
    """A method ready to step.

    Attributes:
        config: the run.
        plan: how it is computed.
        method: gives the gradient.
        descent: the outer optimiser.
        start: the state before the first step.
    """

    config: RunConfig
    plan: Plan
    method: Method
    descent: Descent
    start: State

    @classmethod
    def of(cls, config: RunConfig, plan: Plan, train: ImageStore, experts: Experts | None = None) -> Stepper:
        """That of a configuration; ``experts`` as for `make_method`."""
        return cls(
            config=config,
            plan=plan,
            method=make_method(config, plan, train, experts=experts),
            descent=make_descent(config.method, config.generator),
            start=initial_state(config, plan, train),
        )

    @property
    def device(self) -> torch.device:
        """Where it steps."""
        return self.start.device

    def walk(self, steps: Sequence[Moment], around: Callable[[Callable[[], None]], None]) -> None:
        """Takes steps one after the other, each within ``around``, which is given the step and calls it once."""
        state = self.start
        for moment in steps:
            before = replace(state, step=moment.number)
            after: list[State] = []

            def step(before: State = before, after: list[State] = after) -> None:
                share = self.config.max_masked_share
                after.append(outer_step(self.method, self.descent, before, masked_share=share)[0])
                synchronize(self.device)

            around(step)
            (state,) = after

    def warm_up(self, rounds: int) -> None:
        """Takes one step of every kind, as often as asked for."""
        for _ in range(rounds):
            self.walk(moments(self.config), lambda step: step())

    def seconds(self) -> float:
        """Seconds of a step, the mean over a run's kinds of steps of the median over rounds of each."""
        rounds: list[list[float]] = []
        while not rounds or (len(rounds) < _ROUNDS and sum(map(sum, rounds)) < _ENOUGH):
            rounds.append(list(self._timed()))
        kinds = zip(*rounds, strict=True)
        shares = [moment.share for moment in moments(self.config)]
        return sum(share * float(median(kind)) for share, kind in zip(shares, kinds, strict=True))

    def _timed(self) -> Iterator[float]:
        found: list[float] = []

        def clocked(step: Callable[[], None]) -> None:
            begin = time.perf_counter()
            step()
            found.append(time.perf_counter() - begin)

        self.walk(moments(self.config), clocked)
        return iter(found)
