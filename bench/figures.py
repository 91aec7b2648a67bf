# SPDX-License-Identifier: Apache-2.0
"""The figures we set out to reach: ratios of two medians of one run, never seconds.

Nothing fails when a figure is missed; the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.results import Result


@dataclass(frozen=True)
class Figure:
    """One goal: `contender` takes at most `at_most` of what `against` takes."""

    what: str
    bench: str
    case: str
    contender: str
    against: str
    at_most: float
    aim: float

    def reached(self, result: Result) -> float:
        """The ratio of the medians; KeyError when it was not measured."""
        return result.case(self.case).ratio(self.contender, self.against)


FIGURES: tuple[Figure, ...] = ()
