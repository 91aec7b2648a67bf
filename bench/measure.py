# SPDX-License-Identifier: Apache-2.0
"""Cases of a benchmark, and the schedule in which their contenders run.

In every round each contender runs once; the next round starts with the next contender, so that none
is always first. The first round may be a warm-up that is discarded: after it, files are in the page
cache and the host has allocated the memory.

Work that consists of pieces can be interleaved instead: the contenders take turns at its pieces,
until each has done each piece. The processor of a shared machine is sometimes a third slower for
half a second; interleaving slows all contenders by the same share.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import Qemu
from pyvmm.progress.reporter import Progress

Values = Mapping[str, float]
"""Costs by stage of the work; the stage `TOTAL` is the whole."""

TOTAL = ""

ENOUGH_ROUNDS = 5
"""A median of fewer rounds is an indication only, and reports say so."""
EXACT_UNITS = frozenset({"bytes/page", "instructions", "requests", "rounds"})
"""Units of counts, which are the same in every round."""


class Checkpoint:
    """Results of turns, in the file at `path`, from which an interrupted run resumes."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        self._turns: Counter[str] = Counter()
        if path is not None and path.exists():
            self._done = json.loads(path.read_text())

    def turn(self, name: str, work: Callable[[], Any]) -> Any:
        """Run the next turn of `name`, or return its stored result; results are JSON values."""
        self._turns[name] += 1
        key = f"{name} {self._turns[name]}"
        if key not in self._done:
            self._done[key] = work()
            if self._path is not None:
                new = self._path.with_suffix(".part")
                new.write_text(json.dumps(self._done))
                new.replace(self._path)
        return self._done[key]


@dataclass(frozen=True)
class Plan:
    """The extent of a run; a `quick` one only shows that the benchmarks work."""

    quick: bool
    progress: Progress
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    peers: tuple[Qemu, ...] = ()
    """Further QEMUs to measure, beside the pinned one."""

    def rounds(self, full: int) -> int:
        """Return the number of rounds: `full`, or one in a quick run."""
        return 1 if self.quick else full


@dataclass
class Case:
    """One measurement: for each contender a value in each round, optionally with its stages."""

    name: str
    unit: str
    against: str
    """The contender that the others are divided by."""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Costs in each round, by contender and stage; empty when there are no stages."""
    group: str = ""
    """Cases of one group are points of one curve, at `x`."""
    x: float | None = None
    panel: str = ""
    """Cases of one panel and unit share a scale in the plot."""
    plotted: bool = True
    """False for a case that is in the tables only."""
    higher_is_better: bool = False

    def add(self, contender: str, values: Values) -> None:
        """Add the result of one round of `contender`."""
        self.rounds.setdefault(contender, []).append(values[TOTAL])
        for stage, value in values.items():
            if stage != TOTAL:
                self.stages.setdefault(contender, {}).setdefault(stage, []).append(value)

    def has_enough_rounds(self, contender: str) -> bool:
        """Return whether the median of `contender` is more than an indication."""
        return self.unit in EXACT_UNITS or len(self.rounds[contender]) >= ENOUGH_ROUNDS

    def median(self, contender: str) -> float:
        return median(self.rounds[contender])

    def ratio(self, contender: str, against: str | None = None) -> float:
        """Median of `contender` divided by the median of `against` (the case's own, if None)."""
        return self.median(contender) / self.median(against or self.against)

    def ratio_spread(self, contender: str, against: str | None = None) -> tuple[float, float]:
        """Least and greatest ratio within one round."""
        ratios = [
            one / other
            for one, other in zip(
                self.rounds[contender], self.rounds[against or self.against], strict=True
            )
        ]
        return min(ratios), max(ratios)


Contender = Callable[[], Values]


def take_turns(
    case: Case,
    contenders: Mapping[str, Contender],
    rounds: int,
    plan: Plan,
    *,
    warm_up: bool,
    limit_s: float = math.inf,
) -> Case:
    """Run every contender `rounds` times, in turns, and add the results to `case`.

    After the first, no round is started that is expected to end after `limit_s`.
    """
    names = list(contenders)
    plan.progress.stage(case.name, (rounds + warm_up) * len(names))
    begin = time.monotonic()
    for number in range(-1 if warm_up else 0, rounds):
        if number > 0 and (time.monotonic() - begin) * (number + 1) / number > limit_s:
            break
        for name in dealt(names, max(number, 0)):
            values = contenders[name]()
            if number >= 0:
                case.add(name, values)
            plan.progress.advance()
    return case


def dealt(names: Sequence[str], number: int) -> list[str]:
    """Return `names` in the order of round `number`, which begins with another one each time."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


Piece = Mapping[str, Callable[[], float]]
"""For each contender a function that does one piece of the work and returns its seconds."""


def interleave(
    case: Case,
    pieces: Sequence[Piece],
    prepared: Callable[[], AbstractContextManager[None]],
    rounds: int,
    plan: Plan,
    *,
    repeats: int = 1,
) -> Case:
    """Have each contender do each piece in each round, and add the sums of rounds to `case`.

    All `pieces`, each by one contender, are done within a `prepared()`. Every second time, the
    contenders take turns backwards, so that none always follows the same one. In a round each piece
    is done `repeats` times, and the median counts: a processor that is taken away for some
    milliseconds would otherwise be most of what short pieces take.
    """
    names = list(pieces[0])
    plan.progress.stage(case.name, rounds * repeats * len(names))
    for number in range(rounds):
        times: dict[str, list[list[float]]] = {name: [[] for _ in pieces] for name in names}
        for turn, deal in product(range(number, number + repeats), range(len(names))):
            with prepared():
                for i, piece in enumerate(pieces):
                    name = names[(deal + (i if turn % 2 == 0 else -i)) % len(names)]
                    times[name][i].append(piece[name]())
            plan.progress.advance()
        for name in names:
            case.add(name, seconds(sum(map(median, times[name]))))
    return case


def seconds(value: float) -> Values:
    """Return a result without stages."""
    return {TOTAL: value}
