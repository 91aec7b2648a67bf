# SPDX-License-Identifier: Apache-2.0
"""What a benchmark measures, and how contenders take turns.

In every round each contender runs once; the next round starts with the next contender, so that none
is always first. The first round may be a rehearsal that is thrown away: files are then in the page
cache and memory that the host had to find has been found.

Work that comes in pieces can be dealt out instead: the contenders take turns at its pieces, again
and again, until each has had each piece. The processor of a shared machine is a third slower for
half a second now and then; so all of them are, to the same part.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pyvmm.progress.reporter import Progress

Values = Mapping[str, float]
"""Stage of the work to what it took; the stage `TOTAL` is the figure itself."""

TOTAL = ""


class Kept:
    """What turns have given, in the file at `path`, from where a run that broke off goes on."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._done: dict[str, Any] = {}
        self._turns: Counter[str] = Counter()
        if path is not None and path.exists():
            self._done = json.loads(path.read_text())

    def turn(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the next piece of work of that name, and return what it gives, which JSON can hold."""
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
    """How thorough a run is; `quick` is for seeing that the benchmarks work."""

    quick: bool
    progress: Progress
    kept: Kept = field(default_factory=Kept)

    def rounds(self, thorough: int) -> int:
        """Rounds to take: `thorough`, or one when it shall be quick."""
        return 1 if self.quick else thorough


@dataclass
class Case:
    """One thing measured: for each contender one value, and perhaps its stages, a round."""

    name: str
    unit: str
    against: str
    """The contender that the others are divided by."""
    rounds: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Contender to stage to what it took in each round; empty when there are no stages."""
    group: str = ""
    """Cases of one group are points of one curve, at `x`."""
    x: float | None = None

    def add(self, contender: str, values: Values) -> None:
        """Note what one round of `contender` took."""
        self.rounds.setdefault(contender, []).append(values[TOTAL])
        for stage, value in values.items():
            if stage != TOTAL:
                self.stages.setdefault(contender, {}).setdefault(stage, []).append(value)

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
    rehearse: bool,
    within_s: float = math.inf,
) -> Case:
    """Run every contender `rounds` times, in turns, and note what each took in `case`.

    After the first, no round is begun that would end after `within_s` if it took as long as those
    before it.
    """
    names = list(contenders)
    plan.progress.stage(case.name, (rounds + rehearse) * len(names))
    begin = time.monotonic()
    for number in range(-1 if rehearse else 0, rounds):
        if number > 0 and (time.monotonic() - begin) * (number + 1) / number > within_s:
            break
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            values = contenders[name]()
            if number >= 0:
                case.add(name, values)
            plan.progress.advance()
    return case


Piece = Mapping[str, Callable[[], float]]
"""Contender to what does one piece of the work in its way, and returns the seconds it took."""


def deal_out(
    case: Case,
    pieces: Sequence[Piece],
    prepared: Callable[[], AbstractContextManager[None]],
    rounds: int,
    plan: Plan,
) -> Case:
    """Have each contender do each piece `rounds` times, and note the sums of rounds in `case`.

    All `pieces`, each by one contender, are done within a `prepared()`. Every other round goes
    through the contenders backwards, so that none always comes behind the same one.
    """
    names = list(pieces[0])
    plan.progress.stage(case.name, rounds * len(names))
    for number in range(rounds):
        sums = dict.fromkeys(names, 0.0)
        for deal in range(len(names)):
            with prepared():
                for i, piece in enumerate(pieces):
                    name = names[(deal + (i if number % 2 == 0 else -i)) % len(names)]
                    sums[name] += piece[name]()
            plan.progress.advance()
        for name in names:
            case.add(name, seconds(sums[name]))
    return case


def seconds(value: float) -> Values:
    """A figure without stages."""
    return {TOTAL: value}
